"""Examples of random delays, and of error feedback before them: runs in exact expectation.

A random vector is an array [delays, workers, d, signs]: all outcomes of the delays, with their
chances, and all patterns of signs of the noises. A delay N is drawn for each view, or one for all
workers' views; a view misses the messages of the last N steps and what feedback then held back.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from evaluation import Values, gram

N = np.arange(3)  # the values of the delay
Function = Callable[[np.ndarray], np.ndarray]


def problem(rng: np.random.Generator, L: float, d: int) -> tuple[Function, Function]:
    """Return f and ∇f for coordinates on axis 2; f is L-smooth, and least at 0."""
    curvature = np.array([L, *rng.uniform(0, L, size=d - 1)])[:, None]
    if rng.random() < 0.5:
        return (lambda x: (curvature * (1 - np.cos(x))).sum(2), lambda x: curvature * np.sin(x))
    return (lambda x: (curvature * x**2 / 2).sum(2), lambda x: curvature * x)


def a_run(rng: np.random.Generator, kind: str, partial: bool = False) -> Values:
    """T steps and one more; kind "bare" is without feedback."""
    p, d = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    draws = int(rng.choice([1, p]))  # in each step
    T = int(rng.integers(1, 6 - p - draws))
    P = rng.dirichlet(np.ones(len(N)))
    drawn = np.array(list(itertools.product(N, repeat=(T + 1) * draws)))
    chance = np.prod(P[drawn], axis=1)[:, None, None, None]
    drawn = drawn.reshape(-1, T + 1, draws, 1, 1)
    signs = np.array(list(itertools.product([-1, 1], repeat=(T + 1) * p))).T
    signs = signs.reshape(T + 1, p, 1, -1)
    zero = np.zeros((len(chance), p, d, signs.shape[-1]))

    # The compressor, the head start and the step size: the longest that is allowed, or less.
    kept = int(rng.integers(1, d + 1))
    top = kept < d and rng.random() < 0.5
    gamma = 1 - kept / d if top else rng.uniform(0.05, 0.8)
    r = np.sqrt(gamma)
    mean_N, square_N = P @ N, P @ N**2
    heads = {"bare": square_N / mean_N, "averaged": square_N / mean_N, "wide": r / (1 - r)}
    y = heads.get(kind, rng.uniform(0.1, 5))
    memory = r if kind in heads else gamma + (1 - gamma) * rng.uniform(0.1, 0.9)
    n_2 = y * mean_N + square_N
    if kind != "bare":
        n_2 += (1 + mean_N / y) * gamma * memory / ((memory - gamma) * (1 - memory))
    L, less = rng.uniform(0.5, 2), rng.choice([1, rng.uniform(0.1, 1)])
    alpha = less * 2 / (1 + np.sqrt(1 + 4 * n_2)) / L
    f, gradient = problem(rng, L, d)
    shift = rng.normal(size=(p, d, 1)) * rng.choice([0.1, 1])
    flip = rng.choice([-1, 1], size=(d, 1))

    def compress(u: np.ndarray) -> np.ndarray:
        """Return u, or a γ-contraction: top-k, or 1 ± √γ times each entry."""
        if kind == "bare":
            return u
        if top:
            return np.where(np.argsort(np.argsort(-abs(u), axis=2), axis=2) < kept, u, 0)
        return (1 + flip * r) * u

    def mean(v: np.ndarray) -> np.ndarray:
        return v.mean(1, keepdims=True)

    def square(v: np.ndarray) -> float:
        return float((chance * v**2).sum()) / v.shape[1] / v.shape[3]

    first = zero[:, :1] + rng.normal(size=(d, 1)) * rng.choice([0.0, 1, 3])
    x, h, sent, residuals, rows = first, zero, [], [], []
    for t in range(T + 1):
        residuals.append(h)
        since = [max(t - n, 0) for n in N]  # the first message that is missing
        views = [sum((mean(message) for message in sent[:s]), first) for s in since]
        v = sum((np.where(drawn[:, t] == n, views[n], 0) for n in N), zero)
        g, xi = gradient(v), shift * signs[t]
        rows.append({
            "f": float((chance[..., 0] * f(x)).sum()) / signs.shape[-1], "A": square(gradient(x)),
            "G": square(g), "Ḡ": square(mean(g)), "H": square(h), "E": square(x - v),
            "E_n": [square(x - view) for view in views],
            "G_n": [sum(row["G"] for row in rows[s:]) for s in since],
            "R_n": [square(mean(residuals[s])) for s in since],
            "H_n": [square(residuals[s]) for s in since],
        })  # fmt: skip
        update = h - alpha * (g + xi)
        gaps, old = [x - view for view in views], [residuals[s] for s in since]
        x = x - alpha * mean(g + xi)
        sent.append(compress(update))
        h = update - sent[-1]
    now, past = rows[T], rows[:T]

    def total(name: str) -> float:
        return sum(row[name] for row in past)

    k = int(rng.choice(N))  # values below k so far, then k; or all of them
    upto = slice(k if partial else None)

    def weigh(weights: np.ndarray, values: list[float] | np.ndarray) -> float:
        return float((weights * values)[upto].sum())

    for_gradient, for_residual = P * (y + N), P * (1 + N / y)
    weight, price = weigh(for_gradient, N), weigh(for_residual, N**0)
    missed, held = weigh(for_gradient, now["G_n"]), weigh(for_residual, now["H_n"])
    visits = weight * total("G") - sum(weigh(for_gradient, row["G_n"]) for row in past)
    backlog = price * total("H") - sum(weigh(for_residual, row["H_n"]) for row in past)
    V = (shift**2).sum() / p
    root = np.sqrt(chance / signs.shape[-1])
    flat = {"e": gaps[k] + zero, "h'": old[k]}
    workers = {name: np.moveaxis(u * root, 1, 0).reshape(p, -1) for name, u in flat.items()}
    values = gram({}, workers) | {
        "α": alpha, "L": L, "p": p, "T": T, "t": T, "y": y, "V": V,
        "σ": np.sqrt(V * rng.choice([1, 1.5])), "γ": gamma, "√γ": r, "μ": memory,
        "f_0": rows[0]["f"], "Δ": rows[0]["f"], "f_T": now["f"], "f*": 0.0,
        "ΣA": total("A"), "ΣG": total("G"), "Ḡ_T": now["Ḡ"], "G~_T": now["G"] - now["Ḡ"],
        "ΣE": total("E"), "H_T": now["H"], "H_T+1": square(h),
        "τ": k, "P_n": P[k], "E_n": now["E_n"][k], "G_held": now["G_n"][k], "R_T": now["R_n"][k],
        "Σ1/(y+j)": sum(1 / (y + j) for j in range(1, k + 1)),
        "E_T": weigh(P, now["E_n"]), "EN": weigh(P, N), "EN²": weigh(P, N**2),
        "ΣP(N)": weigh(P, N**0), "ΣP_n(y+n)G_held": missed, "ΣE[(y+N)1(N≥j)]": weight,
        "ΣP_n(1+n/y)R": weigh(for_residual, now["R_n"]), "ΣP_n(1+n/y)‖h'‖²": held,
        "ΣΣP_n(1+n/y)R": sum(weigh(for_residual, row["R_n"]) for row in past),
        "ΣP_n(1+n/y)": price, "U_T": visits, "U_T+1": visits - missed + weight * now["G"],
        "K_T": backlog, "K_T+1": backlog - held + price * now["H"],
    }  # fmt: skip
    if not partial:
        assert abs(values["E_T"] - now["E"]) <= 1e-9 * (1 + now["E"])
        for name, size in {"U_T": "G", "U_T+1": "G", "K_T": "H", "K_T+1": "H"}.items():
            assert values[name] >= -1e-9 * (1 + total(size) + now[size])
    return values


def of(kind: str, **more: bool) -> Callable[[np.random.Generator], Values]:
    return functools.partial(a_run, kind=kind, **more)


EXAMPLES = {
    r"W\.random\.(window|weight)": of("any", partial=True),
    r"W\.random\.views": of("any"),
    r"W\.random": of("bare"),
    r"W\.both\.random\.(mean|weight)": of("any", partial=True),
    r"W\.both\.random\.residuals": of("any"),
    r"W\.both\.random": of("averaged"),
    r"W\.both\.random\.wide": of("wide"),
}
