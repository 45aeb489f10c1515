"""Examples of elastic constants: local SGD and gossip in plain numpy, by definition."""

import numpy as np
from evaluation import Values, gram
from examples_communication import flips


def proposals(rng: np.random.Generator, steps: int, p: int) -> np.ndarray:
    """Updates [steps, p, d]: random, opposite ones, or one worker against all others."""
    kind = rng.integers(3)
    updates = rng.normal(size=(steps, p, 3))
    if kind:
        first = np.arange(p) % 2 if kind == 1 else np.arange(p) > 0
        updates[:] = np.where(first, 1.0, -1.0)[:, None]
    return updates


def step_size(rng: np.random.Generator, updates: np.ndarray, each: bool) -> Values:
    """Draw α, and an M that bounds the updates: each worker's, or their mean square."""
    squares, alpha = (updates**2).sum(2), rng.uniform(0.1, 1)
    largest = squares.max() if each else squares.mean(1).max()
    return {"α": alpha, "M": np.sqrt(largest * rng.choice([1, 1.5])) / alpha}


def one_proposal(rng: np.random.Generator) -> Values:
    updates = proposals(rng, 1, int(rng.integers(1, 5)))
    known = {"p": updates.shape[1]} | step_size(rng, updates, each=False)
    return gram({}, {"u": updates[0]}) | known


def local_steps(rng: np.random.Generator) -> Values:
    """n = H − 1 local steps and one more; h and u are deviations, ⟨·,·⟩ means over the workers."""
    p, k = int(rng.integers(2, 5)), int(rng.integers(1, 6))
    updates = proposals(rng, k + 1, p)
    spread = updates - updates.mean(1, keepdims=True)
    h, u = spread[:k].sum(0).ravel(), spread[k].ravel()
    values = {key: value / p for key, value in gram({"h": h, "u": u}, {}).items()}
    return values | {"n": k, "H": k + 1, "p": p} | step_size(rng, updates, each=False)


def local_steps_of_one(rng: np.random.Generator) -> Values:
    p, k = int(rng.integers(2, 5)), int(rng.integers(1, 6))
    updates = proposals(rng, k + 1, p)
    drift = (updates - updates.mean(1, keepdims=True))[:k, 0].sum(0)
    common = {"h": drift, "u_i": updates[k, 0], "Σu_j": updates[k, 1:].sum(0)}
    return gram(common, {}) | {"n": k, "H": k + 1, "p": p} | step_size(rng, updates, each=True)


def convex_run(rng: np.random.Generator, mixing: float = 1.0) -> Values:
    """Local steps on a convex quadratic (flat in half of the runs), ρ = `mixing` after each.

    All outcomes of the noise are enumerated. Mixing moves views to (1 − ρ)mean + ρv, so every
    deviation shrinks by ρ.
    """
    p, d, T = int(rng.integers(1, 4)), 2, int(rng.integers(0, 4))
    L, flat = rng.uniform(0.5, 2), rng.random() < 0.5
    curvature = L * np.array([1.0, rng.uniform(0, 1)]) * (0 if flat else 1)
    alpha, shift = rng.uniform(0.05, 2) / L, rng.normal(size=(p, d))
    signs = flips(max(T * p, 1)).reshape(-1, *((T, p, 1) if T else (1, 1, 1)))
    views = np.zeros((len(signs), p, d)) + rng.normal(size=d)
    for t in range(T):
        views = views - alpha * (curvature * views + signs[:, t] * shift)
        views = (1 - mixing) * views.mean(1, keepdims=True) + mixing * views
    rows = [gram({}, {"v": v, "g": curvature * v}) for v in views]
    values = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    V = (shift**2).sum(1).mean()
    coming = np.stack(
        [views - alpha * (curvature * views + f * shift) for f in flips(p)[..., None]]
    )
    spread = mixing * (coming - coming.mean(2, keepdims=True))
    return values | {
        "α": alpha, "L": L, "p": p, "t": T, "H": T + 1, "V": V, "σ": np.sqrt(V), "ρ": mixing,
        "⟨h⁺,h⁺⟩": (spread**2).sum(3).mean(),
    }  # fmt: skip


def gossip_run(rng: np.random.Generator) -> Values:
    """Workers on a ring mix with their neighbours after each step; opposite gradients."""
    p = int(rng.integers(2, 6))
    lazy = rng.uniform(0.34, 0.9)
    W = lazy * np.eye(p) + (1 - lazy) / 2 * (np.roll(np.eye(p), 1, 0) + np.roll(np.eye(p), -1, 0))
    rho = np.linalg.norm(W - 1 / p, 2)
    updates = proposals(rng, int(rng.integers(2, 30)), p)
    mixed = views = np.zeros((p, 3))
    for update in updates:
        views = mixed
        mixed = W @ (views + update)
    spread = mixed - mixed.mean(0)
    values = gram({}, {"v": views, "u": updates[-1]}) | step_size(rng, updates, each=False)
    # The step size is in the updates.
    return values | {"p": p, "ρ": rho, "⟨h⁺,h⁺⟩": (spread**2).sum(1).mean()}


def gossip_over_rounds(rng: np.random.Generator) -> Values:
    """Sums of what some, and one more, of the last rounds of a graph that varies have left."""
    p, steps = int(rng.integers(2, 6)), int(rng.integers(1, 12))
    rounds = [
        sum(w * np.roll(np.eye(p), int(rng.integers(p)), 0) for w in rng.dirichlet([1, 1]))
        for _ in range(steps)
    ]
    updates = proposals(rng, steps, p)
    left, held, K, product = np.zeros((p, 3)), [0.0], [0.0], np.eye(p)
    for W, u in zip(reversed(rounds), reversed(updates), strict=True):
        product = product @ (W - 1 / p)
        left = left + product @ u
        held.append(float(np.sqrt((left**2).sum(1).mean())))
        K.append(K[-1] + float(np.linalg.norm(product, 2)))
    known = {"|h|": held[-2], "|h⁺|": held[-1], "K": K[-2], "s_W": K[-1] - K[-2]}
    return known | step_size(rng, updates, each=False)


EXAMPLES = {
    r"local\.part": one_proposal,
    r"local(\.steps)?": local_steps,
    r"local\.each.*": local_steps_of_one,
    r"local\.convex.*|spread\.step": convex_run,
    r"gossip": gossip_run,
    r"gossip\.rounds": gossip_over_rounds,
    r"gossip\.convex": lambda rng: convex_run(rng, rng.uniform(0.1, 0.95)),
}
