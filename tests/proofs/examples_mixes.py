"""Examples of compressed gossip, gradient tracking and mixes behind a hold, by definition."""

import numpy as np
from evaluation import Values, gram
from examples_averaging import proposals, step_size


def symmetric(rng: np.random.Generator, p: int) -> np.ndarray:
    """W of a random symmetric graph, or of one whose slowest mode is of the sign that is worst."""
    if rng.random() < 0.3:  # J and one mode with the eigenvalue −ρ
        mode = np.resize([1.0, -1.0], p) - np.resize([1.0, -1.0], p).mean()
        return 1 / p - rng.uniform(0.1, 0.9) * np.outer(mode, mode) / (mode @ mode)
    near = np.roll(np.eye(p), 1, 0) + np.roll(np.eye(p), -1, 0)
    lazy = rng.uniform(0.2, 0.9)
    return lazy * np.eye(p) + (1 - lazy) / 2 * near


def in_turns(rng: np.random.Generator, steps: int, p: int) -> np.ndarray:
    """Updates [steps, p, 3], of which half the workers' turn their sign at every step."""
    updates = proposals(rng, steps, p)
    if rng.random() < 0.5:
        updates[:] = np.resize([1.0, -1.0], p)[:, None]
        updates[::2] *= -1
    return updates


def leave(rng: np.random.Generator, gamma: float) -> tuple[int, float]:
    """A compressor: 0 is top-1, 1 is (1 − √γ)y, 2 is (1 + √γ)y; and its γ."""
    kind = int(rng.integers(3))
    return kind, (2 / 3 if kind == 0 else gamma)


def unsaid(kind: int, gamma: float, y: np.ndarray) -> np.ndarray:
    if kind:
        return np.sqrt(gamma) * y * (1 if kind == 1 else -1)
    return np.where(abs(y) < abs(y).max(-1, keepdims=True), y, 0.0)


def choco(rng: np.random.Generator) -> Values:
    """Some steps, and what the next one does; the longest consensus step that γ allows, or less."""
    p = int(rng.integers(3, 6))
    W = symmetric(rng, p)
    modes = np.linalg.eigvalsh(np.eye(p) - W)[1:]
    kind, gamma = leave(rng, rng.uniform(0.01, 0.9))
    root = np.sqrt(gamma)
    step = rng.choice([1.0, rng.uniform(0.2, 1)]) * (1 - root) / (1 + root) / modes[-1]
    slow, fast = step * modes[0], step * modes[-1] * (1 + 1e-6)
    updates = in_turns(rng, int(rng.integers(2, 30)), p)
    views = public = before = said = z = e = np.zeros((p, 3))
    for u in updates:
        z = views + u
        e = unsaid(kind, gamma, z - public)
        said, before = z - e, public
        views = z - step * (said - W @ said)
        public = said
    rate = (1 - slow) / (1 + slow)
    f = said + step * (said - W @ said)
    values = gram({}, {"z": z, "y": z - before, "e": e, "f": f, "u": updates[-1]})
    return values | step_size(rng, updates, each=False) | {
        "p": p, "γ": gamma, "√γ": root, "ρ": np.sqrt(rate), "r_W": (1 - fast) / (1 + fast),
        "γ/ρ²": gamma / rate, "a_min": slow,
    }  # fmt: skip


def tracking(rng: np.random.Generator) -> Values:
    """Some steps of tracking, W symmetric or not; updates in turns with −ρ attain the bound."""
    p = int(rng.integers(2, 6))
    W = symmetric(rng, p) if rng.random() < 0.7 else (np.eye(p) + np.roll(np.eye(p), 1, 0)) / 2
    rho, apart = np.linalg.norm(W - 1 / p, 2), np.linalg.norm(np.eye(p) - W, 2)
    updates = in_turns(rng, int(rng.integers(2, 60)), p)
    views = following = correction = c = np.zeros((p, 3))
    for u in updates:
        views, c = following, correction
        following = W @ (views + c + u)
        correction = W @ (c + u) - u
    moved = following - following.mean(0)
    values = gram(
        {}, {"v": views, "c": c, "Wc": W @ c, "(I − W)u": updates[-1] - W @ updates[-1],
             "u": updates[-1]},
    )  # fmt: skip
    return values | step_size(rng, updates, each=False) | {
        "p": p, "ρ": rho, "‖I−W‖": apart, "⟨h⁺,h⁺⟩": (moved**2).sum(1).mean(),
    }  # fmt: skip


def symmetric_tracking(rng: np.random.Generator) -> Values:
    """Symmetric W without eigenvalues below −ρ/2; s adds up all updates, mixed at every step."""
    p = int(rng.integers(3, 7))
    near = np.roll(np.eye(p), 1, 0) + np.roll(np.eye(p), -1, 0)
    lazy = rng.uniform(0.41, 0.9)
    W = lazy * np.eye(p) + (1 - lazy) / 2 * near
    modes, vectors = np.linalg.eigh(W - 1 / p)
    assert modes[0] >= -modes[-1] / 2
    updates = in_turns(rng, int(rng.integers(2, 60)), p)
    if rng.random() < 0.5:  # along the slowest mode, for about as long as it remembers
        size = np.sqrt(p) * np.sign(rng.normal(size=3)) / 2
        updates[:] = vectors[:, -1:] * size
    views = c = s = np.zeros((p, 3))
    for u in updates:
        D, before = views + u + c, s
        views, c, s = W @ D, W @ (c + u) - u, W @ s + u
        np.testing.assert_allclose(c, W @ s - s, atol=1e-9)
    values = gram({}, {"D": D, "s": before, "Ws": W @ before, "WD": W @ D, "u": u})
    return values | step_size(rng, updates, each=False) | {"p": p, "ρ": modes[-1]}


def turned_tracking(rng: np.random.Generator) -> Values:
    """Every pair mixes alike, so W has the eigenvalue ρ only; all updates turn their sign once."""
    p, rho, t = int(rng.integers(2, 6)), rng.uniform(0.1, 0.95), int(rng.integers(0, 30))
    W = rho * np.eye(p) + (1 - rho) / p
    u = rng.normal(size=p)
    u -= u.mean()
    views = c = np.zeros(p)
    largest = 0.0
    for sign in [-1] * 1000 + [1] * t:
        views, c = W @ (views + c + sign * u), W @ (c + sign * u) - sign * u
        largest = max(largest, np.linalg.norm(views) / np.linalg.norm(u))
    assert largest <= np.sqrt(rho) / (1 - rho)  # the bound of a symmetric W
    np.testing.assert_allclose(views, 2 * t * rho**t * u, atol=1e-9)
    return {"t": t, "ρ": rho, "r^T": rho**t}


def hold(rng: np.random.Generator, updates: np.ndarray) -> np.ndarray:
    """What workers hold [steps + 1, p, d]: a delay, or a compressor's residual, its sign too."""
    kind, rho = int(rng.integers(3)), rng.uniform(0.1, 0.8)
    held = np.zeros((len(updates) + 1, *updates.shape[1:]))
    for t, u in enumerate(updates):
        last = updates[max(0, t - 1) : t + 1].sum(0)
        held[t + 1] = last if kind == 2 else (rho, -rho)[kind] * (held[t] + u)
    return held


def messages(rng: np.random.Generator, p: int) -> tuple[np.ndarray, np.ndarray, Values]:
    """Updates, what is held of them, and what a mix behind it may know: the longest message's."""
    updates = in_turns(rng, int(rng.integers(2, 30)), p)
    held = hold(rng, updates)
    squares = ((updates + held[:-1] - held[1:]) ** 2).sum(2).mean(1)
    longest = squares.argmax()
    known = step_size(rng, updates, each=False)
    most = np.sqrt((held**2).sum(2).mean(1).max()) / known["α"]
    parts = {"u": updates[longest], "h₁": held[longest], "h₁⁺": held[longest + 1]}
    return updates, held, gram({}, parts) | known | {"p": p, "B₁": most, "max‖m‖²": squares.max()}


def message(rng: np.random.Generator) -> Values:
    return messages(rng, int(rng.integers(2, 6)))[2]


def gossip_behind(rng: np.random.Generator) -> Values:
    p = int(rng.integers(2, 6))
    W = symmetric(rng, p)
    updates, held, known = messages(rng, p)
    x, views = np.zeros(3), np.zeros((p, 3))
    for u, h, after in zip(updates, held[:-1], held[1:], strict=True):
        x, views = x + u.mean(0), W @ (views + u + h - after)
    gap = held[-1].mean(0) - (views - views.mean(0))
    np.testing.assert_allclose(x - views, gap, atol=1e-9)
    rho = np.linalg.norm(W - 1 / p, 2)
    return known | gram({}, {"v": views, "h₁": held[-1]}) | {"K": rho / (1 - rho)}


def gossip_behind_delay(rng: np.random.Generator) -> Values:
    """Single updates arrive n steps late; alike ones and ones along the slowest mode attain it."""
    p, n = int(rng.integers(2, 6)), int(rng.integers(1, 5))
    W = symmetric(rng, p)
    rho = np.linalg.norm(W - 1 / p, 2)
    updates = in_turns(rng, 60 + n, p)
    tight = rng.random() < 0.5
    if tight:
        values, vectors = np.linalg.eigh(W - 1 / p)
        worst = abs(values).argmax()
        signs = np.sign(values[worst]) ** np.arange(60 + n)
        updates = signs[:, None, None] * vectors[:, worst, None] * np.sqrt(p) * np.eye(3)[0]
        updates[60:] = np.eye(3)[0]
    views = np.zeros((p, 3))
    for u in updates[:60]:
        views = W @ (views + u)
    h = updates[60:].sum(0)
    known = step_size(rng, updates, each=False)
    if tight and rho < 0.8:  # the runs are long enough for their limit
        size = np.sqrt((updates**2).sum(2).mean(1).max())
        gap = np.sqrt((((views - views.mean(0)) ** 2).sum(1)).mean() + (h.mean(0) ** 2).sum())
        np.testing.assert_allclose(gap, size * np.hypot(n, rho / (1 - rho)), rtol=1e-4)
    common = {"h": h.mean(0)}
    values = gram(common, {"v": views, "u": updates[-1], "h₁": h})
    return values | known | {"p": p, "n": n, "K": rho / (1 - rho)}


def average_behind(rng: np.random.Generator) -> Values:
    """Some steps after a meeting; z is v + h₁, which telescopes, less its mean."""
    p, every, rounds = int(rng.integers(2, 6)), int(rng.integers(1, 5)), int(rng.integers(1, 6))
    t = every - 1
    updates = in_turns(rng, rounds * every + t + 1, p)
    held = hold(rng, updates)
    views = np.zeros((p, 3))
    for s in range(rounds * every + t):
        views = views + updates[s] + held[s] - held[s + 1]
        if (s + 1) % every == 0:
            views = views.mean(0) + 0 * views
    now = rounds * every + t
    x = (views + held[now]).mean(0)
    z = views + held[now]
    np.testing.assert_allclose(x - views, held[now] - (z - z.mean(0)), atol=1e-9)
    values = gram({}, {"z": z, "u": updates[now], "h₁": held[now - t], "h₁⁺": held[now]})
    known = step_size(rng, updates, each=False)
    most = np.sqrt((held**2).sum(2).mean(1).max()) / known["α"]
    return values | known | {"p": p, "H": every, "t": t, "B₁": most}


def late(rng: np.random.Generator) -> Values:
    """Entries arrive up to τ steps late, each by itself; all at once at the end attain it."""
    p, every, tau = int(rng.integers(2, 6)), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    start, T = 2 * every, 3 * every - 1  # the last meeting, and now
    updates = in_turns(rng, T, p)
    arrives = np.arange(T)[:, None, None] + rng.integers(0, tau + 1, updates.shape)
    if tight := bool(rng.random() < 0.3):
        updates[:] = np.resize([1.0, -1.0], p)[:, None]
        arrives[:] = np.arange(T)[:, None, None]  # what comes while s runs is in the view after it
        arrives[max(start - tau, 0) : start] = start if every > 1 else T
    views = np.zeros((p, 3))
    for s in range(T):
        views = views + np.where(arrives[: s + 1] == s, updates[: s + 1], 0.0).sum(0)
        if s + 1 == start:
            views = views.mean(0) + 0 * views
    b = np.where((arrives >= start) & (arrives < T), updates, 0.0)
    c = np.where(arrives >= T, updates, 0.0)
    gaps = (b + c).mean(1, keepdims=True) - b
    np.testing.assert_allclose(gaps[: max(start - tau, 0)], 0)
    n = min(every - 1 + tau, T)
    x = updates.mean(1).sum(0)
    np.testing.assert_allclose(x - views, gaps.sum(0), atol=1e-9)
    known = step_size(rng, updates, each=False)
    if tight and every > 1 and p % 2 == 0 and start >= tau:
        size = np.sqrt((updates**2).sum(2).mean(1).max())
        np.testing.assert_allclose(np.sqrt(((x - views) ** 2).sum(1).mean()), n * size)
    last = int(rng.integers(T))
    values = gram({}, {"b": b[last], "c": c[last], "h": gaps.sum(0)})
    return values | known | {"p": p, "n": n}


EXAMPLES = {
    r"choco.*": choco,
    r"tracking(\.correction|\.attained)?": tracking,
    r"tracking\.(step|symmetric)": symmetric_tracking,
    r"tracking\.turned": turned_tracking,
    r"chain\.mix\.message": message,
    r"chain\.mix": gossip_behind,
    r"chain\.mix\.delay": gossip_behind_delay,
    r"chain\.local.*": average_behind,
    r"local\.late.*": late,
}
