"""Examples of the elastic constants: held mass in plain numpy, by definition."""

import itertools

import numpy as np
from evaluation import Values, gram


def held_window(rng: np.random.Generator) -> Values:
    alpha, M, w, k = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 1), 6
    updates = rng.normal(size=(k + 1, 3)) + rng.choice([0, 5])
    updates *= alpha * M * w / np.linalg.norm(updates, axis=1, keepdims=True)
    if rng.random() < 0.5:
        updates *= rng.random(size=updates.shape) < 0.5  # masks
    common = {"h": updates[:k].sum(0), "u": updates[k]}
    return gram(common, {}) | {"α": alpha, "M": M, "w": w, "n": k}


def held_by_chance(rng: np.random.Generator) -> Values:
    alpha, M, k = rng.uniform(0.1, 1), rng.uniform(0.5, 2), 5
    updates = rng.normal(size=(k + 1, 3)) + rng.choice([0, 5])
    updates *= alpha * M / np.linalg.norm(updates, axis=1, keepdims=True)
    P = rng.uniform(0, 1, size=k + 1)
    fates = np.array(list(itertools.product([0, 1], repeat=k)))
    chance = np.prod(np.where(fates, P[:k], 1 - P[:k]), axis=1)
    held = fates @ updates[:k]
    expected = chance @ held
    rest = chance @ ((held - expected) ** 2).sum(1)
    number = fates.sum(1)
    values = gram({"E[h|content]": expected, "u": updates[k]}, {}) | {
        "α": alpha, "M": M, "P": P[k], "ΣP": P[:k].sum(), "ΣP(1−P)": (P * (1 - P))[:k].sum(),
        "‖rest‖²": rest,
    }  # fmt: skip
    # Directly: ‖h‖² ≤ α²M² E N².
    assert chance @ (held**2).sum(1) <= (alpha * M) ** 2 * (chance @ number**2) * (1 + 1e-9)
    return values


def held_by_contraction(rng: np.random.Generator) -> Values:
    alpha, M, rho, T = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 0.95), 12
    held, slack = [0.0], rng.choice([0.5, 1])
    for _ in range(T + 1):
        held.append(rho * (held[-1] + alpha * M) * rng.uniform(slack, 1))
    known = {"α": alpha, "M": M, "ρ": rho, "r^T": rho**T, "|h|": held[T], "|h⁺|": held[T + 1]}
    return known


def held_by_top_k(rng: np.random.Generator) -> Values:
    """Top-k with error feedback; γ = 1 − k/d, which equal magnitudes attain."""
    d, k, T, alpha = 6, int(rng.integers(1, 6)), int(rng.integers(1, 60)), rng.uniform(0.1, 1)
    updates = np.ones((T, d)) if rng.random() < 0.5 else rng.normal(size=(T, d))
    h = following = np.zeros(d)
    for update in updates:
        h = following
        following = h + update
        following = np.where(np.argsort(np.argsort(-abs(following))) < k, 0.0, following)
    M = np.linalg.norm(updates, axis=1).max() / alpha
    gamma = 1 - k / d
    common = {"h": h, "u": updates[-1], "h⁺": following}
    return gram(common, {}) | {"α": alpha, "M": M, "γ": gamma, "√γ": np.sqrt(gamma)}


EXAMPLES = {
    r"window": held_window,
    r"fates.*": held_by_chance,
    r"contraction.*": held_by_contraction,
    r"feedback(\.classic)?": held_by_top_k,
    r"feedback\.order": lambda rng: {"√γ": rng.uniform(0, 0.999)},
    r"feedback\.equal": lambda rng: {"√γ": (np.sqrt(5) - 1) / 2},
}
