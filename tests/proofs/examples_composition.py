"""Examples of chains of relaxations: two of them run one after the other, by definition."""

import itertools
from collections.abc import Callable

import numpy as np
from evaluation import Values, gram
from examples_constants import unit

Stage = Callable[[np.ndarray], np.ndarray]


def keep_most(d: int, rho: float) -> Stage:
    """A compressor C(y) = (1 + ρ)y or (1 − ρ)y, or the larger entries: what it leaves behind."""
    return lambda y: np.where(abs(y) < np.sort(abs(y))[-max(1, int(d * (1 - rho)))], y, 0.0)


def first_stage(rng: np.random.Generator, steps: int, d: int = 3) -> dict[str, np.ndarray]:
    """Updates u, residuals h₁ and messages m of error feedback with one of three compressors."""
    kind, rho = rng.integers(3), rng.uniform(0.2, 0.9)
    leaves = [lambda y: -rho * y, lambda y: rho * y, keep_most(d, rho)][kind]
    updates = unit(rng, steps, d) if kind == 2 else np.ones((steps, d)) / np.sqrt(d)
    if kind == 0:
        updates[::2] *= -1  # with the expanding compressor, residuals alternate too
    updates = updates * rng.uniform(0.1, 2)
    held = np.zeros((steps + 1, d))
    for t, u in enumerate(updates):
        held[t + 1] = leaves(held[t] + u)
    return {"u": updates, "h": held, "m": updates + held[:-1] - held[1:]}


def sizes(rng: np.random.Generator, stage: dict[str, np.ndarray]) -> Values:
    alpha = rng.uniform(0.1, 1)
    return {
        "α": alpha,
        "M": np.linalg.norm(stage["u"], axis=1).max() / alpha,
        "B₁": np.linalg.norm(stage["h"], axis=1).max() / alpha,
    }


def delay(rng: np.random.Generator) -> Values:
    """The last τ messages are held, and those of other values of N with their probabilities."""
    t = int(rng.integers(20, 30))
    stage = first_stage(rng, t + 1)
    known, tau = sizes(rng, stage), int(rng.integers(0, 5))

    def held(now: int, N: int) -> np.ndarray:
        return stage["h"][now] + stage["m"][now - N : now].sum(0)

    h, u = held(t, tau), stage["u"][t]
    np.testing.assert_allclose(held(t + 1, tau + 1), h + u, atol=1e-12)  # it telescopes
    P = rng.dirichlet(np.ones(5))
    squares = np.array([held(t, N) @ held(t, N) for N in range(5)])
    mean, square = P @ np.arange(5), P @ np.arange(5) ** 2
    values = gram({"h": h, "u": u, "h₁": stage["h"][t]}, {})
    return values | known | {
        "τ": tau, "EN": mean, "EN²": square, "√EN²": np.sqrt(square), "ΣP(N)": 1.0,
        "P": rng.random(), "E‖h‖²": P @ squares,
    }  # fmt: skip


def masks(rng: np.random.Generator) -> Values:
    """Any entries of the last τ messages are held; one message older comes next."""
    stage, tau, t, d = first_stage(rng, 20, 4), int(rng.integers(0, 5)), 20, 4
    D = (rng.random((tau + 1, d)) < 0.5).astype(float)
    if rng.random() < 0.5:  # half of the entries of every message, in turns
        D[:] = (np.arange(tau + 1)[:, None] + np.arange(d)) % 2
    held, updates, messages = stage["h"], stage["u"], stage["m"]
    total = held[t] + sum((D[k] * messages[t - k - 1] for k in range(tau)), np.zeros(d))
    y = total / np.linalg.norm(total) if total.any() else np.eye(d)[0]
    before = np.vstack([np.ones(d), D])  # the mask of the message that follows
    old, last, following = held[t - tau], before[tau], D[tau]
    older = held[t - tau - 1]
    latest = (rng.random(d) < 0.5) * float(rng.integers(2))  # 0 if nothing older is held
    along = y @ (total - last * old)
    sums = [(before[k] - D[k]) * held[t - k] + D[k] * updates[t - k - 1] for k in range(tau)]
    assert np.isclose(along, y @ sum(sums, np.zeros(d)))
    common = {
        "h": total - following * old, "Du": following * updates[t - tau - 1], "h₁": old,
        "u": updates[t - tau - 1], "h₁⁻": older, "Dy": following * y, "D⁻y": last * y,
        "Dh₁": following * older, "D'h₁": latest * older, "Dh₁⁺": following * old,
        "newest h₁": held[t], "its Dh₁": D[0] * held[t],
    }  # fmt: skip
    values = gram(common, {}) | sizes(rng, stage)
    return values | {
        "τ": tau, "h·y": along, "‖Ky‖²": y @ ((1 - last) * y), "‖K⁺y‖²": y @ ((1 - following) * y),
        "√(M²+2B₁²)": np.sqrt(values["M"] ** 2 + 2 * values["B₁"] ** 2), "√2": np.sqrt(2),
    }  # fmt: skip


def holes(rng: np.random.Generator) -> Values:
    """Whole messages of the last τ are held, with g holes; then one more hole and older run."""
    stage, t = first_stage(rng, 40), 40
    tight = rng.random() < 0.5

    def run() -> int:
        return 1 if tight else int(rng.integers(1, 4))

    def block(newest: int, count: int) -> np.ndarray:
        return stage["m"][newest - count : newest].sum(0)

    first = 0 if tight else int(rng.integers(0, 3))
    end, h, g = t - first, stage["h"][t] + block(t, first), int(rng.integers(0, 4))
    for _ in range(g):
        newest, count = end - 1 - (0 if tight else int(rng.integers(0, 2))), run()
        h = h + block(newest, count)
        end = newest - count
    n, newest_run = run(), stage["h"][t] + block(t, first)
    common = {
        "h": h, "newest run": newest_run, "run": stage["u"][end - 1 - n : end - 1].sum(0),
        "h₁": stage["h"][end - 1 - n], "h₁'": stage["h"][end - 1],
    }  # fmt: skip
    known = sizes(rng, stage)
    excess = max(0.0, 2 * known["B₁"] - known["M"])
    np.testing.assert_allclose(
        block(end - 1, n), common["run"] + common["h₁"] - common["h₁'"], atol=1e-12
    )
    # Holes may be longer: the window is as long as they and the runs are.
    return gram(common, {}) | known | {"τ": t - end, "t": first, "#holes": g, "n": n, "X": excess}


def contractions(rng: np.random.Generator) -> Values:
    """Error feedback of the messages of error feedback; alternating in some of the runs."""
    stage = first_stage(rng, 30, 3)
    t, rho = int(rng.integers(1, 30)), rng.uniform(0.1, 0.9)
    sign = rng.choice([-1, 1])
    h2 = following = np.zeros(3)
    for s in range(t + 1):
        h2 = following
        following = sign * rho * (h2 + stage["m"][s])
    held = stage["h"]
    common = {
        "h": held[t] + h2, "u": stage["u"][t], "h₁": held[t], "h₁⁺": held[t + 1], "h₂⁺": following
    }  # fmt: skip
    known = sizes(rng, stage)
    return gram(common, {}) | known | {"ρ": rho}


def delay_then_contraction(rng: np.random.Generator) -> Values:
    """A queue of τ updates before feedback with one of three compressors."""
    T, tau, rho, alpha, d = 60, int(rng.integers(1, 5)), rng.uniform(0.1, 0.9), rng.random(), 3
    kind, updates = rng.integers(3), unit(rng, T, d)
    leaves = [lambda y: -rho * y, lambda y: rho * y, keep_most(d, rho)][kind]
    if constant := rng.random() < 0.5:
        updates[:] = updates[0]
    queue, h2, following = [], np.zeros(d), np.zeros(d)
    for u in updates:
        queue.append(u)
        if len(queue) > tau + 1:  # one update more than are late: it has arrived
            h2, arrived = following, queue.pop(0)
            following = leaves(h2 + arrived)
    late = np.sum(queue[1:], axis=0)
    if constant and kind == 1:
        np.testing.assert_allclose(np.linalg.norm(following + late), rho / (1 - rho) + tau, 0.02)
    rho = np.sqrt(1 - max(1, int(d * (1 - rho))) / d) if kind == 2 else rho
    common = {"h₂": h2, "u": queue[0], "h₂⁺": leaves(h2 + queue[0]), "Σu": late}
    return gram(common, {}) | {"α": alpha, "M": 1 / alpha, "n": tau, "ρ": rho}


def compressed_window(rng: np.random.Generator) -> Values:
    """n updates of one common unbiased sparsification are held; all of its outcomes."""
    d, n, w, alpha = 3, int(rng.integers(1, 5)), rng.uniform(0.1, 1), rng.uniform(0.1, 1)
    keep = rng.uniform(0.2, 1)
    patterns = np.array(list(itertools.product([0, 1], repeat=d)))
    chance = np.prod(np.where(patterns, keep, 1 - keep), axis=1)
    updates = unit(rng, n, d)
    held = (patterns[:, None] * updates / keep).sum(1) * w
    omega = 1 / keep - 1
    return {
        "⟨h,h⟩": chance @ (held**2).sum(1), "n": n, "w": w, "α": alpha, "M": 1 / alpha,
        "ω": omega, "√(1+ω)": np.sqrt(1 + omega),
    }  # fmt: skip


EXAMPLES = {
    r"chain\.(delay|random.*)": delay,
    r"chain\.masks.*": masks,
    r"chain\.holes.*": holes,
    r"chain\.contraction.*": contractions,
    r"chain\.behind(\.held)?": delay_then_contraction,
    r"chain\.compression": compressed_window,
}
