"""Examples of the claims without a second moment: runs in exact expectation, by definition.

A random vector is an array [workers, d, K]. Where ∇f is linear, K indexes 1 and all noises, so
squares of coefficients sum to second moments; where it is not, K indexes all patterns of signs.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from evaluation import Values, gram


def harmonic(y: float, n: int) -> float:
    return sum(1 / (y + j) for j in range(1, n + 1))


def held_parts(rng: np.random.Generator, own: bool = False) -> Values:
    """Updates held one by one on top of a residual; gradients depend on earlier noise."""
    p, d, n = int(rng.integers(2 if own else 1, 4)), 2, int(rng.integers(0, 5))
    alpha, y, scale = rng.uniform(0.1, 1), rng.uniform(0.1, 5), rng.choice([0.1, 1])
    K = 1 + (n + 1) * p

    def part(u: np.ndarray) -> np.ndarray:
        return u.mean(0) - u / p if own else u.mean(0) + 0 * u

    h = np.zeros((p, d, K))
    h[:, :, 0] = rng.normal(size=(p, d)) * rng.choice([0, 1])
    e, held, V = h, 0.0, rng.uniform(0, 2)
    for s in range(n + 1):
        seen = 1 + s * p
        g = np.zeros((p, d, K))
        g[:, :, :seen] = scale * rng.normal(size=(p, d, seen))
        if rng.random() < 0.5:  # what makes the window lemma tight: u along e
            g[:, :, :seen] = e[:, :, :seen] / (alpha * (y + s))
        xi = np.zeros((p, d, K))
        xi[np.arange(p), :, seen + np.arange(p)] = np.sqrt(V / d)
        if s == n:
            break
        e, held = e + alpha * (part(g) + part(xi)), held + (g**2).sum() / p
    workers = {name: v.reshape(p, -1) for name, v in {"h": h, "e": e, "g": g}.items()}
    return gram({}, workers) | {
        "α": alpha, "p": p, "y": y, "τ": n, "V": V, "σ": np.sqrt(V * rng.choice([1, 1.5])),
        "G_held": held, "Σ1/(y+j)": harmonic(y, n), "R_T": (h**2).sum() / p,
    }  # fmt: skip


def schedule(rng: np.random.Generator, kind: str, p: int, d: int, T: int, n: int) -> np.ndarray:
    """Return which updates are missing: [view, worker, step, coordinate]."""
    age = np.arange(T + 1)[:, None] - np.arange(T + 1)
    last = ((age > 0) & (age <= n))[:, None, :, None] & np.ones((p, d), bool)[:, None]
    if kind == "flight":  # step s is missing from the views until it arrives
        arrives = rng.integers(0, n + 1, size=T + 1)
        return last & (age <= arrives)[:, None, :, None]
    if kind in ("missing", "delay") and rng.random() < 0.5:  # inconsistent reads
        return last & (rng.random(size=(T + 1, p, T + 1, d)) < 0.7)
    return last


def a_run(rng: np.random.Generator, kind: str) -> Values:
    """T steps and one more of p workers whose views miss what a schedule or a compressor holds."""
    bumpy = rng.random() < 0.3
    p = int(rng.integers(2 if kind == "own" else 1, 4))
    T, d = int(rng.integers(2, 14)), int(rng.integers(1, 4))
    n = int(
        rng.integers(kind not in ("missing", "delay", "own", "split", "wide", "both.textbook"), 5)
    )
    if bumpy:
        p, T = (2, min(T, 3)) if kind == "own" else (1, min(T, 7))
    feedback = kind in ("feedback", "feedback.textbook", "residual")
    both = kind in ("split", "both", "wide", "both.textbook")
    n = 0 if feedback else n
    missing = schedule(rng, kind, p, d, T, n)
    longest = n
    if kind == "flight":  # what the schedule turned out to be
        longest = int(missing.sum(0).max())
        n = max(1, int(missing.sum(2).max()))
    r = np.sqrt(rng.uniform(0.05, 0.8)) if feedback or both else 0.0
    kept = int(rng.integers(1, d + 1))
    top = bumpy and kept < d and r > 0
    r = np.sqrt(1 - kept / d) if top else r
    gamma = r**2
    memory = gamma + (1 - gamma) * rng.uniform(0.1, 0.9) if kind in ("residual", "split") else r
    beta, theta = r / (1 - r), (p - 1) / p if kind == "own" else 1.0

    # Step sizes: the longest that the condition allows, or less.
    y = {"flight": n, "both": n, "wide": beta}.get(kind, rng.uniform(0.2, 3) * max(n, 1))
    less = rng.choice([1, rng.uniform(0.1, 1)])
    L = rng.uniform(0.5, 2)
    residual = gamma * memory / ((memory - gamma) * (1 - memory)) if r else 0.0
    if kind in ("missing", "flight", "both", "split", "wide", "feedback", "residual"):
        weight = (y + n) * longest + (1 + n / y) * residual
    else:
        weight = 0.0
    alpha = less * 2 / (1 + np.sqrt(1 + 4 * weight)) / L
    ratio = 0.0
    if kind in ("delay", "own"):
        alpha = less / (2 * L * max(1, theta * n))
        y = 1 / (2 * alpha * L * theta)
    if kind == "feedback.textbook":
        alpha = less * (1 - gamma) / (2 * L)
    if kind == "both.textbook":
        alpha = less * min(1 / max(n, 1), 1 - gamma) / (4 * L)
        y = 1 / (2 * alpha * L)
    if kind.endswith(".textbook"):
        memory = gamma + alpha * L
    if kind == "best":
        ratio = 0.999 * less * (np.sqrt(1 / n**2 + 4) - 1 / n) / 2
        alpha, y = ratio / (L * n), (n - ratio - n * ratio**2) / ratio**2

    # The problem, in exact expectation.
    K = 2 ** ((T + 1) * p) if bumpy else 1 + (T + 1) * p
    scale = 1 / K if bumpy else 1.0
    curvature = np.array([L, *rng.uniform(0, L, size=d - 1)])[:, None]
    shift = rng.normal(size=(p, d)) * rng.choice([0.1, 1])
    signs = np.array(list(itertools.product([-1, 1], repeat=(T + 1) * p))) if bumpy else None

    def noise(t: int) -> np.ndarray:
        xi = np.zeros((p, d, K))
        for i in range(p):
            if signs is not None:
                xi[i] = shift[i][:, None] * signs[:, t * p + i]
            else:
                xi[i, :, 1 + t * p + i] = shift[i]
        return xi

    def gradient(x: np.ndarray) -> np.ndarray:
        return L * np.sin(x) if bumpy else curvature * x

    def f(x: np.ndarray) -> float:
        return scale * float((L * (1 - np.cos(x)) if bumpy else curvature * x**2 / 2).sum())

    def square(x: np.ndarray) -> float:
        return scale * float((x**2).sum()) / len(x)

    flip = rng.choice([-1, 1], size=(d, 1))

    def compress(u: np.ndarray) -> np.ndarray:
        """Return a γ-contraction: top-k, or 1 ± √γ times each entry."""
        if top:
            rank = np.argsort(np.argsort(-abs(u), axis=1), axis=1)
            return np.where(rank < kept, u, 0)
        return (1 + flip * r) * u

    x = np.zeros((1, d, K))
    start = rng.normal(size=d) * rng.choice([0.0, 1, 3])
    x[0] += start[:, None] * (1 if bumpy else np.eye(K)[0])
    first, h = x, np.zeros((p, d, K))
    residuals, sent, gradients, rows = [h], [], [], []
    for t in range(T + 1):
        v = first + np.zeros((p, d, K))
        held = 0.0
        for s in range(t):
            lost = missing[t, :, s, :, None]
            own = sent[s] / p if kind == "own" else 0 * sent[s]
            v = v + np.where(lost, own, sent[s].mean(0, keepdims=True))
            each = lost[:, None] * gradients[s]
            held += scale * float((each**2).sum()) / p**2
        g, xi, a = gradient(v), noise(t), gradient(x)
        old = residuals[max(t - n, 0)]
        following = x - alpha * (g + xi).mean(0, keepdims=True)
        message = compress(h - alpha * (g + xi))
        rows.append({
            "x": x, "a": a, "g": g, "e": x - v, "h": h, "h'": old, "A": square(a), "G": square(g),
            "Ḡ": square(g.mean(0, keepdims=True)), "E": square(x - v), "held": held,
            "H": square(h), "H'": square(old), "R": square(old.mean(0, keepdims=True)),
        })  # fmt: skip
        h = h - alpha * (g + xi) - message
        x, sent, gradients = following, [*sent, message], [*gradients, g]
        residuals.append(h)
    now, past = rows[T], rows[:T]

    def total(name: str) -> float:
        return sum(row[name] for row in past)

    # Gram entries of the last step; the residual's sign is that of a descent direction.
    root = np.sqrt(scale)
    workers = {"g": now["g"], "e": now["e"], "h": -now["h"], "h'": now["h'"]}
    flat = {name: (v * root).reshape(p, -1) for name, v in workers.items()}
    V = (shift**2).sum() / p
    backlog = total("H") - total("H'")
    values = gram({"a": (now["a"] * root).reshape(-1)}, flat) | {
        "α": alpha, "L": L, "p": p, "T": T, "t": T, "τ": n, "n": n, "τ_max": longest, "y": y,
        "V": V, "σ": np.sqrt(V * rng.choice([1, 1.5])), "r": ratio,
        "γ": gamma, "√γ": r, "μ": memory,
        "f(x)": f(now["x"]), "f(x⁺)": f(x), "f_T": f(now["x"]), "f_T+1": f(x), "f_0": f(first),
        "Δ": f(first), "f*": 0.0, "A_T": now["A"], "ΣA": total("A"), "ΣG": total("G"),
        "Ḡ_T": now["Ḡ"], "G~_T": now["G"] - now["Ḡ"], "E_T": now["E"], "ΣE": total("E"),
        "G_held": now["held"], "R_T": now["R"], "ΣR": total("R"), "H_T": now["H"],
        "H_T+1": square(h), "K_T": backlog, "K_T+1": backlog + now["H"] - now["H'"],
        "Σ1/(y+j)": harmonic(y, n) if y else 0.0,
    }  # fmt: skip
    visits = longest * total("G") - total("held")
    values |= {"U_T": visits, "U_T+1": visits - now["held"] + longest * now["G"]}
    assert min(values["U_T"], values["U_T+1"]) >= -1e-9 * (1 + total("G"))
    assert min(values["K_T"], values["K_T+1"]) >= -1e-9 * (1 + total("H"))
    return values


def a_step(rng: np.random.Generator, kind: str) -> Values:
    """Step sizes at and below the conditions' limits; r for the best y."""
    r = rng.uniform(0.01, 0.9)
    L, weight, tau = rng.uniform(0.5, 2), rng.uniform(0.01, 50), int(rng.integers(1, 20))
    less = rng.choice([1, rng.uniform(0.1, 1)])
    beta = r / (1 - r)
    weight = {"plain": 2 * tau**2, "wide": tau**2}.get(kind, weight)
    root = np.sqrt(1 + 4 * weight)
    values = {"L": L, "α": less * 2 / (1 + root) / L, "n₂": weight, "√(1+4n₂)": root}
    if kind in ("plain", "wide") and beta > tau:
        r = tau / (1 + tau)  # β = τ
    values |= {"τ": tau, "γ": r**2, "√γ": r, "√2": np.sqrt(2)}
    if kind == "ratio":
        n = int(rng.integers(1, 20))
        limit = (np.sqrt(1 / n**2 + 8) - 1 / n) / 4  # 2r² = 1 − r/n
        values |= {"n": n, "r": less * limit}
    return values


def noise_alone(rng: np.random.Generator) -> Values:
    """Residuals of C(y) = (1 − √γ)y where the gradient vanishes."""
    gamma, alpha, sigma, T = rng.uniform(0.1, 0.9), rng.uniform(0.1, 1), rng.uniform(0.1, 1), 9
    kept = np.sqrt(gamma) ** np.arange(T, 0, -1)  # of each step's noise
    bound = (alpha * sigma) ** 2 * gamma * (1 - gamma**T) / (1 - gamma)
    assert np.isclose((alpha * sigma) ** 2 * (kept**2).sum(), bound)
    return {"γ": gamma, "α": alpha, "σ": sigma, "r^T": gamma**T}


def of(kind: str) -> Callable[[np.random.Generator], Values]:
    return functools.partial(a_run, kind=kind)


EXAMPLES = {
    r"W\.window": held_parts,
    r"W\.own\.window": lambda rng: held_parts(rng, own=True),
    r"W\.harmonic": lambda rng: held_parts(rng),
    r"W\.(step|sum|descent|views|missing)": of("missing"),
    r"W\.own(\.views)?": of("own"),
    r"W\.delay": of("delay"),
    r"W\.flight": of("flight"),
    r"W\.residual": of("residual"),
    r"W\.residual\.attained": noise_alone,
    r"W\.(residuals|both\.split)": of("split"),
    r"W\.feedback": of("feedback"),
    r"W\.feedback\.textbook": of("feedback.textbook"),
    r"W\.both\.textbook": of("both.textbook"),
    r"W\.both": of("both"),
    r"W\.both\.wide": of("wide"),
    r"W\.best": of("best"),
    r"W\.(best|split)\.order": lambda rng: a_step(rng, "ratio"),
    r"W\.(sparse|largest|largest\.attained|allowed)": lambda rng: a_step(rng, ""),
    r"W\.price": lambda rng: a_step(rng, "plain"),
    r"W\.price\.wide": lambda rng: a_step(rng, "wide"),
}
