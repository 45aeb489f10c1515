"""Examples of DiLoCo in plain numpy, by its definition: anchors, meetings, outer momentum."""

import numpy as np
from evaluation import Values, gram
from examples_averaging import step_size


def agreeing(rng: np.random.Generator, steps: int, last: int, p: int) -> tuple[np.ndarray, int]:
    """Updates [steps, p, d]: alike to the end (0), but for one worker (1) or half (2); random."""
    kind = int(rng.integers(4))
    updates = np.ones((steps, p, 1)) * rng.normal(size=3)
    updates[steps - last :, : (0, 1, p // 2, 0)[kind]] *= -1
    return (updates if kind < 3 else rng.normal(size=(steps, p, 3))), kind


def diloco(rng: np.random.Generator) -> Values:
    """A run that ends before a meeting, or before its result arrives; x is followed apart."""
    p, every = int(rng.integers(3, 6)), int(rng.integers(2, 5))
    late, rounds = int(rng.choice([0, 0, 1, every])), int(rng.integers(1, 12))
    mu, nesterov = rng.choice([0.0, rng.uniform(0.1, 0.9)]), rng.random() < 0.5
    G = rng.choice([rng.uniform(0.2, 2), rng.uniform(1.8, 2), rng.uniform(2, 8), p])
    eta, coast = G * (1 - mu), G * (mu**2 if nesterov else mu)
    n = every + late - 1
    since = rounds * every if late == 0 else (rounds - 1) * every
    updates, kind = agreeing(rng, since + n + 1, n + 1, p)
    views = anchor = x = total = np.zeros((p, 3))
    m = known_m = np.zeros(3)
    coming = None
    for t, u in enumerate(updates[:-1], 1):
        views, x, total = views + u, x + G * u.mean(0), total + u
        if coming is not None and coming[0] == t:
            anchor, views = coming[1], coming[1] + (views - coming[2])
            coming, known_m = None, m
        if t % every == 0:
            q = (views - anchor).mean(0)
            m = mu * m + q
            coming = (t + late, anchor + eta * (q + mu * m if nesterov else m), views)
            if late == 0:
                anchor = views = coming[1]
                coming, known_m = None, m
    # While a result is under way its round goes on, with the momentum that it had.
    d = updates[since : since + n].sum(0)
    held = G * d.mean(0) - d + coast * known_m
    np.testing.assert_allclose(x - views, held, atol=1e-9)
    size = np.linalg.norm(updates[0, 0])
    carried = coast * every * (1 - mu ** (since // every)) / (1 - mu)
    if kind == 0:  # attains B but for the rounds before the first
        np.testing.assert_allclose(np.linalg.norm(held[0]), abs((G - 1) * n + carried) * size)
    if kind == 1 and G <= p:
        weight = 1 + G * (p - 2) / p
        np.testing.assert_allclose(np.linalg.norm(held[0]), (weight * n + carried) * size)
    u = updates[-1]
    common = {"m": known_m, "q": updates[:every].mean(1).sum(0), "h": d.mean(0)}
    of_all = gram(common, {"d": d, "u": u})
    parts = {"u_i": u[0], "Σu_j": u[1:].sum(0), "h_d": G * d.mean(0) - d[0], "m": known_m}
    return of_all | gram(parts, {}) | step_size(rng, updates, each=True) | {
        "n": n, "H": every, "p": p, "G": G, "G−1": G - 1, "w": 1 + G * (p - 2) / p,
        "1−μ_m": 1 - mu, "c_m": coast,
    }  # fmt: skip


def in_fragments(rng: np.random.Generator) -> Values:
    """Entries of x, each with its own meetings: with 1 + max(|G − 1|, c_m) in place of G.

    d: the parts in the last n updates, the mean divided by max(|G − 1|, c_m); m: all older parts,
    divided by c_m.
    """
    p, every, D, T = int(rng.integers(2, 5)), int(rng.integers(2, 5)), 4, int(rng.integers(6, 40))
    mu, G = rng.uniform(0.1, 0.9), rng.uniform(0.2, 3)
    coast = G * mu ** rng.integers(1, 3)
    weight, n = max(abs(G - 1), coast), every - 1
    updates = rng.normal(size=(T, p, D)) + rng.normal(size=D)
    ages = np.arange(D) * every // D  # steps since an entry's last meeting
    d, m = np.zeros((p, D)), np.zeros(D)
    held = np.zeros((p, D))
    for lag in range(1, T + 1):
        u = updates[T - lag]
        own = lag <= ages
        passed = coast * mu ** ((lag - 1 - ages) // every).clip(0)
        mean = np.where(own, G - 1, passed) * u.mean(0)
        rest = np.where(own, u - u.mean(0), 0.0)
        held += mean - rest
        if lag <= n:
            d += rest + mean / weight
        else:
            m += mean / coast
    np.testing.assert_allclose(weight * d.mean(0) - (d - d.mean(0)) + coast * m, held, atol=1e-9)
    return gram({"m": m}, {"d": d}) | step_size(rng, updates, each=False) | {
        "n": n, "H": every, "G": 1 + weight, "G−1": weight, "1−μ_m": 1 - mu, "c_m": coast,
    }  # fmt: skip


def either(rng: np.random.Generator) -> Values:
    return diloco(rng) if rng.random() < 0.5 else in_fragments(rng)


EXAMPLES = {
    r"outer\..*|diloco\.each.*|diloco\.attained": diloco,
    r"diloco(\.small(\.long)?)?": either,
}
