"""Examples of stability limits: the schemes themselves, step by step, in plain numpy."""

import math
from collections import deque

import numpy as np
from evaluation import Values

STEPS = 400
CLEAR = 0.06
"""How near to a limit a short run need not show on which side it is."""


def grows(sizes: list[float]) -> bool:
    """Return whether |x| grew between the second and the last quarter of a run."""
    quarter = len(sizes) // 4
    return max(sizes[-quarter:]) > max(sizes[quarter : 2 * quarter])


def assert_stable_below(step: float, limit: float, sizes: list[float]) -> None:
    if abs(step - limit) > CLEAR * limit:
        assert grows(sizes) == (step > limit), (step, limit)


def delayed(step: float, tau: int) -> list[float]:
    """Gradient descent of x²/2 whose gradients arrive τ steps late."""
    x, held, sizes = 1.0, deque([0.0] * tau), []
    for _ in range(STEPS):
        held.append(step * x)
        x -= held.popleft()
        sizes.append(abs(x))
        if abs(x) > 1e100:
            break
    return sizes


def cyclic(
    hessian: np.ndarray, step: float, blocks: int, tau: int, steps: int = STEPS
) -> list[float]:
    """Blocks sent in turn, with error feedback; messages arrive τ steps late. Gradient sizes."""
    d = len(hessian)
    block = np.arange(d) % blocks
    v, residual = np.linspace(1, 1.5, d), np.zeros(d)
    held, sizes = deque([np.zeros(d)] * tau), []
    for t in range(steps):
        residual = residual + step * (hessian @ v)
        sent = np.where(block == t % blocks, residual, 0.0)
        residual = residual - sent
        held.append(sent)
        v = v - held.popleft()
        sizes.append(float(abs(hessian @ v).max()))
        if sizes[-1] > 1e100:
            break
    return sizes


def late(rng: np.random.Generator) -> Values:
    tau, L = int(rng.integers(0, 10)), rng.uniform(0.5, 2)
    limit = 2 * math.sin(math.pi / (4 * tau + 2))
    step = limit * rng.uniform(0.3, 1.6)
    assert_stable_below(step, limit, delayed(step, tau))
    return {"τ": tau, "L": L, "α": step / L}


def shared(rng: np.random.Generator) -> Values:
    """Curvature along (1, …, 1) only."""
    D, tau, k, L = *rng.integers([1, 0, 1], [7, 5, 3]), rng.uniform(0.5, 2)
    n = D + 2 * tau
    limit = 2 * D * math.sin(math.pi / (2 * n)) ** 2 / math.sin(math.pi * D / (2 * n))
    step, d = limit * rng.uniform(0.3, 1.6), D * k
    sizes = cyclic(np.ones((d, d)) / d, step, D, tau)
    assert_stable_below(step, limit, sizes)
    return {"τ": tau, "L": L, "α": step / L, "d": d, "k": k}


def separate(rng: np.random.Generator) -> Values:
    """Each entry has its own curvature."""
    L, k, tau = rng.uniform(0.5, 2), int(rng.integers(1, 3)), int(rng.integers(0, 4))
    D = int(rng.integers(max(1, tau), 14))
    limit = min(1 / tau if tau else math.inf, 2 / (D - 2 * tau) if D > 2 * tau else math.inf)
    step = limit * rng.uniform(0.3, 1.6)
    sizes = cyclic(np.eye(D * k), step, D, tau, 60 * D)
    assert_stable_below(step, limit, sizes)
    return {"τ": tau, "n": max(tau, 1), "L": L, "α": step / L, "d": D * k, "k": k}


def expanding(rng: np.random.Generator, feedback: bool) -> Values:
    """C(y) = (1 + √γ)y on x²/2."""
    gamma, L = rng.uniform(0.05, 0.9), rng.uniform(0.5, 2)
    r = math.sqrt(gamma)
    limit = 2 * (1 - r) / (1 + r) if feedback else 2 / (1 + r)
    step, v, residual, sizes = limit * rng.uniform(0.3, 1.6), 1.0, 0.0, []
    for _ in range(STEPS):
        y = residual + step * v
        v, residual = v - (1 + r) * y, (y - (1 + r) * y) * feedback
        sizes.append(abs(v))
        if sizes[-1] > 1e100:
            break
    assert_stable_below(step, limit, sizes)
    return {"γ": gamma, "√γ": r, "L": L, "α": step / L}


EXAMPLES = {
    r"delay\.limit": late,
    r"cyclic\.shared": shared,
    r"cyclic\.(separate|rare|late)": separate,
    r"feedback\.(limit|beyond|shortens)": lambda rng: expanding(rng, feedback=True),
    r"nofeedback\.(limit|beyond)": lambda rng: expanding(rng, feedback=False),
}
