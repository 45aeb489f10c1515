"""Examples of step sizes and horizons: least values are sought numerically, from the bounds."""

from collections.abc import Callable

import examples_resent
import numpy as np
from evaluation import Values
from examples_sgd import a_run, one_step

Function = Callable[[complex], complex]


def slope(f: Function, x: float) -> float:
    """f′(x), to the last digit: no difference is taken."""
    h = 1e-30
    return f(complex(x, h)).imag / h


def minimiser(f: Function, low: float, high: float) -> float:
    """Where a function falls before and grows after."""
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(f, middle) < 0 else (low, middle)
    return low


def longer(f: Function, start: float) -> float:
    """Some x at which a function grows that falls at first."""
    while slope(f, start) <= 0:
        start *= 2
    return start


def abstract(rng: np.random.Generator) -> Values:
    """Coefficients of a bound, over a few orders of magnitude; S or C may vanish."""
    D, S, C = 10 ** rng.uniform(-2, 2, size=3) * [(1, 1, 1), (1, 0, 1), (1, 1, 0)][rng.integers(3)]
    return {"D": D, "S": S, "C": C}


def posynomial(v: Values) -> Function:
    return lambda x: v["D"] / x + v["S"] * x + v["C"] * x * x


def cubic(rng: np.random.Generator, edge: bool = False) -> Values:
    values = abstract(rng)
    f = posynomial(values)
    best = minimiser(f, 1e-9, longer(f, 1e-9)) * (rng.uniform(0.01, 1) if edge else 1)
    return values | {"α*": best, "α": best * (rng.uniform(0.01, 1) if edge else rng.uniform(0, 5))}


def rational(rng: np.random.Generator, edge: bool = False) -> Values:
    values, L = abstract(rng), 10 ** rng.uniform(-1, 1)
    values["C"] += 0.01  # else the least value may be beyond 1/L
    f = posynomial(values)

    def bound(x: complex) -> complex:
        return f(x) + values["C"] * x * x * (1 / (1 - x * L) - 1)

    best = minimiser(bound, 1e-9, (1 - 1e-9) / L) * (rng.uniform(0.01, 1) if edge else 1)
    alpha = best * rng.uniform(0.01, 1) if edge else rng.uniform(0.01, 0.99) / L
    return values | {"L": L, "α*": best, "α": alpha}


def power(rng: np.random.Generator, edge: bool = False, longer_step: bool = False) -> Values:
    values, T, c = abstract(rng), int(rng.integers(2, 30)), rng.uniform(0.1, 2)
    values["C"] += 0.01
    f = posynomial(values | {"D": 0.0})

    def bound(x: complex) -> complex:
        return values["D"] * (1 - x * c) ** T + f(x)

    while slope(bound, 1e-12) >= 0:
        values["D"] *= 2
    best = minimiser(bound, 1e-12, 1 / c) * (rng.uniform(0.01, 1) if edge else 1)
    alpha = best * rng.uniform(0.01, 1) if edge else rng.uniform(0.01, 1) / c
    if longer_step:
        alpha = rng.uniform(best, 1 / c)
    exponent = T - 1 if longer_step else T
    return values | {
        "T": T, "t": T, "c": c, "α*": best, "α": alpha, "r^T": (1 - alpha * c) ** exponent,
        "r*^(T−1)": (1 - best * c) ** (T - 1),
    }  # fmt: skip


def parameters(rng: np.random.Generator) -> Values:
    names = ("L", "σ", "B", "Δ", "Z_0", "n₁", "ε")
    values = dict(zip(names, 10 ** rng.uniform(-1, 1, size=len(names)), strict=True))
    p, T = float(rng.integers(1, 9)), float(rng.integers(2, 1000))
    return values | {"p": p, "T": T, "σ₊": values["σ"], "√(pT)": (p * T) ** 0.5}


def N(v: Values, drift: float | None = None) -> Function:
    drift = (v["L"] * v["B"]) ** 2 if drift is None else drift
    return lambda x: 2 * v["Δ"] / (x * v["T"]) + v["L"] * x * v["σ"] ** 2 / v["p"] + drift * x * x


def waiting(v: Values) -> float:
    return v["L"] ** 2 * v["σ"] ** 2 * v["n₁"]


def C(v: Values) -> Function:
    def bound(x: complex) -> complex:
        drift = v["L"] * x * x * v["B"] ** 2 / (2 * (1 - x * v["L"]))
        return v["Z_0"] / (2 * x * v["T"]) + x * v["σ"] ** 2 / (2 * v["p"]) + drift

    return bound


def best_N(rng: np.random.Generator, waits: bool = False) -> Values:
    values = parameters(rng)
    f = N(values, waiting(values) if waits else None)
    return values | {"α*": minimiser(f, 1e-9, longer(f, 1e-9)), "α": 10 ** rng.uniform(-3, 1)}


def edge_N(rng: np.random.Generator) -> Values:
    """Few steps from far away: N still falls at 1/L."""
    values = parameters(rng)
    while slope(N(values), 1 / values["L"]) > 0:
        values["Δ"] *= 2
    return values | {"α": rng.uniform(0.01, 1) / values["L"]}


def best_C(rng: np.random.Generator) -> Values:
    v = parameters(rng)
    best = minimiser(C(v), 1e-9, (1 - 1e-9) / v["L"])
    return v | {"α*": best, "α": rng.uniform(0.01, 0.99) / v["L"]}


def tuned_run(
    rng: np.random.Generator, exact: bool = False, noise: float = 1, elastic: float = 1
) -> Values:
    """A run whose step size minimises N (exact: N without B), by the choice of Δ ≥ f(x_0) − f*."""
    while True:
        values = a_run(rng, spread=rng.choice([0.01, 1]), noise=noise, elastic=elastic)
        alpha = values["α"]

        def gain(start: float, values: Values = values, alpha: float = alpha) -> float:
            at = values | {"Δ": start} | ({"B": 0.0} if exact else {})
            return slope(N(at), alpha)

        start = gain(0) / (gain(0) - gain(1))  # the slope is linear in Δ
        if start >= values["f_0"]:
            return values | {"Δ": start, "α*": alpha, "σ₊": values["σ"]}


def held_run(rng: np.random.Generator, step: str, exact: bool = False) -> Values:
    """A run without M, in units of f and of α in which α = √(p/T), or is the best by Δ's choice."""
    while True:
        v = examples_resent.a_run(rng, "held")
        y, tau, p = v["y"], v["τ"], v["p"]
        n1 = tau / (2 * p) * (1 + (y + tau) / (y + 1)) + (1 + tau / y) * v["n₁′"]
        if n1 == 0:
            continue
        unit = v["α"] / (p / v["T"]) ** 0.5 if step == "book" else 1.0
        v |= {key: v[key] * unit for key in ("L", "σ", "Δ")}
        v |= {"ΣA": v["ΣA"] * unit**2, "α": v["α"] / unit, "n₁": n1}
        v |= {"α*": v["α"], "σ₊": v["σ"], "√(pT)": (p * v["T"]) ** 0.5}
        if step == "book":
            return v
        gains = [
            slope(N(v | {"Δ": start}, 0 if exact else waiting(v)), v["α"]) for start in (0.0, 1.0)
        ]
        start = gains[0] / (gains[0] - gains[1])  # the slope is linear in Δ
        if start >= v["Δ"]:
            return v | {"Δ": start}


def relaxed(rng: np.random.Generator, v: Values, rate: Function, exact: Function) -> Values:
    """Let ε be what the relaxation costs, of the rate without it; or more."""
    rest = exact(v["α"]).real
    return v | {"ε": (rate(v["α"]).real - rest) / rest * rng.choice([1, 1.5])}


def textbook_horizon(rng: np.random.Generator) -> Values:
    v = a_run(rng, "root")
    return relaxed(rng, v | {"σ₊": v["σ"]}, N(v), N(v, 0))


def tuned_horizon(rng: np.random.Generator) -> Values:
    v = tuned_run(rng, exact=True)
    return relaxed(rng, v, N(v), N(v, 0))


def held_horizon(rng: np.random.Generator, step: str) -> Values:
    v = held_run(rng, step, exact=True)
    return relaxed(rng, v, N(v, waiting(v)), N(v, 0))


def convex_horizon(rng: np.random.Generator, step: str) -> Values:
    while True:
        v = a_run(rng, step, spread=rng.choice([0.01, 1]))
        if not step:  # exact SGD's best, by the choice of Z_0 ≥ ‖x_0 − x*‖²
            best = v["T"] * (v["σ"] * v["α"]) ** 2 / v["p"]
            v |= {"Z_0": best if best >= v["Z_0"] else -1}
        if v["α"] * v["L"] < 1 and v["Z_0"] > 0:
            return relaxed(rng, v | {"σ₊": v["σ"]}, C(v), C(v | {"B": 0.0}))


def retuned(rng: np.random.Generator) -> Values:
    values = abstract(rng)
    values["S"] += 0.01
    f, exact = posynomial(values), posynomial(values | {"C": 0.0})
    best = minimiser(exact, 1e-9, longer(exact, 1e-9))
    ratio = minimiser(f, 1e-9, longer(f, 1e-9)) / best
    return values | {"α*": best, "x": ratio * rng.choice([1, rng.uniform(0.1, 1)])}


def noisy_enough(rng: np.random.Generator, values: Values, longest: bool = False) -> Values:
    """Let ε be what elasticity adds to the noise, of variance σ², or more."""
    v = values
    added = v["α"] * v["L"] * v["p"] * v["B"] ** 2
    if longest:
        added /= 1 - v["α"] * v["L"]
    M = rng.uniform(0.5, 2)
    epsilon = added / v["σ"] ** 2 * rng.choice([1, 1.5])
    return v | {"ε": epsilon, "M": M, "τ": v["B"] / M}


def fed_back(rng: np.random.Generator, more: bool = False) -> Values:
    """Feedback's residual by iteration: |h⁺| = √γ(|h| + M) in steps of α = 1."""
    d, M = int(rng.integers(2, 20)), rng.uniform(0.5, 2)
    k = int(rng.integers(1, d))
    root, h = np.sqrt(1 - k / d), 0.0
    for _ in range(4000):
        h = root * (h + M)
    B = h * (1 + 1e-12) * (rng.choice([1, 1.5]) if more else 1)
    return {"γ": 1 - k / d, "M": M, "B": B, "√γ": root}


EXAMPLES = {
    r"cubic\.(best|root|value)": cubic,
    r"cubic\.edge": lambda rng: cubic(rng, edge=True),
    r"rational\.(best|root)": rational,
    r"rational\.edge": lambda rng: rational(rng, edge=True),
    r"power\.(tangent|best)": power,
    r"power\.edge": lambda rng: power(rng, edge=True),
    r"power\.(falls|root)": lambda rng: power(rng, longer_step=True),
    r"N\.best": best_N,
    r"W\.held\.best": lambda rng: best_N(rng, waits=True),
    r"W\.held\.optimal": lambda rng: held_run(rng, "best"),
    r"N\.edge": edge_N,
    r"C\.best": best_C,
    r"N\.optimal": tuned_run,
    r"N\.optimal\.exact": lambda rng: tuned_run(rng, elastic=0),
    r"N\.optimal\.noiseless": lambda rng: tuned_run(rng, noise=0),
    r"N\.horizon\.textbook(\.least)?": textbook_horizon,
    r"N\.horizon\.tuned(\.least)?": tuned_horizon,
    r"W\.horizon\.textbook(\.least)?": lambda rng: held_horizon(rng, "book"),
    r"W\.horizon\.tuned(\.least)?": lambda rng: held_horizon(rng, "best"),
    r"C\.horizon\.textbook(\.least)?": lambda rng: convex_horizon(rng, "root"),
    r"C\.horizon\.tuned(\.least)?": lambda rng: convex_horizon(rng, ""),
    r"horizon\.retuned": retuned,
    r"horizon\.more": lambda rng: {"x": rng.uniform(0.01, 1)},
    r"N\.affordable|affordable\.(B|delay)": lambda rng: noisy_enough(rng, a_run(rng)),
    r"C\.affordable": lambda rng: noisy_enough(rng, a_run(rng), longest=True),
    r"(S|P)\.affordable": lambda rng: noisy_enough(rng, one_step(rng)),
    r"affordable\.topk(\.enough)?": fed_back,
}
