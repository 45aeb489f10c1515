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
