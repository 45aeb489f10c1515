"""Examples of the lemmas of the elastic constants: held mass in plain numpy, by definition."""

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
    """Each update is held or not, by a coin; later updates may depend on earlier coins."""
    alpha, M, k, d = rng.uniform(0.1, 1), rng.uniform(0.5, 2), 5, 3
    P = rng.uniform(0, 1, size=k + 1)
    total = second = 0.0
    sizes = alpha * M * np.ones(2 ** (k + 1))
    directions, fixed = unit(rng, 2 ** (k + 1), d), rng.random() < 0.5
    for fates in itertools.product([0, 1], repeat=k):
        chance = float(np.prod(np.where(fates, P[:k], 1 - P[:k])))
        h, prefix = np.zeros(d), 1  # the fates so far, as a binary number
        for fate in fates:
            h = h + fate * (directions * sizes[:, None])[0 if fixed else prefix]
            prefix = 2 * prefix + fate
        total, second = total + chance * float(h @ h), second + chance * sum(fates) ** 2
    return {
        "α": alpha, "M": M, "P": P[k], "ΣP": P[:k].sum(), "ΣP(1−P)": (P * (1 - P))[:k].sum(),
        "E‖h‖²": total, "EN²": second, "n": k, "w": 1.0,
    }  # fmt: skip


def held_by_contraction(rng: np.random.Generator) -> Values:
    alpha, M, rho, T = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 0.95), 12
    held, slack = [0.0], rng.choice([0.5, 1])
    for _ in range(T + 1):
        held.append(rho * (held[-1] + alpha * M) * rng.uniform(slack, 1))
    known = {"α": alpha, "M": M, "ρ": rho, "r^T": rho**T, "|h|": held[T], "|h⁺|": held[T + 1]}
    return known


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Vectors of length 1: in all directions, or nearly in one."""
    vectors = rng.normal(size=shape) + rng.choice([0, 5])
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def sums(rng: np.random.Generator) -> Values:
    k = int(rng.integers(1, 6))
    updates = rng.normal(size=(k + 1, 3)) + rng.choice([0, 5])
    squares = (updates[:k] ** 2).sum()
    return gram({"h": updates[:k].sum(0), "u": updates[k]}, {}) | {"n": k, "Σ‖u‖²": squares}


def oblivious(rng: np.random.Generator) -> Values:
    """Random schedules, each of which holds some of the updates; and one schedule more."""
    alpha, M, w, d = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 1), 3
    chance = rng.dirichlet(np.ones(5))
    total = second = 0.0
    count, h = 0, np.zeros(d)
    for i, P in enumerate(chance):
        count = int(rng.integers(1 if i == 4 else 0, 5))
        # What is held may depend on the schedule, as long as it is bounded given the schedule.
        h = (unit(rng, count, d) * alpha * M * w).sum(0)
        if i < 4:
            total, second = total + P * h @ h, second + P * count**2
    return {
        "E‖h‖²": float(total), "EN²": second, "P": chance[4], "n": count, "⟨h,h⟩": float(h @ h),
        "α": alpha, "M": M, "w": w,
    }  # fmt: skip


EXAMPLES = {
    r"window": held_window,
    r"oblivious": oblivious,
    r"sums": sums,
    r"fates.*": held_by_chance,
    r"contraction.*": held_by_contraction,
}
