"""Examples of what compression without feedback leaves at stale views, and feedback's price."""

import numpy as np
from evaluation import Values
from examples_compression import top
from examples_late_messages import a_run, of


def stuck(rng: np.random.Generator) -> Values:
    """Views see |∂_j f| = s where it is s + Le; noise ±s on the other entries is all that is sent.

    The bound's best ζ makes it (LαB + σ√(γ/(1 − γ)))².
    """
    d, p, s, L = int(rng.integers(2, 9)), int(rng.integers(1, 4)), rng.uniform(0.1, 3), 2.0
    k, alpha, e = int(rng.integers(1, d)), rng.uniform(0.01, 1) / L, rng.uniform(0.01, 2)
    sign, moves = rng.choice([-1.0, 1.0], size=d), np.arange(d) >= k
    x = start = np.where(moves, (s / L + e) * sign, 0.0)
    away = np.where(moves, e * sign, 0.0)
    for _ in range(30):
        seen = L * (x - away) * (1 - 1e-12)  # ties go to the noise
        y = np.where(moves, seen, s * rng.choice([-1.0, 1.0], size=(p, d)))
        x = x - alpha * np.where(top(y, k), y, 0.0).mean(0)
    assert (x[k:] == start[k:]).all()
    gradient, gamma, sigma2 = np.where(moves, L * x, 0.0), 1 - k / d, k * s**2
    elastic = L * np.linalg.norm(away)  # LαB
    both = (elastic + np.sqrt(sigma2 * gamma / (1 - gamma))) ** 2
    np.testing.assert_allclose((gradient**2).sum(), both)
    zeta = elastic * np.sqrt((1 - gamma) / (gamma * sigma2))
    floors = (1 + zeta) * gamma * sigma2 / (1 - gamma), (1 + 1 / zeta) * elastic**2
    np.testing.assert_allclose(sum(floors), both)
    return {"d": d, "k": k, "s": s, "L": L, "e_j": e}


def two_prices(rng: np.random.Generator) -> Values:
    """Any delay and step that the rate with feedback allows, up to the longest."""
    beta, n, p = rng.exponential(3), int(rng.integers(1, 10)), int(rng.integers(1, 5))
    longest = 2 / (1 + np.sqrt(1 + 8 * (n**2 + beta**2)))
    L = rng.uniform(0.5, 2)
    alpha = longest / L * rng.choice([1, rng.uniform(0.1, 1)])
    return {"β": beta, "n": n, "p": p, "L": L, "α": alpha, "σ": rng.uniform(0.1, 2)}


def enough_workers(rng: np.random.Generator) -> Values:
    """As few workers as 6% more than it takes at the longest step, for any delay; or more."""
    beta, n = rng.exponential(1.5), int(rng.integers(1, 10))
    floor, memory = beta**2 / (1 + 2 * beta), 2 * beta**2 / (1 + beta)
    delays = np.arange(1, 200)
    steps = 2 / (1 + np.sqrt(1 + 8 * (delays**2 + beta**2)))
    few = (1.5 * delays / (floor / steps**2 - memory)).max()  # (3n/(2p) + memory)α²L² = floor
    p = max(1.0, few * rng.choice([1.06, rng.uniform(1.1, 4)]))
    found = two_prices(rng) | {"β": beta, "n": n, "p": p}
    longest = 2 / (1 + np.sqrt(1 + 8 * (n**2 + beta**2)))
    return found | {"α": longest / found["L"] * rng.choice([1, rng.uniform(0.1, 1)])}


EXAMPLES = {
    r"nofeedback\.stale(\.(step|sum))?": of(a_run, late=False),
    r"nofeedback\.stale\.attained": stuck,
    r"feedback\.price\.(late|few)": two_prices,
    r"feedback\.price\.all": enough_workers,
}
