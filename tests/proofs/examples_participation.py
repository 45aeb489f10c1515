"""Examples where only some workers take part in a step: by definition, over all sets drawn."""

import itertools

import numpy as np
from evaluation import Values, gram

Law = list[tuple[float, np.ndarray]]
"""The chances of the sets of workers that take part, as indicators [p]."""


def every_set(p: int) -> np.ndarray:
    return np.array(list(itertools.product([0, 1], repeat=p)))


def a_law(rng: np.random.Generator, p: int) -> Law:
    """A law under which each worker takes part with one probability: three kinds of dependence."""
    sets, kind = every_set(p), rng.integers(3)
    share = rng.uniform(0.1, 1)
    if kind == 0:  # independent workers
        chances = np.prod(np.where(sets, share, 1 - share), axis=1)
    elif kind == 1:  # all or none
        chances = np.where(sets.all(1), share, np.where(sets.any(1), 0, 1 - share))
    else:  # a set of a given size, drawn uniformly
        size = int(rng.integers(1, p + 1))
        chances = (sets.sum(1) == size) / (sets.sum(1) == size).sum()
    return [(chance, taken) for chance, taken in zip(chances, sets, strict=True) if chance > 0]


def some_step(rng: np.random.Generator, drawn: bool) -> Values:
    """A step on a non-convex f or a quadratic of the workers of a set, given or drawn."""
    d, p, L = 3, int(rng.integers(1, 4)), rng.uniform(0.5, 2)
    bumpy = rng.random() < 0.7
    curvature = np.array([L, *rng.uniform(0, L, size=d - 1)])
    alpha = rng.uniform(0.05, 1) / L
    law = a_law(rng, p)
    if not drawn:
        sets = every_set(p)[1:]
        law = [(1.0, sets[rng.integers(len(sets))])]

    def f(u: np.ndarray) -> np.ndarray:
        return (L * (1 - np.cos(u)) if bumpy else curvature / 2 * u**2).sum(-1)

    def gradient(u: np.ndarray) -> np.ndarray:
        return L * np.sin(u) if bumpy else curvature * u

    x, e = rng.normal(size=d), rng.normal(size=(p, d)) * rng.choice([0.1, 1, 3])
    g, shift = gradient(x - e), rng.normal(size=(p, d))
    flips = np.array(list(itertools.product([-1, 1], repeat=p)))
    share = sum(chance * taken.mean() for chance, taken in law)
    following, entries = 0.0, dict[str, float]()
    for chance, taken in law:
        parts = taken[:, None] * (g + flips[:, :, None] * shift)  # [outcome, worker, d]
        following += chance * f(x - alpha * parts.mean(1)).mean()
        inside = slice(None) if drawn else taken > 0
        workers = {"e": e[inside], "g": g[inside], "χg": (taken[:, None] * g)[inside]}
        for name, value in gram({"a": gradient(x)}, workers).items():
            entries[name] = entries.get(name, 0.0) + chance * value
    inside = slice(None) if drawn else law[0][1] > 0
    V = (shift[inside] ** 2).sum(1).mean()
    return entries | {
        "α": alpha, "L": L, "p": p, "V": V, "σ": np.sqrt(V * rng.choice([1, 1.5])), "η": share,
        "B": np.sqrt((e**2).sum(1).mean() * rng.choice([1, 1.5])) / alpha,
        "f(x)": f(x), "f(x⁺)": following,
    }  # fmt: skip


def some_run(rng: np.random.Generator, drawn: bool, fixed: bool = False) -> Values:
    """A run on a quadratic in exact second moments, as `examples_sgd.a_run`, of some workers."""
    d, p, T, L = 3, int(rng.integers(1, 5)), int(rng.integers(2, 20)), rng.uniform(0.5, 2)
    alpha, curvature = rng.uniform(0.05, 1) / L, np.array([L, *rng.uniform(0, L, size=2)])
    sigma, square = rng.uniform(0, 1), rng.uniform(0, 2, size=d)
    f_0, law, rows = (curvature / 2 * square).sum(), a_law(rng, p), []
    sets = every_set(p)
    if fixed:
        sets = sets[sets.sum(1) == int(rng.integers(1, p + 1))]
    elif not drawn:  # at least half of them
        sets = sets[sets.sum(1) >= p / 2]
    for _ in range(T + 1):
        kappa = rng.uniform(-1, 1, size=(p, d)) * rng.choice([0.1, 1])
        now = law if drawn else [(1.0, sets[rng.integers(len(sets))])]
        share = sum(chance * taken.mean() for chance, taken in now)
        rows.append(
            {
                "f": (curvature / 2 * square).sum(),
                "A": (curvature**2 * square).sum(),
                "e": (kappa**2 * square).sum(1).mean(),
                "η": share,
            }
        )
        factor = sum(
            chance * (1 - alpha * curvature * (taken[:, None] * (1 - kappa)).mean(0)) ** 2
            for chance, taken in now
        )
        square = factor * square + share * alpha**2 * sigma**2 / (p * d)
    shares, gradients = (np.array([row[key] for row in rows]) for key in ("η", "A"))
    return {
        "α": alpha, "L": L, "p": p, "T": T, "t": T, "σ": sigma, "f*": 0.0, "f_0": f_0, "Δ": f_0,
        "B": np.sqrt(max(row["e"] for row in rows)) / alpha, "f_T": rows[T]["f"],
        "f_T+1": (curvature / 2 * square).sum(), "A_T": gradients[T], "ΣA": gradients[:T].sum(),
        "η": shares[T], "η_min": shares.min(), "Ση": shares[:T].sum(),
        "ΣηA": (shares * gradients)[:T].sum(),
    }  # fmt: skip


EXAMPLES = {
    r"N\.partial\.step": lambda rng: some_step(rng, drawn=False),
    r"N\.fresh\.step": lambda rng: some_step(rng, drawn=True),
    r"N\.partial(\.(sum|least|most|half))?": lambda rng: some_run(rng, drawn=False),
    r"N\.partial\.fixed": lambda rng: some_run(rng, drawn=False, fixed=True),
    r"N\.fresh(\.sum)?": lambda rng: some_run(rng, drawn=True),
    r"N\.partial\.biased": lambda rng: some_run(rng, drawn=False),
}
