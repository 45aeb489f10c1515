"""A schedule that looks at the noise breaks the bounds that hold for every blind one."""

import itertools

import numpy as np
import pytest

from theory.claims import oblivious

L, sigma, tau, T = 1.0, 1.0, 48, 400
alpha = 1 / (2 * L * tau)


def average_square_gradient(looks: bool) -> float:
    """Return (1/T)Σ E‖∇f(x_t)‖² for f = Lx²/2 from x_0 = 0, exactly.

    The noise is ±σ. A view misses each of the last τ updates, or not: those of noise +σ if the
    schedule looks, else as a coin says. Everything is linear, given noise and coin, in the state
    (1, x, what the views may miss of the last τ updates), so its second moments obey a recursion.
    """
    size = tau + 2
    steps = []
    for xi, coin in itertools.product((-sigma, sigma), (False, True)):
        view = np.zeros(size)
        view[1:] = [1, *[-1] * tau]
        update = -alpha * (L * view + xi * np.eye(size)[0])
        step = np.zeros((size, size))
        step[0, 0] = step[1, 1] = 1
        step[1] += update
        step[2] = update * (xi > 0 if looks else coin)
        step[3:, 2:-1] = np.eye(tau - 1)
        steps.append(step)
    moments, total = np.zeros((size, size)), 0.0
    moments[0, 0] = 1
    for _ in range(T):
        total += L**2 * moments[1, 1]
        moments = np.mean([step @ moments @ step.T for step in steps], axis=0)
    return total / T


@pytest.mark.parametrize("looks", [False, True])
def test_a_schedule_that_looks_at_the_noise_breaks_the_bound(looks: bool) -> None:
    (delay,) = (bound for bound in oblivious.bounds() if bound.name == "W.delay")
    limit = delay.at(alpha=alpha, L=L, T=T, Delta=0, sigma=sigma, tau=tau, p=1)
    measured = average_square_gradient(looks)
    print(looks, measured, limit)
    assert measured > 2 * limit if looks else measured <= limit
