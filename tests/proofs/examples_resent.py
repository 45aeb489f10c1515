"""Examples of links that drop messages and send them again: runs in exact expectation.

A random vector is an array [drops, workers, d, signs]: all patterns of drops, with their chances,
and all patterns of signs of the noises. A message passes a compressor with feedback, one or two
links and a delay; a link drops the messages of all workers together.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from evaluation import Values, gram
from examples_random_feedback import problem


def a_run(rng: np.random.Generator, kind: str) -> Values:
    """T steps and one more; kind "residual": no link; "held", "bursts": a delay behind it all."""
    links = 0 if kind == "residual" else int(rng.integers(1, 3))
    p, d, tau = int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.integers(0, 3))
    T = int(rng.integers(1, 5 - p - (links == 2)))
    odds = rng.uniform(0.05, 3, size=links)  # means of the number of steps held
    q = (odds / (1 + odds))[:, None]
    drops = np.array(list(itertools.product([False, True], repeat=links * (T + 1))), bool)
    drops = drops.reshape(2 ** (links * (T + 1)), links, T + 1)
    chance = np.where(drops, q, 1 - q).prod((1, 2))[:, None, None, None]
    signs = np.array(list(itertools.product([-1, 1], repeat=(T + 1) * p))).T
    signs = signs.reshape(T + 1, p, 1, -1)
    zero = np.zeros((len(chance), p, d, signs.shape[-1]))

    kept = int(rng.integers(1, d + 1))
    top = kept < d and rng.random() < 0.5
    gamma = 1 - kept / d if top else rng.uniform(0.05, 0.8)
    fed = kind == "residual" or rng.random() < 0.7
    y, n_2 = rng.uniform(0.1, 5), rng.uniform(0, 10)
    arrivals = [max(t - tau, 0) for t in range(T + 2)]
    if kind == "bursts":  # now and then, everything that is late comes at once
        for t in range(1, T + 2):
            late = int(rng.integers(0, t + 1)) if rng.random() < 0.5 else 0
            arrivals[t] = max(arrivals[t], arrivals[t - 1], late)
    often = max(arrivals[:T].count(count) for count in arrivals[:T])
    L, less = rng.uniform(0.5, 2), rng.choice([1, rng.uniform(0.1, 1)])
    limit = 2 / (1 + np.sqrt(1 + 4 * ((y + tau) * tau + (1 + tau / y) * n_2 * often)))
    alpha = less * limit / L
    f, gradient = problem(rng, L, d)
    shift = rng.normal(size=(p, d, 1)) * rng.choice([0.1, 1])
    flip = rng.choice([-1, 1], size=(d, 1))

    def compress(u: np.ndarray) -> np.ndarray:
        """Return u, or a γ-contraction: top-k, or 1 ± √γ times each entry."""
        if not fed:
            return u
        if top:
            return np.where(np.argsort(np.argsort(-abs(u), axis=2), axis=2) < kept, u, 0)
        return (1 + flip * np.sqrt(gamma)) * u

    def mean(v: np.ndarray) -> np.ndarray:
        return v.mean(1, keepdims=True)

    def square(v: np.ndarray) -> float:
        return float((chance * v**2).sum()) / v.shape[1] / v.shape[3]

    first = zero[:, :1] + rng.normal(size=(d, 1)) * rng.choice([0.0, 1, 3])
    x, stages, sent, rows = first, [zero] * (1 + links), [], []  # what each stage holds
    for t in range(T + 2):
        arrived = sent[: arrivals[t]]
        v = sum((-mean(message) for message in arrived), first) + zero
        g = gradient(v)
        total, before = sum(stages, zero), sum(stages[: max(links, 1)], zero)
        rows.append({
            "f": float((chance[..., 0] * f(x)).sum()) / signs.shape[-1], "A": square(gradient(x)),
            "G": square(g), "Ḡ": square(mean(g)), "E": square(x - v), "H": square(before),
            "K": square(mean(total)), "k": mean(total) + zero, "g": g,
            "held": sum(row["G"] for row in rows[arrivals[t] :]),
        })  # fmt: skip
        if t > T:
            break
        update = alpha * (g + shift * signs[t])
        x = x - mean(update)
        message = compress(stages[0] + update)
        stages = [stages[0] + update - message, *stages[1:]]
        for i in range(links):
            waiting = stages[1 + i] + message
            message = np.where(drops[:, i, t, None, None, None], 0, waiting)
            stages[1 + i] = waiting - message
        sent.append(message)
    now, following, past = rows[T], rows[T + 1], rows[:T]

    def total_of(name: str, since: int = 0) -> float:
        return sum(row[name] for row in rows[since : T + since])

    V = (shift**2).sum() / p
    sigma = np.sqrt(V * rng.choice([1, 1.5]))
    held = total_of("K", 1) if kind in ("held", "bursts") else total_of("H", 1)
    n_1 = max(0, (held / alpha**2 - n_2 * total_of("G")) / (sigma**2 * T))
    missed = [rows[arrivals[t]]["K"] for t in range(T)]
    root = np.sqrt(chance / signs.shape[-1])
    workers = {"g": np.moveaxis(now["g"] * root, 1, 0).reshape(p, -1)}
    return gram({"Λ": (now["k"] * root)[:, 0].reshape(-1)}, workers) | {
        "α": alpha, "L": L, "p": p, "T": T, "t": T, "y": y, "V": V, "σ": sigma, "τ": tau,
        "γ": gamma, "μ": gamma + (1 - gamma) * rng.uniform(0.1, 0.9),
        "EN": odds[-1] if links else 0.0, "n₂′": n_2, "n₁′": n_1, "ΣH": held,
        "H_T": now["H"], "H_T+1": following["H"], "Λ_T": now["K"], "Λ_T+1": following["K"],
        "ΣΛ": total_of("K", 1), "ΣG": total_of("G"), "ΣA": total_of("A"), "ΣE": total_of("E"),
        "ΣR": sum(missed), "κ": often, "R_T": missed[-1],
        "U_T": tau * total_of("G") - sum(row["held"] for row in past),
        "Ḡ_T": now["Ḡ"], "G~_T": now["G"] - now["Ḡ"], "f_0": rows[0]["f"], "Δ": rows[0]["f"],
        "f_T": now["f"], "f*": 0.0, "Σ1/(y+j)": sum(1 / (y + j) for j in range(1, tau + 1)),
    }  # fmt: skip


def of(kind: str) -> Callable[[np.random.Generator], Values]:
    return functools.partial(a_run, kind=kind)


EXAMPLES = {
    r"W\.residual\.sum": of("residual"),
    r"W\.link(\.step|\.held)?": of("link"),
    r"W\.held": of("held"),
    r"W\.held\.bursts(\.attained)?": of("bursts"),
}
