"""Gossip: workers that mix their views with their neighbours', in place of averaging updates.

All of these take the place of the exchange and stand last in a chain. W is the graph's matrix
(see `elastic_jax.graphs`), u_i what the chain proposes to worker i. They return what takes a view
to its new value. W is doubly stochastic, so the mean of the views moves by `mean_i u_i` exactly: no
mass is held (h = 0, x = mean v), but for what parameters narrower than float32 cannot express.

Each says how many messages a step takes, and how large they are. How they cross the wire depends
on n, the number of offsets o ≠ 0 for which some W[i, i + o mod p] is not zero: the neighbours of a
worker in a ring (2), in `exponential` (log2 p) or in a round of `one_peer` (1).

    shift    where n <= max(2, (p − 1)/2): n messages from and to each worker (ppermute)
    mean     where W = J: one all-reduce in float32 or wider (of payloads: as `error_feedback`)
    gather   otherwise: every worker gets all p messages, and mixes by its row of W

Where a device simulates several workers, shift moves whole blocks of them.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from elastic_jax.checks import check_seed, number, whole
from elastic_jax.exchange import AxisName, axis_names
from elastic_jax.graphs import Graph, check_graph, matrices_of
from elastic_jax.neighbours import pull, pull_compressed, workers_on
from elastic_jax.order import relaxation
from elastic_jax.precision import add, narrow, narrow_as, plus, wide, zeros
from elastic_jax.types import Compressor
from elastic_jax.views import is_narrow, need, no_remainder, only_narrow, settle, with_remainder
from elastic_jax.wire import Sender, new_sender

# ---- mixing ----


class MixState(NamedTuple):
    """State of `mix`."""

    round: Any  # int32 [], the graph's round that is next; () where it has only one
    remainder: Any  # tree [params], float32, of narrow leaves; MaskedNode for the others

    role = "mix"

    def held(self) -> Any:
        """Returns what rounding has kept out of narrow parameters so far."""
        return self.remainder


def mix(axis_name: AxisName, graph: Graph) -> optax.GradientTransformationExtraArgs:
    """Mixes views with neighbours' after the local step: decentralized SGD.

        v_i⁺ = Σ_j W_ij (v_j + u_j)

    x = mean v, and for a graph with one round the elastic constant is `B = Mρ/(1 − ρ)` (root mean
    square over workers), `ρ = graphs.rho(graph, p)`. Of a graph that varies, step t takes round
    t mod rounds, and `B <= M·graphs.total(graph, p)`. `complete()` averages all views at each step.

    On the wire: one message of d numbers each way for each neighbour, in the parameters' dtype.
    What a narrow dtype cannot express stays held, at most half a unit in the last place of v.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        graph: who mixes with whom, for example `graphs.ring()`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; use it last, where that axis is bound. Its
        update needs `params`.

    Raises:
        TypeError: for what is no `Graph`.
        ValueError: for an axis name that is none.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from elastic_jax import graphs
        >>> opt = optax.chain(optax.sgd(1.0), mix("workers", graphs.ring()))
        >>> def step(view, gradient):
        ...     update, _ = opt.update(gradient, opt.init(view), view)
        ...     return view + update
        >>> run = jax.vmap(step, axis_name="workers")
        >>> print(run(jnp.zeros(4), jnp.array([-3.0, 0.0, 0.0, 0.0])))
        [1. 1. 0. 1.]

    Reference:
        Lian et al., "Can decentralized algorithms outperform centralized algorithms?", 2017.
    """
    names = _check("mix", axis_name, graph)

    def init(params):
        return MixState(_first_round(graph), no_remainder(params))

    def update(updates, state, params=None, **extra):
        need(params, "mix")
        move = with_remainder(jax.tree.map(wide, updates), state.remainder)
        pulled, next_round = pull(_arrived(params, move), names, graph, state.round)
        out, rest = settle(params, plus(move, pulled))
        return out, MixState(next_round, only_narrow(params, rest))

    return relaxation(init, update, names)


# ---- compressed ----


class ChocoState(NamedTuple):
    """State of `choco`. Neither residual nor pull is held mass: the views have it already."""

    residual: Any  # tree [params], v_i + h_i − x̂_i, what the worker has not said yet
    pull: Any  # tree [params], Σ_j W_ij (x̂_j − x̂_i), counted from the common start
    remainder: Any  # as in MixState
    sender: Sender

    role = "mix"

    def held(self) -> Any:
        """Returns what rounding has kept out of narrow parameters so far."""
        return self.remainder


def choco(
    axis_name: AxisName,
    graph: Graph,
    compressor: Compressor,
    step: chex.Numeric | None = None,
    *,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Mixes views through public copies that compressed messages keep up to date: CHOCO-SGD.

        q_i = C(v_i + u_i − x̂_i)                         the message
        x̂_i⁺ = x̂_i + q_i                                 public, as all neighbours know it
        v_i⁺ = v_i + u_i + γ Σ_j W_ij (x̂_j⁺ − x̂_i⁺)

    A worker keeps `v_i − x̂_i` and the sum over its neighbours, two trees whatever their number;
    public copies start as the common first view. x = mean v for any step size γ; but the views stay
    together only if it is small enough, and the nearer to each other the larger it is. With C the
    identity and γ = 1 it is `mix`. `stable_step` is surely small enough (law 2 holds): it is made
    for the worst compressor with that gamma. On a ring of 8, `top_k`, `sign` and `random_k` stood
    `γ = 1 − gamma`, five times as much, and gaps were two to five times smaller; at twice that
    again `random_k` exploded. Mind the gap.

    On the wire: one payload for each neighbour, `compressor.nbytes(params)`, where it is smaller
    than the message that it stands for. Under `jax.vmap` there is no wire, and it is not encoded.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        graph: who mixes with whom; it must not vary, since a neighbour's sum over its neighbours'
            copies is kept up to date by their messages alone.
        compressor: C, a contraction (`gamma` < 1).
        step: γ, in (0, 1]; may be traced. None takes `stable_step`, when the program is traced.
        seed: of a compressor that draws; see `fold_in_worker`.

    Returns:
        As `mix`.

    Raises:
        TypeError: for what is no `Graph` or no `Compressor`.
        ValueError: for a graph that varies, a step out of range; when the program is traced, for
            step=None with a compressor that promises no contraction, or a directed graph.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> from elastic_jax import graphs
        >>> mixing = choco("w", graphs.ring(), ej.top_k(1), step=0.5)
        >>> step = ej.worker_step(
        ...     lambda x, b: jnp.sum(x * b), optax.chain(optax.sgd(1.0), mixing), "w"
        ... )
        >>> run = ej.simulate(step, workers=2)
        >>> states, _ = run.step(run.init(jnp.zeros(2)), jnp.array([[-4.0, -1.0], [0.0, 0.0]]))
        >>> print(states.params.tolist())
        [[3.0, 1.0], [1.0, 0.0]]

    Reference:
        Koloskova, Stich, Jaggi, "Decentralized stochastic optimization and gossip algorithms with
        compressed communication", 2019.
    """
    names = _check("choco", axis_name, graph)
    if not isinstance(compressor, Compressor):
        raise TypeError(f"compressor={compressor!r} is no Compressor; pass one, as top_k(0.01)")
    if step is not None:
        advice = "a number in (0, 1], or None for stable_step"
        number("step", step, lambda pace: 0 < pace <= 1, advice)
    if graph.varies:
        raise ValueError(
            f"graph={graph.name} varies: public copies need every message of their worker; pass a "
            "graph with one round, as graphs.ring() or graphs.exponential()"
        )
    check_seed(seed)

    def init(params):
        sender = new_sender(compressor, seed, params)
        return ChocoState(zeros(params), zeros(params), no_remainder(params), sender)

    def update(updates, state, params=None, **extra):
        need(params, "choco")
        (matrix,) = matrices_of(graph, workers_on(names))
        pace = step
        if pace is None:
            pace = stable_step(graph, len(matrix), compressor.gamma(params))
        y = plus(state.residual, updates)
        said = narrow_as(y, params)
        message, change, sender = pull_compressed(said, names, matrix, compressor, state.sender)
        pull = plus(state.pull, change)
        toward = jax.tree.map(lambda s: jnp.asarray(pace).astype(s.dtype) * s, pull)
        move = with_remainder(plus(updates, toward), state.remainder)
        out, rest = settle(params, move)
        remainder = only_narrow(params, rest)
        # where the rest is not held, the view has not moved by it: residuals are about true views
        residual = jax.tree.map(
            lambda y, m, t, r, v: add(add(y, -wide(m)), t - (0 if is_narrow(v) else r)),
            y,
            message,
            toward,
            rest,
            params,
        )
        return out, ChocoState(residual, pull, remainder, sender)

    return relaxation(init, update, names)


def stable_step(graph: Graph, p: int, gamma: float) -> float:
    """Returns a step size γ for `choco` with which views stay together, whatever is compressed.

    With `c = √gamma` and `β = ‖I − W‖`, `γ < (2/β) (1 − c)/(1 + c)` will do; this is half of it, at
    most 1. No larger γ will do for all compressors with that gamma: with `C(y) = (1 + c) y` views
    explode from there on.

    By small gain: along an eigenvector of W with eigenvalue 1 − μ, let `a = γμ`. What messages have
    left unsaid comes back in later residuals through

        G(z) = ((1 + a) z − 1) / (z (z − 1 + a)),    max |G| on |z| = 1 is (2 + a)/(2 − a)

    and C leaves at most c of a residual unsaid, so the loop is stable where c (2 + a)/(2 − a) < 1.

    Args:
        graph: with one round, and symmetric.
        p: the number of workers.
        gamma: the compressor's contraction, `compressor.gamma(params)`, in [0, 1).

    Raises:
        TypeError: for what is no `Graph`.
        ValueError: for a graph that varies or is not symmetric, or a gamma outside [0, 1): such a
            compressor promises nothing.

    Example:
        >>> from elastic_jax import graphs
        >>> [round(stable_step(graphs.ring(), 8, gamma), 4) for gamma in (0.0, 0.5, 0.9)]
        [0.75, 0.1287, 0.0198]
    """
    check_graph(graph)
    if graph.varies:
        raise ValueError(f"graph={graph.name} varies; pass a graph with one round")
    if not 0 <= gamma < 1:
        raise ValueError(
            f"gamma={gamma} is no contraction: the compressor does not promise that views meet; "
            "take one with gamma < 1, or choose step yourself, and mind the gap"
        )
    (matrix,) = matrices_of(graph, whole("p", p, "number of workers"))
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-9):
        raise ValueError(
            f"graph={graph.name} is not symmetric for p={p}: no safe step is known; choose step "
            "yourself, and mind the gap"
        )
    size = float(np.linalg.norm(np.eye(p) - matrix, 2))  # β; 0 for one worker
    root = math.sqrt(gamma)
    return min(1.0, (1 - root) / (1 + root) / size) if size else 1.0


# ---- tracking ----


class TrackingState(NamedTuple):
    """State of `tracking`. The corrections are no held mass: their mean is zero."""

    correction: Any  # tree [params], y_i − u_i at the next step
    round: Any  # as in MixState
    remainder: Any  # as in MixState

    role = "mix"

    def held(self) -> Any:
        """Returns what rounding has kept out of narrow parameters so far."""
        return self.remainder


def tracking(axis_name: AxisName, graph: Graph) -> optax.GradientTransformationExtraArgs:
    """Mixes views, and lets each worker follow an estimate of the mean update: gradient tracking.

        y_i = Σ_j W_ij y_j(t−1) + u_i − u_i(t−1)        v_i⁺ = Σ_j W_ij (v_j + y_j)

    `mean y = mean u` at each step (it starts from zeros), so x = mean v moves by mean u. Where the
    workers' losses differ, y forgets how: with exact gradients and a constant step size all views
    end at the minimum of the mean loss, which those of `mix` miss by O(α).

    It keeps `c = y − u`, by `c⁺ = c + (W − I)y`. For updates of size αM and a graph with one round
    the views' spread is at most αB, `B = M ρ/(1 − ρ) · (1 + ‖I − W‖/(1 − ρ))`. With
    `graphs.fast(graph, k)` it is DeTAG, k rounds of accelerated gossip a step.

    On the wire: two messages of d numbers each way for each neighbour, in the parameters' dtype.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        graph: who mixes with whom.

    Returns:
        As `mix`.

    Raises:
        TypeError: for what is no `Graph`.
        ValueError: for an axis name that is none.

    Reference:
        Pu, Nedić, "Distributed stochastic gradient tracking methods", 2020; Lu, De Sa, "Optimal
        complexity in decentralized training", 2021.
    """
    names = _check("tracking", axis_name, graph)

    def init(params):
        return TrackingState(zeros(params), _first_round(graph), no_remainder(params))

    def update(updates, state, params=None, **extra):
        need(params, "tracking")
        y = plus(state.correction, updates)
        move = with_remainder(y, state.remainder)
        messages = (narrow_as(y, params), _arrived(params, move))
        (change, pulled), next_round = pull(messages, names, graph, state.round)
        out, rest = settle(params, plus(move, pulled))
        return out, TrackingState(
            plus(state.correction, change), next_round, only_narrow(params, rest)
        )

    return relaxation(init, update, names)


# ---- what all of them do ----


def _check(name: str, axis_name: Any, graph: Any) -> tuple[str, ...]:
    check_graph(graph)
    return axis_names(axis_name)


def _first_round(graph: Graph) -> Any:
    return jnp.zeros((), jnp.int32) if graph.varies else ()


def _arrived(params: Any, move: Any) -> Any:
    """Where the local step takes the views, in their own dtypes: the message."""
    return jax.tree.map(lambda v, m: narrow(add(wide(v), m), v.dtype), params, move)
