"""Examples of elastic constants: feedback, schedulers, unbiased compression, by definition."""

import itertools

import numpy as np
from evaluation import Values, gram


def held_by_feedback(rng: np.random.Generator) -> Values:
    """Top-k, γ = 1 − k/d (equal magnitudes attain it), or C(y) = (1 − √γ)y (all runs tight)."""
    d, k, T, alpha = 6, int(rng.integers(1, 6)), int(rng.integers(1, 60)), rng.uniform(0.1, 1)
    gamma, scaled = 1 - k / d, rng.random() < 0.5
    updates = np.ones((T, d)) if rng.random() < 0.5 else rng.normal(size=(T, d))
    h = following = np.zeros(d)
    for update in updates:
        h = following
        mass = h + update
        order = np.argsort(np.argsort(-abs(mass)))
        following = np.sqrt(gamma) * mass if scaled else np.where(order < k, 0.0, mass)
    M = np.linalg.norm(updates, axis=1).max() / alpha
    common = {"h": h, "u": updates[-1], "h⁺": following}
    return gram(common, {}) | {"α": alpha, "M": M, "γ": gamma, "√γ": np.sqrt(gamma)}


def flips(count: int) -> np.ndarray:
    """All signs, one row an outcome."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=count)))


def norm_bounded(rng: np.random.Generator) -> Values:
    """What is missing has at most the fraction b of the mass's norm: all of it, or less."""
    alpha, M, b, d = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 0.95), 3
    h, tight = np.zeros(d), rng.random() < 0.5
    for _ in range(int(rng.integers(1, 40))):
        u = np.ones(d) if tight else rng.normal(size=d)
        mass = h + u * alpha * M / np.linalg.norm(u)
        h = mass * b if tight else mass * b * rng.uniform(0, 1, size=d)
    return {"α": alpha, "M": M, "b": b, "|h|": float(np.linalg.norm(h))}


def other_gradients(rng: np.random.Generator) -> Values:
    """Gradients of a quadratic at different views; worst: opposite held mass, curvature L."""
    d, k, L = 3, int(rng.integers(1, 4)), rng.uniform(0.5, 2)
    curvature = L * np.append(1.0, rng.uniform(-1, 1, size=d - 1))
    x, held = rng.normal(size=d), rng.normal(size=(k + 2, d))
    if rng.random() < 0.5:
        held[:, 1:], held[0, 0] = 0, held[0, 0] * 3
        held[1:, 0] = -held[0, 0]
    own, others = curvature * (x - held[0]), curvature * (x - held[1:])
    apart = others - own
    common = {"g_j − g_i": apart[0], "h_i": held[0], "h_j": held[1]}
    common |= {"h": apart[:k].sum(0), "u": apart[k]}
    return gram(common, {}) | {"L": L, "n": k, "max‖h‖²": (held**2).sum(1).max()}


def missing_gradients(rng: np.random.Generator) -> Values:
    """m of p gradients missing at each worker, replaced by its own one, then corrected.

    A quadratic f; all outcomes of the noise of three steps are enumerated.
    """
    p, d, T = 3, 2, 3
    m = int(rng.integers(1, p))
    L, alpha = rng.uniform(0.5, 2), rng.uniform(0.05, 0.6)
    curvature = L * np.array([1.0, rng.uniform(-1, 1)])
    shift, signs = rng.normal(size=(T, p, d)), flips(T * p).reshape(-1, T, p, 1)
    x, h = np.zeros((len(signs), d)) + rng.normal(size=d), np.zeros((len(signs), p, d))
    values: Values = {}
    for t in range(T):
        before = (h**2).sum(2).mean(0).max()
        gradients = curvature * (x[:, None] - h)
        proposed = gradients + signs[:, t] * shift[t]
        # Who is missing does not depend on what was computed.
        who = [rng.choice(np.delete(np.arange(p), i), m, replace=False) for i in range(p)]
        x = x - alpha * proposed.mean(1)
        stood_in = [proposed[:, js].sum(1) - m * proposed[:, i] for i, js in enumerate(who)]
        h = alpha / p * np.stack(stood_in, 1)
        following = (h**2).sum(2).mean(0)
        i = int(following.argmax())
        pull = gradients[:, who[i]].sum(1) - m * gradients[:, i]
        values = {
            "⟨h,h⟩": (pull**2).sum(1).mean(), "max‖h‖²": before, "V": (shift[t, i] ** 2).sum(),
            "ΣV": (shift[t, who[i]] ** 2).sum(),
        }  # fmt: skip
        noises = values["ΣV"] + m**2 * values["V"]
        assert np.isclose(following[i], (alpha / p) ** 2 * (values["⟨h,h⟩"] + noises))
    sigma = np.sqrt((shift**2).sum(2).max())
    return values | {"α": alpha, "L": L, "p": p, "m": m, "σ": sigma}


def sparsified(rng: np.random.Generator) -> Values:
    """Each entry is sent with probability k/d, d/k times as large: ω = d/k − 1; all outcomes."""
    d = 3
    keep, g, shift = rng.uniform(0.2, 1), rng.normal(size=d), rng.normal(size=d)
    masks = np.array(list(itertools.product([0, 1], repeat=d)))
    chance = np.prod(np.where(masks, keep, 1 - keep), axis=1)
    noisy = np.stack([g + shift, g - shift])
    sent = masks[:, None] * noisy / keep
    code_var = chance @ ((sent - noisy) ** 2).sum(2).mean(1)
    V, square = (shift**2).sum(), (noisy**2).sum(1).mean()
    error, moment = ((sent - g) ** 2).sum(2).mean(1), (sent**2).sum(2).mean(1)
    values = gram({"g": g}, {}) | {"V": V, "V_C": code_var, "ω": 1 / keep - 1}
    assert np.isclose(chance @ error, V + code_var)
    assert np.isclose(chance @ moment, square + code_var)
    slack = rng.choice([1, 1.5], size=2)
    return values | {"σ": np.sqrt(V * slack[0]), "M": np.sqrt(square * slack[1])}


EXAMPLES = {
    r"feedback(\.classic)?": held_by_feedback,
    r"feedback\.(order|sparse)": lambda rng: {"√γ": rng.uniform(0, 0.999)},
    r"feedback\.equal": lambda rng: {"√γ": (np.sqrt(5) - 1) / 2},
    r"scheduler\.norm": norm_bounded,
    r"scheduler\.(apart|sum)": other_gradients,
    r"scheduler\.variance": missing_gradients,
    r"scheduler\.content": lambda rng: {"σ": rng.uniform(0, 2)},
    r"unbiased\..*": sparsified,
}
