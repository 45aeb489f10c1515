"""Examples of the elastic constants of systems: what their views miss, in plain numpy."""

import itertools

import numpy as np
from evaluation import Values, gram
from examples_constants import unit


def sizes(rng: np.random.Generator) -> Values:
    return {"α": rng.uniform(0.1, 1), "M": rng.uniform(0.5, 2)}


def inconsistent_read(rng: np.random.Generator) -> Values:
    """A view that misses some entries of each of the last n updates, and the next update's."""
    known, k, d = sizes(rng), int(rng.integers(1, 6)), int(rng.integers(1, 5))
    updates = unit(rng, k + 1, d + 1) * known["α"] * known["M"] * rng.choice([0.5, 1])
    missed = updates * (rng.random(size=updates.shape) < rng.choice([0.5, 1]))
    h = missed[:k].sum(0)
    values = gram({"h": h, "u": missed[k]}, {}) | gram({"h_j": h[d:]}, {})
    return values | known | {"n": k, "d": d, "E‖h‖²": float((h[:d] ** 2).sum())}


def masked_update(rng: np.random.Generator) -> Values:
    known = sizes(rng)
    u = unit(rng, 4) * known["α"] * known["M"]
    return gram({"u": u, "Du": u * (rng.random(4) < 0.5)}, {}) | known


def events(rng: np.random.Generator) -> Values:
    """Workers read, compute for a random time, write and read again, one at a time."""
    known, workers = sizes(rng), int(rng.integers(2, 6))
    flying = unit(rng, workers, 3) * known["α"] * known["M"]
    finish, x, server = rng.exponential(size=workers), flying.sum(0), np.zeros(3)
    h, read = x, np.arange(workers)  # when each worker has read
    late = 0
    for step in range(30):
        i = int(finish.argmin())
        server = server + flying[i]
        late = max(late, *(workers + step - read[j] for j in range(workers) if j != i))
        read[i] = workers + step
        h = x - server  # steps are numbered by reads: x counts what has been read for
        if rng.random() < 0.5:
            flying[i] = unit(rng, 3) * known["α"] * known["M"]
        x, finish[i] = x + flying[i], finish[i] + rng.exponential()
    return {"⟨h,h⟩": float(h @ h), "n": workers - 1, "τ": late} | known


def others_late(rng: np.random.Generator) -> Values:
    """Worker 0 misses the last n steps of the other workers, and the next step's updates."""
    known, k, p = sizes(rng), int(rng.integers(1, 6)), int(rng.integers(2, 5))
    updates = unit(rng, k + 1, p, 3) * known["α"] * known["M"]
    missed = updates.mean(1) - updates[:, 0] / p
    return gram({"h": missed[:k].sum(0), "u": missed[k]}, {}) | known | {"n": k, "p": p}


def crash(rng: np.random.Generator) -> Values:
    known, p = sizes(rng), int(rng.integers(2, 7))
    f = int(rng.integers(1, p + 1))
    updates = unit(rng, p, 3) * known["α"] * known["M"]
    h = updates[rng.choice(p, f, replace=False)].sum(0) / p
    return {"⟨h,h⟩": float(h @ h), "n": f, "p": p} | known


def chosen(rng: np.random.Generator) -> Values:
    """The n longest of T updates are held; all outcomes are equally likely."""
    known, T, outcomes, w = sizes(rng), int(rng.integers(1, 6)), 8, rng.uniform(0.1, 1)
    n = int(rng.integers(1, T + 1))
    updates = rng.normal(size=(outcomes, T, 3)) * rng.choice([0.1, 1, 3], size=(outcomes, T, 1))
    size2 = (known["α"] * known["M"] * w) ** 2
    updates *= np.sqrt(size2 / (updates**2).sum(2).mean(0).max())
    if rng.random() < 0.5:  # the worst case: 0 but for n of them, which are held
        updates = np.zeros((outcomes, T, 3))
        updates[:, :n, 0] = np.sqrt(size2 * T / n)  # in random order: each has E‖u‖² = size2
    longest = np.argsort(-(updates**2).sum(2), axis=1)[:, :n]
    held = np.take_along_axis(updates, longest[:, :, None], 1)
    values = {"⟨h,h⟩": (held.sum(1) ** 2).sum(1).mean(), "Σ‖u‖²": (held**2).sum(2).sum(1).mean()}
    return values | known | {"n": n, "T": T, "w": w}


def pending(q: float, t: int) -> np.ndarray:
    """The distribution of the number N of messages that pend on a link after t steps."""
    chance = np.array([1.0])
    for _ in range(t):
        chance = np.append(1 - q, q * chance)
    return chance


def links(rng: np.random.Generator, shared: bool = False) -> Values:
    """What worker 0 misses of p − 1 others, averaged over all numbers of pending messages."""
    known, p, t = sizes(rng), int(rng.integers(2, 4)), int(rng.integers(1, 5))
    q = rng.uniform(0.05, 0.95)
    chance, N = pending(q, t), np.arange(t + 1)
    updates = unit(rng, t, p - 1, 3) * known["α"] * known["M"]
    total = square = 0.0
    for numbers in itertools.product(N, repeat=1 if shared else p - 1):
        each = numbers * (p - 1) if shared else numbers
        P = np.prod(chance[list(numbers)])
        h = np.sum([updates[t - k :, j].sum(0) for j, k in enumerate(each)], axis=0) / p
        total, square = total + P * h @ h, square + P * sum(each) ** 2
    return known | {
        "p": p, "q": q, "n": p - 1, "EN": chance @ N, "EN²": chance @ N**2, "E[(ΣN)²]": square,
        "E‖h‖²": total,
    }  # fmt: skip


EXAMPLES = {
    r"synchronous": lambda rng: {},
    r"shared_memory\.part": masked_update,
    r"shared_memory(\.(classic|order))?": inconsistent_read,
    r"asynchronous(\.delay)?": events,
    r"message_passing": others_late,
    r"crashes": crash,
    r"crashes\.chosen(\..*)?": chosen,
    r"failures\..*|links\.(number|independent|order)": links,
    r"links\.shared": lambda rng: links(rng, shared=True),
}
