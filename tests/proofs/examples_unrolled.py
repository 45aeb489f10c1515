"""Examples of S and P, unrolled: their best steps and horizons, sought numerically."""

import numpy as np
from evaluation import Values
from examples_sgd import a_run, one_step
from examples_tuning import Function, abstract, minimiser, parameters, slope


def unrolled(v: Values, gradient: bool) -> Function:
    """S.simple or P.simple."""
    start, scale = (v["Δ"], v["L"] / 2) if gradient else (v["Z_0"], 1)

    def bound(x: complex) -> complex:
        floor = scale * (x * v["σ"] ** 2 / v["p"] + v["L"] * x * x * v["B"] ** 2) / v["c"]
        return start * (1 - x * v["c"]) ** v["T"] + floor

    return bound


def best_unrolled(rng: np.random.Generator, gradient: bool = False) -> Values:
    """With enough to gain from steps."""
    v, start = parameters(rng), "Δ" if gradient else "Z_0"
    v |= {"T": min(v["T"], 50), "c": v["L"] * rng.uniform(0.05, 1)}
    while slope(unrolled(v, gradient), 1e-12) >= 0:
        v[start] *= 2
    best = minimiser(unrolled(v, gradient), 1e-12, 1 / v["c"])
    alpha = rng.uniform(0.01, 1) / v["c"]
    return v | {
        "α*": best, "α": alpha, "r^T": (1 - alpha * v["c"]) ** v["T"],
        "r*^(T−1)": (1 - best * v["c"]) ** (v["T"] - 1),
    }  # fmt: skip


def fading(rng: np.random.Generator, kind: str) -> Values:
    """Where the bound falls before α*, or rises behind it; or its floor is beyond the start."""
    while True:
        v = abstract(rng) | {"C′": 10 ** rng.uniform(-2, 2) * rng.choice([0, 1])}
        v |= {"T": int(rng.integers(2, 30)), "c": rng.uniform(0.1, 2), "h": rng.uniform(0.1, 2)}

        def floor(x: complex, v: Values = v) -> complex:
            return v["S"] * x + v["C"] * x * x + v["C′"] * x * x / (1 - v["h"] * x)

        def bound(x: complex, v: Values = v) -> complex:
            r = (1 - x * v["c"]) ** v["T"]
            return v["D"] * r + (1 - r) * floor(x)

        top = 0.999 / max(v["c"], v["h"])
        best = minimiser(bound, 1e-9, top)
        if kind == "edge":
            best *= rng.choice([1, rng.uniform(0.01, 1)])
            alpha = best * rng.uniform(0.01, 1)
        elif best > 0.999 * top:
            continue  # it falls throughout
        else:
            best = rng.choice([best, rng.uniform(best, top)])
            alpha = rng.uniform(best, top)
        gain = v["D"] - floor(alpha).real
        if (gain < 0) == (kind == "far"):
            return v | {
                "α*": best, "α": alpha, "e": abs(gain), "r^T": (1 - alpha * v["c"]) ** v["T"],
                "r*^(T−1)": (1 - best * v["c"]) ** (v["T"] - 1), "t": v["T"],
            }  # fmt: skip


def best_run(rng: np.random.Generator, gradient: bool, elastic: float = 1) -> Values:
    """A run whose step is exact SGD's best, by the choice of an upper bound of the start."""
    while True:
        v = a_run(rng, spread=rng.choice([0.001, 0.1]), elastic=elastic)
        start, least = ("Δ", "f_0") if gradient else ("Z_0", "Z_0")
        exact = v | {"B": 0.0}
        slopes = [slope(unrolled(exact | {start: x}, gradient), v["α"]) for x in (0.0, 1.0)]
        needed = slopes[0] / (slopes[0] - slopes[1])  # the slope is linear in the start
        if needed < v[least]:
            continue
        v |= {start: needed, "α*": v["α"], "r*^(T−1)": (1 - v["α"] * v["c"]) ** (v["T"] - 1)}
        rest = unrolled(v | {"B": 0.0}, gradient)(v["α"]).real
        drift = unrolled(v, gradient)(v["α"]).real - rest
        return v | {"ε": drift / rest * rng.choice([1, 1.5]) + 1e-12}


def log_horizon(rng: np.random.Generator, gradient: bool) -> Values:
    v = a_run(rng, "log")
    start, scale = (v["Δ"], v["L"] / 2) if gradient else (v["Z_0"], 1)
    exact = start / v["T"] + scale * v["α"] * v["σ"] ** 2 / (v["c"] * v["p"])
    drift = scale * v["L"] * (v["α"] * v["B"]) ** 2 / v["c"]
    return v | {"ε": drift / exact * rng.choice([1, 1.5])}


def lasting(rng: np.random.Generator) -> Values:
    T = np.exp(2) * 10 ** rng.uniform(0, 3)
    later = T * 10 ** (rng.uniform(0, 3) * rng.choice([0.001, 1]))
    D, S = 10 ** rng.uniform(-2, 2, size=2) * rng.choice([0, 1], size=2)
    C = T * (D + S * np.log(T)) / np.log(T) ** 2 * rng.choice([1, rng.uniform(0, 1)])
    return {
        "T": T,
        "T′": later,
        "ln(T)": np.log(T),
        "ln(T′)": np.log(later),
        "D": D,
        "S": S,
        "C": C,
    }


def long_enough(rng: np.random.Generator) -> Values:
    Y = 10 ** rng.uniform(0.5, 5)
    T = 2 * Y * (np.log(2 * Y) - 1) * rng.choice([1, rng.uniform(1, 3)])
    return {"Y": Y, "ln(2Y)": np.log(2 * Y), "T": T, "ln(T)": np.log(T)}


def roots(rng: np.random.Generator, noise_only: bool = False) -> Values:
    """Exact SGD's best steps for T and for T′; C as large as the condition at T allows."""
    T = 2 * 10 ** rng.uniform(0, 3)
    later = T * 10 ** (rng.uniform(0, 3) * rng.choice([0.001, 1]))
    kappa, c, S = np.exp(2) / T * 10 ** rng.uniform(0, 4), rng.uniform(0.1, 2), rng.uniform(0.1, 2)

    def best(T: float) -> float:
        return minimiser(lambda x: (1 - x * c) ** T * kappa / c + x, 1e-9, 1 / c)

    start = 0.0 if noise_only else (1 - best(T) * c) / (c * T)
    C = S * (best(T) + start) / best(T) ** 2
    if noise_only:
        C = c * S * (T - 1) / np.log(kappa * T)
    return {
        "T": T, "T′": later, "c": c, "S": S, "C": C * rng.choice([1, rng.uniform(0, 1)]),
        "α*": best(T), "α*′": best(later), "ln(κT)": np.log(kappa * T),
        "ln(κT′)": np.log(kappa * later),
    }  # fmt: skip


EXAMPLES = {
    r"S\.simple|P\.simple": a_run,
    r"P\.tuned": lambda rng: a_run(rng, "log"),
    r"S\.shape": one_step,
    r"S\.best": best_unrolled,
    r"P\.best": lambda rng: best_unrolled(rng, gradient=True),
    r"S\.optimal\.exact": lambda rng: best_run(rng, gradient=False, elastic=0),
    r"P\.optimal\.exact": lambda rng: best_run(rng, gradient=True, elastic=0),
    r"fading\.edge": lambda rng: fading(rng, "edge"),
    r"fading\.past": lambda rng: fading(rng, "past"),
    r"fading\.far": lambda rng: fading(rng, "far"),
    r"S\.horizon\.textbook": lambda rng: log_horizon(rng, gradient=False),
    r"P\.horizon\.textbook": lambda rng: log_horizon(rng, gradient=True),
    r"S\.horizon\.tuned": lambda rng: best_run(rng, gradient=False),
    r"P\.horizon\.tuned": lambda rng: best_run(rng, gradient=True),
    r"horizon\.log\.lasts": lasting,
    r"horizon\.log": long_enough,
    r"horizon\.root\.(falls|lasts)": roots,
    r"horizon\.root": lambda rng: roots(rng, noise_only=True),
}
