"""Examples of the convergence claims: steps and runs in plain numpy, by definition."""

import itertools
from collections import Counter

import numpy as np
from evaluation import Values, gram


def one_step(
    rng: np.random.Generator,
    flat: bool = False,
    bumpy: bool = False,
    workers: int = 0,
    longest: float = 1,
) -> Values:
    """A step of p workers on a quadratic (c = L if flat), or on a non-convex f; αL ≤ longest."""
    d, p = 4, workers or int(rng.integers(1, 4))
    L = rng.uniform(0.5, 2)
    c = L if flat else L * rng.uniform(0.01, 0.9)
    curvature = np.array([c, L, *rng.uniform(c, L, size=d - 2)])
    alpha = rng.uniform(0.05, 1) * longest / L
    star = 0 * curvature if bumpy else rng.normal(size=d)
    z, e = rng.normal(size=d), rng.normal(size=(p, d)) * rng.choice([0.1, 1, 3])
    if not bumpy and p == 1:  # the worst case of the sharp bound: curvature L, z along e
        e[:, [0, *range(2, d)]] = z[[0, *range(2, d)]] = 0
        z = (1 - alpha * L) * L * e[0] / (2 * L - c - alpha * L**2)

    def f(u: np.ndarray) -> np.ndarray:
        return (L * (1 - np.cos(u)) if bumpy else curvature / 2 * (u - star) ** 2).sum(-1)

    def gradient(u: np.ndarray) -> np.ndarray:
        return L * np.sin(u) if bumpy else curvature * (u - star)

    x = star + z
    v = x - e
    shift = rng.normal(size=(p, d))
    flips = np.array(list(itertools.product([-1, 1], repeat=p)))
    following = x - alpha * (gradient(v) + flips[:, :, None] * shift).mean(1)
    V = (shift**2).sum(1).mean()
    slack = rng.choice([1, 1.5], size=2)
    values = gram({"z": z, "a": gradient(x)}, {"e": e, "g": gradient(v)})
    return values | {
        "α": alpha, "L": L, "c": c, "p": p, "V": V, "σ": np.sqrt(V * slack[0]), "f*": 0.0,
        "B": np.sqrt((e**2).sum(1).mean() * slack[1]) / alpha,
        "f(x)": f(x), "f(v)": f(v).mean(), "f(x⁺)": f(following).mean(),
        "‖z⁺‖²": ((following - star) ** 2).sum(1).mean(),
    }  # fmt: skip


def step_size(rng: np.random.Generator, step: str, p: int, T: int, L: float, c: float) -> float:
    return {
        "": rng.uniform(0.05, 1) / L,
        "root": np.sqrt(p / T),
        "log": np.log(T) / (c * T),
        "two logs": 2 * np.log(T) / (c * T),
        "sixth": rng.uniform(0.05, 1) / (6 * L),
        "curved sixth": rng.uniform(0.05, 1) * c / (6 * L**2),
    }[step]


def a_run(
    rng: np.random.Generator,
    step: str = "",
    workers: int = 0,
    lengths: tuple[int, int] = (2, 30),
    smoothness: tuple[float, float] = (0.5, 2),
    convexity: tuple[float, float] = (0.05, 0.9),
    spread: float = 2,
    noise: float = 1,
    elastic: float = 1,
) -> Values:
    """A run of T steps and one more on a diagonal quadratic, in exact second moments.

    Views err by a random factor of each coordinate, e = κz, so E z_j² obeys a scalar recursion.
    """
    d, p, T = 3, workers or int(rng.integers(1, 5)), int(rng.integers(*lengths))
    L = rng.uniform(*smoothness)
    c = L * rng.uniform(*convexity)
    alpha = step_size(rng, step, p, T, L, c)
    curvature = np.array([c, L, rng.uniform(c, L)])
    sigma, square = noise * rng.uniform(0, 1), rng.uniform(0, spread, size=d)
    first, sums, rows = square, Counter[str](), []
    for _ in range(T + 1):
        kappa = elastic * rng.uniform(-1, 1, size=(p, d)) * rng.choice([0.1, 1])
        row = {
            "A": (curvature**2 * square).sum(),
            "f": (curvature / 2 * square).sum(),
            "f(v)": (curvature / 2 * (1 - kappa) ** 2 * square).sum(1).mean(),
            "Z": square.sum(),
            "e": (kappa**2 * square).sum(1).mean(),
        }
        rows.append(row)
        factor = 1 - alpha * curvature * (1 - kappa.mean(0))
        square = factor**2 * square + alpha**2 * sigma**2 / (p * d)
    for row in rows[:T]:
        sums.update(row)
    now = rows[T]
    start_f = (curvature / 2 * first).sum()
    return {
        "α": alpha, "L": L, "c": c, "p": p, "T": T, "t": T, "σ": sigma, "f*": 0.0, "f_0": start_f,
        "B": np.sqrt(max(row["e"] for row in rows)) / alpha, "Δ": start_f, "Z_0": first.sum(),
        "f_T": now["f"], "f_T+1": (curvature / 2 * square).sum(), "A_T": now["A"],
        "ΣA": sums["A"], "Σf(v)": sums["f(v)"], "f(v_T)": now["f(v)"], "Z_T": now["Z"],
        "Z_T+1": square.sum(), "r^T": (1 - alpha * c) ** T, "√(pT)": np.sqrt(p * T),
        "√T": np.sqrt(T), "r_½^T": (1 - alpha * c / 2) ** T, "ln(T)": np.log(T),
    }  # fmt: skip


def at_half_speed(rng: np.random.Generator) -> Values:
    """A run whose squared distance is bounded by powers of 1 − αc/2."""
    values = a_run(rng)
    return values | {"r^T": values["r_½^T"]}


EXAMPLES = {
    r"N\.step": lambda rng: one_step(rng, bumpy=rng.random() < 0.7),
    r"N\.horizon|N\.tuned": lambda rng: a_run(rng, "root"),
    r"N\.sum|N|S|C\.sum|C|P": a_run,
    r"S\.ball": lambda rng: one_step(rng, flat=True),
    r"S\.(step|constant|weak|attained)|C\.step|P\.step": one_step,
    r"S\.weak\.run": at_half_speed,
    r"S\.tuned": lambda rng: a_run(rng, "log"),
    r"S\.ball\.run": lambda rng: a_run(rng, convexity=(1, 1)),
    r"S\.ball\.tuned": lambda rng: a_run(rng, "log", convexity=(1, 1)),
}
