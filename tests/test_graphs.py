"""Graphs: doubly stochastic, linking all workers, and as fast as they say."""

import functools

import numpy as np
import pytest
from mixing import EVERY

from elastic_jax import graphs


@pytest.mark.parametrize("name", EVERY)
def test_graphs_are_doubly_stochastic_and_link_all(name):
    for p in range(1, 17):
        rounds = EVERY[name].matrices(p)
        assert rounds.dtype == np.float64 and rounds.shape[1:] == (p, p)
        for axis in (1, 2):
            np.testing.assert_allclose(rounds.sum(axis), 1, atol=1e-13)
        assert graphs.rho(EVERY[name], p) < 1 - 1 / (2 * p * p)


def test_graphs_by_hand():
    third, fifth = 1 / 3, 1 / 5
    ring, torus = graphs.ring().matrices(5)[0], graphs.torus(2).matrices(8)[0]
    np.testing.assert_allclose(ring[0], [third, third, 0, 0, third])
    np.testing.assert_allclose(graphs.ring().matrices(2)[0], np.full((2, 2), 0.5))
    # worker 1 of [[0 1 2 3] [4 5 6 7]]: left 0, right 2, up = down 5
    np.testing.assert_allclose(torus[1], [0.25, 0.25, 0.25, 0, 0, 0.25, 0, 0])
    np.testing.assert_allclose(torus, torus.T)
    np.testing.assert_allclose(
        graphs.torus().matrices(9)[0][4],
        fifth * np.eye(9)[4] + sum(fifth * np.eye(9)[j] for j in (1, 3, 5, 7)),
    )
    np.testing.assert_allclose(graphs.torus().matrices(7), graphs.ring().matrices(7))
    np.testing.assert_allclose(
        graphs.exponential().matrices(6)[0][5], [0.25, 0.25, 0, 0.25, 0, 0.25]
    )


@pytest.mark.parametrize("p", [1, 2, 4, 8, 16])
def test_one_peer_is_exact_after_log2_p_rounds(p):
    rounds = graphs.one_peer().matrices(p)
    assert len(rounds) == max(1, p.bit_length() - 1)
    np.testing.assert_array_equal(functools.reduce(np.matmul, rounds), np.full((p, p), 1 / p))
    assert graphs.rho(graphs.one_peer(), p) == 0
    assert all((w > 0).sum(1).max() <= 2 for w in rounds)


def test_rho_of_known_graphs():
    """Eigenvalues of circulant matrices; a ring's ρ; Chebyshev's 1/T_k(1/ρ)."""
    for p in (4, 5, 12):
        rho = graphs.rho(graphs.ring(), p)
        np.testing.assert_allclose(rho, (1 + 2 * np.cos(2 * np.pi / p)) / 3)
        for k in (1, 2, 5):
            best = 1 / np.cosh(k * np.arccosh(1 / rho))
            found = graphs.rho(graphs.fast(graphs.ring(), k), p)
            assert found <= best * (1 + 1e-9)
            assert k > 1 or found == pytest.approx(rho)
    np.testing.assert_allclose(graphs.rho(graphs.fast(graphs.ring(), 3), 4), 0, atol=0.04)
    two = graphs.graph(np.stack([graphs.ring().matrices(6)[0]] * 2))
    np.testing.assert_allclose(graphs.rho(two, 6), graphs.rho(graphs.ring(), 6))


# ---- what all rounds leave ----


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("p", [1, 2, 3, 5, 8])
def test_total_bounds_the_drift(name, p):
    """Of updates of root mean square 1, random ones and such as lie along a mode of one round."""
    total, rounds = graphs.total(EVERY[name], p), EVERY[name].matrices(p) - 1 / p
    worst, rng = 0.0, np.random.default_rng(p)
    values, modes = np.linalg.eigh((rounds[0] + rounds[0].T) / 2)
    slowest = abs(values).argmax()
    along, turns = modes[:, slowest, None], np.sign(values[slowest]) or 1.0
    for drawn in (lambda t: rng.normal(size=(p, 2)), lambda t: along * turns**t):
        apart = np.zeros((p, 1))
        for t in range(200):
            update = drawn(t)
            apart = rounds[t % len(rounds)] @ (apart + update / np.sqrt((update**2).sum() / p))
            worst = max(worst, np.sqrt((apart**2).sum() / p))
    assert worst <= total + 1e-9
    if len(rounds) == 1 and np.allclose(rounds[0], rounds[0].T):
        rho = graphs.rho(EVERY[name], p)
        assert total == pytest.approx(rho / (1 - rho), abs=1e-12)
        assert worst >= 0.99 * total


def test_total_is_the_sum_by_definition():
    """Of three rounds that do not commute."""
    rng, p, R = np.random.default_rng(4), 5, 3
    rounds = [
        sum(w * np.eye(p)[rng.permutation(p)] for w in rng.dirichlet(np.ones(2))) for _ in range(R)
    ]
    total = 0.0
    for k in range(1, 400):
        sizes = []
        for t in range(R):
            product = np.eye(p)
            for back in range(k):
                product = product @ (rounds[(t - back) % R] - 1 / p)
            sizes.append(np.linalg.norm(product, 2))
        total += max(sizes)
        if max(sizes) < 1e-9:
            break
    found = graphs.total(graphs.graph(rounds), p)
    assert total - 1e-9 <= found <= 1.01 * total


def test_total_of_one_peer_and_of_a_chain_of_workers():
    """Exact after log2 p rounds; every one before may leave all of some spread."""
    assert [round(graphs.total(graphs.one_peer(), 2**n), 9) for n in range(5)] == [0, 0, 1, 2, 3]
    barely = graphs.graph([[1 - 1e-6, 1e-6], [1e-6, 1 - 1e-6]])
    with pytest.raises(ValueError, match=r"too far apart: 0\.98 of a spread is left"):
        graphs.total(barely, 2)
