"""Examples of crashes over whole runs: workers that stop in mid-broadcast, in plain numpy."""

from collections.abc import Callable

import numpy as np
from evaluation import Values, gram
from examples_constants import unit


def broadcasts(rng: np.random.Generator) -> Values:
    """Workers send updates to each other; a worker that crashes reaches some of the others.

    The last crash is told apart: `h` is what a survivor lacks before it, `u` what it lacks of it.
    """
    p, T, d = int(rng.integers(2, 6)), int(rng.integers(4, 8)), 3
    crashes = int(rng.integers(2, p + 1)) if p > 2 else 2
    survivors = max(1, p - crashes)
    p = survivors + crashes
    alpha, M = rng.uniform(0.1, 1), rng.uniform(0.5, 2)
    ends = np.sort(rng.integers(0, T, size=crashes))  # workers survivors, … crash, in this order
    same = rng.random() < 0.5
    direction, halves = unit(rng, d), rng.random() < 0.5
    views, every, some = np.zeros((p, d)), np.zeros(d), np.zeros(d)
    last, out, before = np.zeros(d), np.zeros(p), (views, some, every)
    for t in range(T):
        updates = np.tile(direction, (p, 1)) if same else unit(rng, p, d)
        updates = updates * alpha * M * (1 if same else rng.choice([0.5, 1], size=(p, 1)))
        for j in range(p):
            crash = j - survivors
            if crash >= 0 and ends[crash] < t:
                continue
            got = np.ones(p)
            if crash >= 0 and ends[crash] == t:
                got = rng.random(p) < 0.5  # whatever the message says
                if halves:
                    got = np.arange(p) < survivors / 2
                if crash == crashes - 1:
                    last, out, before = updates[j], got, (views, some, every)
            every = every + updates[j] / p
            some = some + updates[j] / p * got[:survivors].any()
            views = views + np.outer(got, updates[j]) / p
    i = int(rng.integers(survivors))
    if same and halves and i >= survivors / 2:  # constant updates, and none of the last messages
        lacks = before[1] - before[0][i]
        np.testing.assert_allclose(np.linalg.norm(lacks), (crashes - 1) * alpha * M / p)
    got = out[:survivors].astype(float)
    lost = last / p * (got.any() - got[i])
    h = before[1] - before[0][i]
    np.testing.assert_allclose(some - views[i], h + lost, atol=1e-12)
    forgotten = before[2] - before[1]
    np.testing.assert_allclose(every - some, forgotten + last / p * (not got.any()), atol=1e-12)
    common = {"h": h, "u": lost, "lost": lost, "message": last, "x' − x": forgotten}
    return gram(common, {}) | {"α": alpha, "M": M, "p": p, "n": crashes - 1}


def against_the_mean(rng: np.random.Generator) -> Values:
    """The survivors' views against their mean; vectors of all survivors at once, over √survivors.

    With constant updates and one half that gets all last messages, the bound is attained.
    """
    survivors, crashes, d = int(rng.integers(1, 6)), int(rng.integers(1, 4)), 3
    p, alpha, M = survivors + crashes, rng.uniform(0.1, 1), rng.uniform(0.5, 2)
    tight = rng.random() < 0.3
    last = unit(rng, crashes + 1, d) * alpha * M
    got = (rng.random((crashes + 1, survivors)) < rng.uniform(0, 1)).astype(float)
    if tight:
        last[:], got[:] = last[0], np.arange(survivors) < survivors / 2
    views = np.cumsum(got[:, :, None] * last[:, None] / p, axis=0)  # [crash, survivor, d]
    away = views.mean(1, keepdims=True) - views
    h, one = away[-2], (got[-1].mean() - got[-1])[:, None] * last[-1]
    # u is averaged in the proof only: what a view lacks is 1/p of it.
    values = gram({"h": h.ravel() / survivors**0.5, "u": one.ravel() / survivors**0.5}, {})
    values |= gram({"message": last[-1]}, {"χu": got[-1][:, None] * last[-1]})
    if tight and survivors % 2 == 0:
        np.testing.assert_allclose(values["⟨h,h⟩"], (crashes * alpha * M / (2 * p)) ** 2)
    return values | {"α": alpha, "M": M, "p": p, "n": crashes}


def late(rng: np.random.Generator) -> Values:
    """Messages are up to τ steps late; some of the others crash, and their last one may be lost."""
    p, tau, d = int(rng.integers(2, 6)), int(rng.integers(1, 4)), 3
    alpha, M, T = rng.uniform(0.1, 1), rng.uniform(0.5, 2), 8
    same, direction = rng.random() < 0.4, unit(rng, d)
    missing = []  # of each other worker: (number of updates, their sum)
    for _ in range(p):  # p − 1 others, and one that comes next
        end = T if same else int(rng.integers(0, T + 1))  # steps before its crash
        updates = np.tile(direction, (T, 1)) if same else unit(rng, T, d)
        lacks = np.arange(T) >= T - (tau if same else int(rng.integers(0, tau + 1)))
        if end < T:  # the last message is lost to this view
            lacks[end] = True
        sent = np.arange(T) < (T if end == T else end + 1)
        if not (lacks & sent).any():
            lacks[np.flatnonzero(sent)[-1]] = True
        missing.append((int((lacks & sent).sum()), (updates[lacks & sent]).sum(0) * alpha * M / p))
    h = np.sum([held for _, held in missing[:-1]], axis=0)
    count, one = missing[-1]
    if same:
        np.testing.assert_allclose(h @ h, (alpha * tau * M * (p - 1) / p) ** 2)
    return gram({"h": h, "u": one, "of one worker": one}, {}) | {
        "α": alpha, "M": M, "p": p, "n": p - 1, "o": count, "τ": tau
    }  # fmt: skip


def a_run(rng: np.random.Generator, of_mean: bool = False) -> Values:
    """SGD of workers that crash, on a quadratic that need not be convex, in exact second moments.

    A random vector is an array [d, K], where K indexes 1 and all noises: squares add up.
    """
    p, d, T = int(rng.integers(2, 5)), 2, int(rng.integers(2, 6))
    crashes = int(rng.integers(1, p))
    survivors, L = p - crashes, rng.uniform(0.5, 2)
    curvature = np.array([L, rng.uniform(-L, L)])[:, None]
    alpha = rng.uniform(0.05, 1) / L
    ends = rng.integers(0, T + 2, size=crashes)  # beyond T: not yet
    x = np.zeros((d, 1 + (T + 1) * p))
    x[:, 0] = rng.normal(size=d)
    shift = rng.normal(size=(p, d)) * rng.choice([0.1, 1])
    views, rows = np.tile(x, (p, 1, 1)), []

    def height(u: np.ndarray) -> float:
        return float((curvature / 2 * u**2).sum())

    for t in range(T + 1):
        xi = np.zeros((p, *x.shape))
        xi[:, :, 1 + t * p : 1 + (t + 1) * p] = np.einsum("ij,ik->ijk", shift, np.eye(p))
        takes_part, moved = [], x
        g = curvature * views
        for j in range(p):
            crash = j - survivors
            if crash >= 0 and ends[crash] < t:
                continue
            got = np.ones(p)
            if crash >= 0 and ends[crash] == t:
                got = (rng.random(p) < 0.5).astype(float)
            counted = got[:survivors].any()
            update = alpha * (g[j] + xi[j]) / p
            if counted:
                takes_part.append(j)
                moved = moved - update
            views = views - got[:, None, None] * update
        e = x - (g / curvature)
        rows.append({
            "f": height(x), "next": height(moved), "a": curvature * x, "g": g[takes_part],
            "e": e[takes_part], "η": len(takes_part) / p,
            "V": (shift[takes_part] ** 2).sum(1).mean(),
        })  # fmt: skip
        x = moved
    now = rows[T]
    share = np.array([row["η"] for row in rows])
    gradients = np.array([(row["a"] ** 2).sum() for row in rows])
    workers = {name: now[name].reshape(len(now[name]), -1) for name in ("e", "g")}
    total = share[:T].sum()
    return gram({"a": now["a"].ravel()}, workers) | {
        "α": alpha, "L": L, "p": p, "f": crashes, "T": T, "t": T, "V": now["V"],
        "σ": np.sqrt(max(row["V"] for row in rows)),
        "B": np.sqrt(max((row["e"] ** 2).sum((1, 2)).mean() for row in rows)) / alpha,
        "f(x)": now["f"], "f(x⁺)": now["next"], "f_T": now["f"], "f_T+1": now["next"],
        "f_0": rows[0]["f"], "f*": min(row["f"] for row in rows),
        "Δ": rows[0]["f"] - min(row["f"] for row in rows),
        "A_T": gradients[T], "Ση": total, "ΣηA": (share * gradients)[:T].sum(),
        "η": total / T if of_mean else share[T],
    }  # fmt: skip


def of(example: Callable[..., Values], **settings: bool) -> Callable[..., Values]:
    return lambda rng: example(rng, **settings)


EXAMPLES = {
    r"crashes\.(last|run|lost)": broadcasts,
    r"crashes\.mean(\.last)?": against_the_mean,
    r"crashes\.late(\.(one|sum))?": late,
    r"crashes\.(step|sum|weights)": a_run,
    r"crashes\.rate": of(a_run, of_mean=True),
}
