"""Examples of compression without feedback: runs in plain numpy, in exact expectation.

A run is the tree of all its paths: step t has one iterate for each sequence of noise outcomes, all
equally likely.
"""

import itertools
from collections.abc import Callable

import numpy as np
from evaluation import Values

Array = np.ndarray


def top(y: Array, k: int) -> Array:
    """Return whether each entry is among the k largest; ties go to the first."""
    return np.argsort(np.argsort(-abs(y), axis=-1, kind="stable"), axis=-1) < k


def inner_products(vectors: dict[str, Array]) -> Values:
    """Return the Gram entries of vectors [outcomes, workers, d], outcomes equally likely."""
    values = {}
    for (s, a), (t, b) in itertools.product(vectors.items(), repeat=2):
        values[f"⟨{s},{t}⟩"] = (a.mean(1) * b.mean(1)).sum(1).mean()
        a_own, b_own = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        values[f"⟨{s}~,{t}~⟩"] = (a_own * b_own).sum(2).mean()
    return values


def run(
    rng: np.random.Generator,
    noise: Callable[[], Array],
    compress: Callable[[Array], Array],
    d: int,
    T: int,
    longest: float = 1.0,
) -> tuple[Values, list[Array], Array, Array]:
    """Run T steps and one more.

    Returns:
        What all claims need; ∇f at each step; noise and messages of the last step [outcomes, p, d].
    """
    L = rng.uniform(0.5, 2)
    alpha = rng.uniform(0.05, longest) / L
    bumpy, curvature = rng.random() < 0.5, L * rng.uniform(0.05, 1, size=d)

    def f(x: Array) -> Array:
        return (L * (1 - np.cos(x)) if bumpy else curvature / 2 * x**2).sum(-1)

    def gradient(x: Array) -> Array:
        return L * np.sin(x) if bumpy else curvature * x

    x = rng.normal(size=(1, d)) * rng.choice([0.1, 1])
    heights, gradients, squares = [], [], []
    for _ in range(T + 1):
        outcomes = noise()  # [m, p, d]
        g = gradient(x)
        heights.append(f(x).mean())
        gradients.append(g)
        squares.append((g**2).sum(1).mean())
        xi = np.tile(outcomes, (len(x), 1, 1))
        x, g = np.repeat(x, len(outcomes), 0), np.repeat(g, len(outcomes), 0)
        sent = compress(g[:, None] + xi)
        x = x - alpha * sent.mean(1)
    known = {
        "α": alpha, "L": L, "p": xi.shape[1], "d": d, "T": T, "t": T, "f*": 0.0, "f_0": heights[0],
        "Δ": heights[0], "f_T": heights[T], "f(x)": heights[T], "f(x⁺)": f(x).mean(),
        "f_T+1": f(x).mean(), "A_T": squares[T], "ΣA": sum(squares[:T]),
    }  # fmt: skip
    return known, gradients, xi, sent


def any_contraction(rng: np.random.Generator) -> Values:
    d, p, T = 3, int(rng.integers(1, 3)), 3
    k, kind = int(rng.integers(1, d)), rng.integers(3)
    gamma = 1 - k / d
    shifts = rng.normal(size=(p, d)) * rng.choice([0.01, 0.3, 2])
    if rng.random() < 0.3:
        shifts[:, k:] = 0  # noise where little is left for the gradient
    steps = [1.0, -1.0] if rng.random() < 0.5 else [2.0, -1.0, -1.0]
    outcomes = np.array(list(itertools.product(steps, repeat=p)))[:, :, None] * shifts
    compressors = [
        lambda y: np.where(top(y, k), y, 0.0),
        lambda y: (1 + np.sqrt(gamma)) * y,
        lambda y: (1 - np.sqrt(gamma)) * y,
    ]
    known, gradients, xi, sent = run(rng, lambda: outcomes, compressors[kind], d, T)
    a = np.repeat(gradients[-1], len(outcomes), 0)[:, None]
    vectors = {"a": np.broadcast_to(a, xi.shape), "r": a + xi - sent, "ξ": xi}
    V = (outcomes**2).sum(2).mean()
    slack = rng.choice([1, 1.5])
    m = known["α"] * known["L"]
    most = (1 - m) * (1 - gamma) / gamma
    near = m * (1 + 1 / np.sqrt(gamma * p)) - 1
    excess = min(most, max(0.0, near)) if rng.random() < 0.5 else most * rng.random()
    roots = {"√γ": np.sqrt(gamma), "√p": np.sqrt(p)}
    return known | roots | inner_products(vectors) | {
        "γ": gamma, "V": V, "σ": np.sqrt(V * slack), "u": excess
    }  # fmt: skip


def symmetric(rng: np.random.Generator, kind: str = "") -> Values:
    """Top-k of symmetric noise; workers' noises depend on each other."""
    d, p, T = (2 if kind == "two entries" else 3), int(rng.integers(1, 3)), 2
    k, scale = int(rng.integers(1, d)), rng.choice([0.01, 0.3, 2])

    def noise() -> Array:
        shift = rng.normal(size=(1, p, d)) * scale
        if kind:
            orders = list(itertools.permutations(range(d)))
            shift = np.concatenate([shift[..., list(order)] for order in orders])
        return np.concatenate([shift, -shift])

    kept, sent_part, last, quiet = [], [], (), 0.0

    def compress(y: Array) -> Array:
        return np.where(top(y, k), y, 0.0)

    drawn: list[Array] = []

    def recorded() -> Array:
        drawn.append(noise())
        return drawn[-1]

    known, gradients, xi, _ = run(rng, recorded, compress, d, T)
    for g, outcomes in zip(gradients, drawn, strict=True):
        chance = top(outcomes, k).mean((0, 1))  # π_j
        y = g[:, None, None] + outcomes
        kept.append((chance * (g**2).mean(0)).sum())
        sent_part.append((np.where(top(y, k), g[:, None, None], 0) ** 2).sum(-1).mean())
        quiet = max(quiet, (np.where(top(outcomes, k), outcomes, 0) ** 2).sum(-1).mean())
    a = np.repeat(gradients[-1], len(drawn[-1]), 0)[:, None] + 0 * xi
    in_y, in_xi = top(a + xi, k), top(xi, k)
    last = {
        "a": a, "u": np.where(in_y, a, 0), "q": np.where(in_y, xi, 0),
        "w": np.where(in_xi, a, 0), "n": np.where(in_xi, xi, 0),
    }  # fmt: skip
    return known | inner_products(last) | {
        "k": k, "σ_k": np.sqrt(quiet), "π_T": kept[T], "Σπ": sum(kept[:T]), "S_T": sent_part[T],
        "ΣS": sum(sent_part[:T]),
    }  # fmt: skip


def without_noise(rng: np.random.Generator) -> Values:
    d, T = 5, 20
    k = int(rng.integers(1, d))
    noise = np.zeros((1, 1, d))
    known, gradients, _, sent = run(
        rng, lambda: noise, lambda y: np.where(top(y, k), y, 0), d, T, 1.99
    )
    return known | inner_products({"a": gradients[-1][:, None], "c": sent}) | {"k": k}


def stuck(rng: np.random.Generator) -> Values:
    """Noise ±s on the first k entries, f of the others, where |∂_j f| = s: nothing ever moves."""
    d, p, s, L = int(rng.integers(2, 9)), int(rng.integers(1, 4)), rng.uniform(0.1, 3), 2.0
    k, alpha = int(rng.integers(1, d)), rng.uniform(0.01, 1) / L
    x = start = np.where(np.arange(d) < k, 0.0, s / L * rng.choice([-1.0, 1.0], size=d))
    for _ in range(30):
        gradient = np.where(np.arange(d) < k, 0.0, L * x)
        xi = np.where(np.arange(d) < k, s * rng.choice([-1.0, 1.0], size=(p, d)), 0.0)
        y = gradient + xi
        x = x - alpha * np.where(top(y, k), y, 0.0).mean(0)
    assert (x[k:] == start[k:]).all()
    left, gamma = y - np.where(top(y, k), y, 0.0), 1 - k / d
    assert np.allclose((left**2).sum(1), gamma * (y**2).sum(1))
    variance = (xi**2).sum(1).mean()
    assert np.isclose((gradient**2).sum(), gamma * variance / (1 - gamma))
    return {"d": d, "k": k, "s": s}


def skewed(rng: np.random.Generator) -> Values:
    g = rng.uniform(0, 0.5)
    xi = np.array(list(itertools.product([2.0, -1.0, -1.0], repeat=2)))
    assert np.allclose(xi.mean(0), 0)
    progress = -g * np.where(top(xi - g, 1), xi - g, 0.0).sum(1).mean()
    assert np.isclose(progress, -g * (2 / 3 - g)) and progress < 0
    return {"g": g}


def unfavoured(rng: np.random.Generator) -> Values:
    orders = itertools.permutations([2.0, 1.5, 1.5])
    signs = list(itertools.product([-1.0, 1.0], repeat=3))
    xi = np.array([np.array(order) * sign for order in orders for sign in signs])
    assert np.isclose(top(xi + 1e-9 * rng.normal(size=xi.shape), 2).mean(), 2 / 3)
    assert top(xi + np.array([0.0, 2.0, 0.0]), 2)[:, 1].mean() == 0.5
    return {}


def sorted_squares(rng: np.random.Generator) -> Values:
    d = int(rng.integers(1, 9))
    k = int(rng.integers(1, d + 1))
    squares = np.sort(rng.choice([rng.random(size=d), np.ones(d)]))[::-1]
    return {
        "d": d, "k": k, "Σ_top": squares[:k].sum(), "Σ_rest": squares[k:].sum(), "θ": squares[k - 1]
    }  # fmt: skip


def two_prices(rng: np.random.Generator) -> Values:
    gamma, L = rng.uniform(0, 1), rng.uniform(0.5, 2)
    alpha, sigma = rng.uniform(0, 0.5) / L, rng.uniform(0, 2)
    return {"γ": gamma, "√γ": np.sqrt(gamma), "L": L, "α": alpha, "σ": sigma}


EXAMPLES = {
    r"nofeedback(\.any.*|\.best)?": any_contraction,
    r"nofeedback\.(extreme|attained)": stuck,
    r"topk\.contraction": sorted_squares,
    r"topk(\.step|\.sum)?": symmetric,
    r"topk\.exchangeable": lambda rng: symmetric(rng, "exchangeable"),
    r"topk\.slowdown": lambda rng: symmetric(rng, "two entries"),
    r"topk\.unfavoured": unfavoured,
    r"topk\.skewed": skewed,
    r"topk\.noiseless.*": without_noise,
    r"feedback\.price": two_prices,
}
