"""Examples of compression without feedback at stale views: all paths of short runs, by definition.

A run is the tree of all its paths, which are equally likely: vectors are [path, worker, d].
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from evaluation import Values, gram
from examples_compression import inner_products, top
from examples_constants import unit

Array = np.ndarray


def a_run(rng: np.random.Generator, late: bool) -> Values:
    """T steps and one more; views lack messages of the last τ steps, or err in any way."""
    d, p, T, tau = 3, int(rng.integers(1, 3)), 3, int(rng.integers(1, 3))
    k, kind = int(rng.integers(1, d)), rng.integers(3)
    gamma = 1 - k / d
    shifts = rng.normal(size=(p, d)) * rng.choice([0.01, 0.3, 2])
    if rng.random() < 0.3:
        shifts[:, k:] = 0  # noise where little is left for the gradient
    signs = [1.0, -1.0] if p == 2 or rng.random() < 0.5 else [2.0, -1.0, -1.0]
    outcomes = np.array(list(itertools.product(signs, repeat=p)))[:, :, None] * shifts
    many, L = len(outcomes), rng.uniform(0.5, 2)
    stretch = 1 + np.sqrt(gamma)
    alpha = rng.uniform(0.05, 0.5) / (L * tau * stretch) if late else rng.uniform(0.05, 0.9) / L
    bumpy, curvature = rng.random() < 0.5, L * rng.uniform(0.05, 1, size=d)

    def f(x: Array) -> Array:
        return (L * (1 - np.cos(x)) if bumpy else curvature / 2 * x**2).sum(-1)

    def gradient(x: Array) -> Array:
        return L * np.sin(x) if bumpy else curvature * x

    def compress(y: Array) -> Array:
        if kind == 0:
            return np.where(top(y, k), y, 0.0)
        return (1 + (1 if kind == 1 else -1) * np.sqrt(gamma)) * y

    V = (outcomes**2).sum(2).mean()
    sigma2 = V * rng.choice([1, 1.5])
    err, shrink = rng.normal(size=(p, d)) * rng.choice([0.01, 0.3]), rng.random() < 0.5
    x, sent, rows = rng.normal(size=(1, d)) * rng.choice([0.1, 1]), [], []
    for t in range(T + 1):
        missing = rng.random((p, t)) < rng.choice([0.5, 1])
        missing[:, : max(0, t - tau)] = False
        if late:
            away = np.zeros((len(x), p, d))
            for s in range(t):
                away = away + missing[:, s, None] * alpha * sent[s].mean(1, keepdims=True)
        else:  # a view that is nearer to x*, or just wrong
            away = -0.2 * x[:, None] + 0 * err if shrink else err + 0 * x[:, None]
        g = gradient(x[:, None] + away)
        squares = [row["G"] + sigma2 for row in rows]
        row = {
            "f": f(x).mean(), "A": (gradient(x) ** 2).sum(1).mean(), "E": (away**2).sum(2).mean(),
            "G": (g**2).sum(2).mean(), "Ḡ": (g.mean(1) ** 2).sum(1).mean(),
            "held": float((missing @ np.array(squares)).mean()) if t else 0.0,
        }  # fmt: skip
        rows.append(row)
        grown = [np.repeat(each, many, 0) for each in (x, g, away)]
        a = gradient(grown[0])
        xi = np.tile(outcomes, (len(x), 1, 1))
        message = compress(grown[1] + xi)
        sent = [np.repeat(each, many, 0) for each in sent] + [message]
        x = grown[0] - alpha * message.mean(1)
    vectors = {
        "a": np.broadcast_to(a[:, None], xi.shape), "g": grown[1], "e": grown[2], "ξ": xi,
        "C(y)": message, "r": grown[1] + xi - message,
    }  # fmt: skip
    entries = inner_products(vectors)
    entries |= {f"⟨{name}~,ξ⟩": entries[f"⟨{name}~,ξ~⟩"] for name in ("C(y)", "r")}
    now, past = rows[T], rows[:T]

    def total(name: str) -> float:
        return sum(row[name] for row in past)

    visits = tau * (total("G") + T * sigma2) - total("held")
    m = alpha * L
    most = ((1 - m) / gamma - (1 - m)) * rng.uniform(0.1, 1)
    return entries | {
        "α": alpha, "L": L, "p": p, "d": d, "T": T, "t": T, "f*": 0.0, "f_0": rows[0]["f"],
        "Δ": rows[0]["f"], "f_T": now["f"], "f(x)": now["f"], "f(x⁺)": f(x).mean(),
        "f_T+1": f(x).mean(), "A_T": now["A"], "ΣA": total("A"), "ΣG": total("G"), "ΣE": total("E"),
        "E_T": now["E"], "Ḡ_T": now["Ḡ"], "G~_T": now["G"] - now["Ḡ"], "V": V,
        "σ": np.sqrt(sigma2), "B": np.sqrt(max(row["E"] for row in rows)) / alpha, "γ": gamma,
        "√γ": np.sqrt(gamma), "n": tau, "τ": tau, "φ": alpha * L * tau * stretch, "ζ": most,
        "G_held": now["held"], "U_T": visits,
        "U_T+1": visits - now["held"] + tau * (now["G"] + sigma2),
    }  # fmt: skip


def in_flight(rng: np.random.Generator, entries: bool) -> Values:
    """The last n messages of updates of size αM are held, and one more."""
    d, n, alpha, M = 4, int(rng.integers(1, 5)), rng.uniform(0.1, 1), rng.uniform(0.5, 2)
    k, kind = int(rng.integers(1, d)), 0 if entries else rng.integers(3)
    gamma, constant = 1 - k / d, rng.random() < 0.4
    updates = unit(rng, n + 1, d) * alpha * M
    if constant:
        updates[:] = updates[0]
        updates[:, k:] = updates[:, k:] * (0 if kind == 0 else 1)
        updates *= alpha * M / np.linalg.norm(updates, axis=1, keepdims=True)
    sign = {1: 1, 2: -1}.get(int(kind), 0)
    messages = (1 + sign * np.sqrt(gamma)) * updates
    if kind == 0:
        messages = np.where(top(updates, k), updates, 0.0)
    h = messages[:n].sum(0)
    if constant and kind == 0:
        np.testing.assert_allclose(h @ h, (alpha * n * M) ** 2)
    if constant and kind == 1:
        np.testing.assert_allclose(h @ h, (alpha * n * (1 + np.sqrt(gamma)) * M) ** 2)
    common = {"y": updates[n], "message": messages[n], "h": h, "u": messages[n]}
    return gram(common, {}) | {"α": alpha, "M": M, "n": n, "γ": gamma, "√γ": np.sqrt(gamma)}


def of(example: Callable[..., Values], **settings: bool) -> Callable[..., Values]:
    return functools.partial(example, **settings)


EXAMPLES = {
    r"nofeedback\.(message|late)": of(in_flight, entries=False),
    r"nofeedback\.late\.entries": of(in_flight, entries=True),
    r"nofeedback\.(message\.noisy|window|views|delay(\..*)?)": of(a_run, late=True),
}
