"""Graphs of workers that mix with their neighbours, as data: doubly stochastic matrices.

Worker i mixes by row i, `v_i <- Σ_j W_ij v_j`. Rows that sum to one leave alike views alike;
columns that sum to one leave their mean where it is. What a graph is worth is how much one mixing
shrinks the views' spread around their mean, `ρ = ‖W − J‖`, with `J = 1/p` everywhere (see `rho`).
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.checks import whole


class Graph(NamedTuple):
    """Who mixes with whom, and by how much: a value for `gossip.mix`, `choco` and `tracking`.

    Attributes:
        name: what it is, with its settings.
        matrices: `p -> W`, float64 [rounds, p, p]: step t mixes by `W[t mod rounds]`. The number
            of workers is known where the program is traced, and no sooner.
        varies: whether there may be several rounds.
    """

    name: str
    matrices: Callable[[int], np.ndarray]
    varies: bool = False


def ring() -> Graph:
    """Each worker and its two neighbours, a third each (with p = 2: one neighbour, a half).

    ρ = (1 + 2 cos(2π/p))/3 from p = 4 on: 1 − ρ falls like p⁻².

    Example:
        >>> ring().matrices(4)[0][0].round(2).tolist(), round(rho(ring(), 4), 3)
        ([0.33, 0.33, 0.0, 0.33], 0.333)
    """
    return _circulant("ring()", lambda p: (1, -1))


def torus(rows: int | None = None) -> Graph:
    """A grid that closes on itself: each worker and its neighbours up, down, left and right, alike.

    Worker i stands in row `i // cols` and column `i % cols`. 1 − ρ falls like 1/p where the torus
    is square.

    Args:
        rows: of p = rows · cols; None for the most square torus that p allows (a ring, where p is
            prime).

    Raises:
        ValueError: for rows that are no int >= 1, or, when the program is traced, do not divide p.
    """
    if rows is not None:
        rows = whole("rows", rows, "number of rows")

    def matrices(p):
        height = rows
        if height is None:
            height = max(n for n in range(1, math.isqrt(p) + 1) if p % n == 0)
        if p % height:
            raise ValueError(
                f"rows={height} does not divide the p={p} workers; pass a divisor, or None for the "
                "most square torus"
            )
        place = np.arange(p).reshape(height, p // height)
        linked = np.eye(p, dtype=bool)
        for axis in (0, 1):
            for by in (1, -1):
                linked[place, np.roll(place, by, axis)] = True
        return _alike(linked)

    return Graph(f"torus({'' if rows is None else rows})", matrices)


def exponential() -> Graph:
    """Each worker gets from those 1, 2, 4, … places on, alike: few links, and a small spread.

    1 − ρ falls like 1/log p. Not symmetric: a worker does not send to those from whom it gets.

    Reference:
        Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for decentralized
        deep training", 2021.
    """
    return _circulant("exponential()", lambda p: tuple(2**k for k in range(_rounds_of(p))))


def one_peer() -> Graph:
    """Round r: each worker averages with the one 2^r places on; then the rounds start again.

    One message a step. For p a power of two the average is exact after log2 p rounds.

    Example:
        >>> W = one_peer().matrices(4)
        >>> W[0][0].tolist(), (W[1] @ W[0])[0].tolist()
        ([0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25])

    Reference:
        As `exponential`.
    """

    def matrices(p):
        rounds = max(1, _rounds_of(p))
        return np.concatenate([_alike(_linked(p, (2**r,))) for r in range(rounds)])

    return Graph("one_peer()", matrices, varies=True)


def complete() -> Graph:
    """All workers, alike: every mixing averages all views (W = J, ρ = 0)."""
    return Graph("complete()", lambda p: np.full((1, p, p), 1 / p))


def graph(matrix: Any) -> Graph:
    """A graph of your own, for one number of workers.

    Entries may be negative: what counts is that the mean stays and the spread shrinks. Sums may be
    wrong by rounding (up to 1e-6): by that part of the views' spread the global iterate moves then.

    Args:
        matrix: W [p, p], or [rounds, p, p] for a graph that varies. Row i is what worker i does.

    Returns:
        A `Graph`; where there are not p workers, tracing the program raises a `ValueError`.

    Raises:
        ValueError: if it is not square or finite; if a row or a column does not sum to one; if the
            rounds together leave workers apart, whose views would never meet.

    Example:
        >>> graph([[0.75, 0.25], [0.25, 0.75]]).name
        'graph([1, 2, 2])'
        >>> graph([[0.5, 0.5], [0.25, 0.75]])
        Traceback (most recent call last):
        ...
        ValueError: matrix[0] is not doubly stochastic: row sums [1. 1.], column sums [0.75 1.25];
        ...
    """
    try:
        rounds = np.array(matrix, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"matrix={matrix!r} is no matrix; pass W [p, p] of numbers") from error
    rounds = rounds[None] if rounds.ndim == 2 else rounds
    _check("matrix", rounds)
    p = rounds.shape[-1]
    radius = np.max(np.abs(np.linalg.eigvals(_together(rounds))))
    if radius > 1 - 1e-9:
        raise ValueError(
            f"matrix leaves workers apart: all rounds together keep {radius:.6g} of some spread of "
            "the views; link all workers, and give each row some weight on the diagonal"
        )

    def matrices(workers):
        if workers != p:
            raise ValueError(f"matrix is for {p} workers, but there are {workers}; pass theirs")
        return rounds.copy()

    return Graph(f"graph({list(rounds.shape)})", matrices, varies=len(rounds) > 1)


def fast(graph: Graph, rounds: int) -> Graph:
    """Accelerated gossip: the best polynomial of W of a degree, in place of W to that power.

    `P_k(W) = T_k(W/ρ)/T_k(1/ρ)`, T_k Chebyshev's polynomial, ρ = ‖W − J‖. `P_k(1) = 1`, so rows and
    columns still sum to one (some entries are negative), and ‖P_k(W) − J‖ <= 1/T_k(1/ρ): to shrink
    the spread by a given factor takes some 1/√(1 − ρ) rounds, and not 1/(1 − ρ).

    It is a graph of its own, mixed at once: a worker gets from all who are up to k links away. On a
    ring that takes as many bytes as k rounds, on other graphs it may take more.

    Args:
        graph: one that does not vary, and is symmetric.
        rounds: k, an int >= 1.

    Returns:
        A `Graph`. Where W is not symmetric, tracing the program raises a `ValueError`.

    Raises:
        TypeError: for what is no `Graph`.
        ValueError: for a graph that varies, or rounds that are no int >= 1.

    Example:
        >>> f"{rho(ring(), 16) ** 4:.3f} {rho(fast(ring(), 4), 16):.3f}"
        '0.812 0.506'

    Reference:
        Liu, Morse, "Accelerated linear iterations for distributed averaging", 2011; for DeTAG: Lu,
        De Sa, "Optimal complexity in decentralized training", 2021.
    """
    check_graph(graph)
    k = whole("rounds", rounds, "number of rounds")
    if graph.varies:
        raise ValueError(f"graph={graph.name} varies: it has no polynomials; pass a static graph")

    def matrices(p):
        (w,) = matrices_of(graph, p)
        spread = float(np.linalg.norm(w - 1 / p, 2))
        if not np.allclose(w, w.T, rtol=0, atol=1e-9):
            raise ValueError(
                f"graph={graph.name} is not symmetric for p={p}: Chebyshev's polynomials may make "
                "its spread grow; pass a symmetric graph, as ring(), torus() or complete()"
            )
        before, now, ratio = np.eye(p), w, spread  # ratio = T_{k-1}(1/ρ)/T_k(1/ρ)
        for _ in range(k - 1):
            rest = spread * ratio
            before, now = now, (2 * w @ now - rest * before) / (2 - rest)
            ratio = spread / (2 - rest)
        return now[None]

    return Graph(f"fast({graph.name}, {k})", matrices)


# ---- what a graph is worth ----


def rho(graph: Graph, p: int) -> float:
    """Returns `ρ = ‖W − J‖` (spectral norm): to what part one mixing shrinks the views' spread.

    With several rounds it is a step's share of what all of them do: `‖W_R ⋯ W_1 − J‖^(1/R)`, a
    geometric mean. Single rounds may leave a spread as it is, so `B <= Mρ/(1 − ρ)` is for a graph
    with one round; see `total`.

    Args:
        graph: a `Graph`.
        p: the number of workers, an int >= 1.

    Example:
        >>> [round(rho(g(), 16), 3) for g in (ring, torus, exponential, one_peer, complete)]
        [0.949, 0.6, 0.6, 0.0, 0.0]
    """
    check_graph(graph)
    rounds = matrices_of(graph, whole("p", p, "number of workers"))
    size = float(np.linalg.norm(_together(rounds), 2))
    return size ** (1 / len(rounds)) if size > 1e-12 else 0.0


def total(graph: Graph, p: int) -> float:
    """Returns `Σ_k s_k`, `s_k = max_t ‖(W_t − J)⋯(W_{t−k+1} − J)‖`: B/M of `gossip.mix`.

    What k rounds leave of an update's spread, summed over all k ≥ 1; an upper bound of the elastic
    constant, root mean square over workers, for graphs that vary too. One round with a symmetric W
    has s_k = ρ^k, and it is ρ/(1 − ρ).

    Args:
        graph: a `Graph`.
        p: the number of workers, an int >= 1.

    Example:
        >>> [round(total(g(), 8), 3) for g in (ring, torus, exponential, one_peer, complete)]
        [4.121, 1.0, 1.0, 2.0, 0.0]
    """
    check_graph(graph)
    rounds = matrices_of(graph, whole("p", p, "number of workers")) - 1 / p
    products, found = np.eye(p)[None], 0.0
    for k in range(10_000):
        # products[t] takes what was there k rounds ago to where it is after round t
        products = products @ np.roll(rounds, k, axis=0)
        size = float(np.linalg.norm(products, 2, axis=(1, 2)).max())
        found += size
        if size < 1e-3:
            return found / (1 - size)  # s_{j+k} ≤ s_j s_k
    raise ValueError(
        f"graph={graph.name} leaves p={p} workers too far apart: {size:.3g} of a spread is left "
        "after 10000 rounds; link them more closely"
    )


def check_graph(graph: Any) -> None:
    """Refuses what is no graph."""
    if not isinstance(graph, Graph):
        raise TypeError(f"graph={graph!r} is no Graph; pass one, for example graphs.ring()")


def matrices_of(graph: Graph, p: int) -> np.ndarray:
    """Returns a graph's matrices for p workers, float64 [rounds, p, p], checked."""
    rounds = np.asarray(graph.matrices(operator.index(p)), np.float64)
    if rounds.shape[1:] != (p, p):
        raise ValueError(
            f"graph={graph.name} has matrices of shape {rounds.shape} for p={p} workers; make them "
            f"[rounds, {p}, {p}]"
        )
    _check(f"graph={graph.name}, W", rounds)
    return rounds


def _check(name: str, rounds: np.ndarray) -> None:
    shape = rounds.shape
    if rounds.ndim != 3 or shape[1] != shape[2] or 0 in shape or not np.isfinite(rounds).all():
        raise ValueError(
            f"{name} has shape {shape} (finite: {bool(np.isfinite(rounds).all())}); pass finite "
            "numbers, [p, p] or [rounds, p, p]"
        )
    for r, w in enumerate(rounds):
        rows, columns = w.sum(1), w.sum(0)
        if max(np.abs(rows - 1).max(), np.abs(columns - 1).max()) > 1e-6:
            raise ValueError(
                f"{name}[{r}] is not doubly stochastic: row sums {rows.round(6)}, column sums "
                f"{columns.round(6)}; make all of them 1 (to 1e-6), or mass would be lost"
            )


def _together(rounds: np.ndarray) -> np.ndarray:
    """The product of all rounds, the first applied first, less J."""
    product = rounds[0]
    for w in rounds[1:]:
        product = w @ product
    return product - 1 / len(product)


def _rounds_of(p: int) -> int:
    return (p - 1).bit_length()  # the least r with 2^r >= p


def _linked(p: int, offsets: tuple[int, ...]) -> np.ndarray:
    """Which workers a worker gets from [p, p]: itself, and those at the offsets."""
    linked, workers = np.eye(p, dtype=bool), np.arange(p)
    for offset in offsets:
        linked[workers, (workers + offset) % p] = True
    return linked


def _alike(linked: np.ndarray) -> np.ndarray:
    """Equal weights [1, p, p]; all workers have equally many links."""
    return (linked / linked.sum(1, keepdims=True))[None]


def _circulant(name: str, offsets: Callable[[int], tuple[int, ...]]) -> Graph:
    return Graph(name, lambda p: _alike(_linked(p, offsets(p))))
