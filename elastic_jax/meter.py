"""The meter: how far each worker's view has drifted, measured while it trains."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import whole
from elastic_jax.exchange import AxisName, axis_names, varying
from elastic_jax.mass import elastic_gap, lost, tree_total
from elastic_jax.order import (
    changed_after,
    check_crossing,
    proposals,
    record_passages,
    relaxed_states,
)
from elastic_jax.precision import squared_norm
from elastic_jax.shards import over_shards


class Running(NamedTuple):
    """A quantity over the samples taken so far; float32 scalars or trees of them.

    Attributes:
        mean: over the samples; of B̂ and M̂ it is the root mean square.
        max: the largest.
        last: the newest; NaN before the first.
    """

    mean: Any
    max: Any
    last: Any


class MeterState(NamedTuple):
    """State of `meter`; read its fields at any time.

    Attributes:
        inner: of the chain within, whose own fields are read there.
        gap: `||x - v||²`.
        elastic_constant: B̂ = √gap / ᾱ.
        second_moment: M̂ = ||u|| / alpha. B for `.mean` asks for `E||G̃||² <= M²` at every step, so
            the root mean square over a whole run, `.mean`, may be too small an M, and `.max` is
            always large enough.
        lost_mass: `||lost mass||²`.
        alarm: whether B̂ exceeded the alarm at some sample.
    """

    inner: optax.OptState
    step: chex.Array  # int32 [], updates so far
    samples: chex.Array  # int32 []
    proposals: chex.Array  # int32 [], samples with alpha > 0: those of M̂
    largest: chex.Array  # float32 [], the largest alpha so far
    gap: Running  # ||x - v||², a scalar, or with per_leaf a tree
    elastic_constant: Running  # B̂ = sqrt(gap)/ᾱ; its mean is the root mean square
    second_moment: Running  # M̂ = ||u||/alpha; its mean is the root mean square
    lost_mass: Running  # ||lost mass||²
    alarm: chex.Array  # bool [], B̂ exceeded the alarm at some sample

    role = "meter"


_NO_GAP = (
    "inner changes updates after a relaxation, or hides a relaxation in a conditional wrapper or a "
    "jitted update: what is held is no distance between parameters, so there is no gap to measure; "
    "put relaxations after the base optimizer and its learning rate, outside such wrappers, and "
    "leave out what does nothing (optax.identity)"
)


def meter(
    inner: optax.GradientTransformation,
    learning_rate: chex.Numeric | Callable[[chex.Array], chex.Numeric],
    axis_name: AxisName | None = None,
    *,
    every: int = 16,
    memory: int | None = None,
    per_leaf: bool = False,
    alarm: chex.Numeric | None = None,
    specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Measures the elastic gap of a chain at every n-th step; the updates pass unchanged.

    At a sampled step, with the view v at which the gradient was taken, the held mass before the
    step and the base optimizer's proposal u:

        gap = ||x - v||²     B̂ = √gap / ᾱ     M̂ = ||u|| / alpha     lost = ||lost mass||²

    Elastic consistency is `E gap <= alpha² B²` for a constant alpha, which is then ᾱ. A schedule
    moves on while mass that was proposed under a larger alpha is still held: ᾱ is the largest
    alpha so far, or of the last `memory` steps and the present one. With `every=1` this keeps
    `B̂.max <= B(M̂.max)` whatever the schedule, if nothing is held for longer than `memory` steps. A
    shorter memory never hides drift: it can only make B̂ larger. Without one, B̂ late in a decay is
    in units of the peak. Where alpha is 0 the gap is still measured, and M̂ is not.

    Args:
        inner: the whole chain of one worker: base optimizer, relaxations, exchange.
        learning_rate: alpha, a number or an optax schedule of the step.
        axis_name: the workers' axis, for the global iterate; None for one worker.
        every: take a sample at steps 0, n, 2n, …
        memory: for a schedule, for how many steps what is held may have been held, an int >= 0:
            τ for `delay(τ)`, 0 to divide by the present alpha. None takes all steps so far.
        per_leaf: keep the gap for each leaf; B̂ stays that of the whole tree.
        alarm: B̂ above this sets the flag `alarm` in the state, for good; None never does.
        specs: as in `elastic_gap`: the parameters' `PartitionSpec`s, only inside a `shard_map` of
            your own in which arrays are shards.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `MeterState`; its update needs `params`.

    Raises:
        ValueError: for `every` below 1, or a negative `memory`; from `init`, or at the first
            update, where something that is no relaxation stands behind one, or a relaxation in a
            conditional wrapper: what it holds then is no distance of parameters that the meter
            could call a gap.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = ej.meter(optax.chain(optax.sgd(0.1), ej.delay(3)), 0.1, every=1)
        >>> view = jnp.zeros(4)
        >>> state = opt.init(view)
        >>> for _ in range(8):
        ...     update, state = opt.update(jnp.ones(4), state, view)
        ...     view = optax.apply_updates(view, update)
        >>> print(state.second_moment.max, state.elastic_constant.max)  # B̂ = τ M̂
        2.0 6.0
    """
    every = whole("every", every, "number of steps")
    if memory is not None:
        memory = whole("memory", memory, "number of steps", least=0)
    for name, value in (("learning_rate", learning_rate), ("alarm", alarm)):
        optional = callable(value) if name == "learning_rate" else value is None
        if not optional and not isinstance(value, jax.Array):
            if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
                raise ValueError(f"{name}={value!r} is out of range; pass a finite number > 0")
    names = () if axis_name is None else axis_names(axis_name)
    inner = optax.with_extra_args_support(inner)
    schedule = learning_rate if callable(learning_rate) else lambda step: learning_rate

    def init(params):
        zero = Running(jnp.float32(0), jnp.float32(0), jnp.float32(jnp.nan))
        gap = zero
        if per_leaf:
            gap = Running(*(jax.tree.map(lambda _, value=value: value, params) for value in zero))
        none = jnp.zeros((), jnp.int32)
        check_crossing("the meter measures", names)
        state = inner.init(params)
        roles = {getattr(part.state, "role", "") for part in relaxed_states(state)}
        if axis_name is None and roles & {"exchange", "mix"}:
            raise ValueError(
                "axis_name=None but inner exchanges between workers: without them there is no "
                "global iterate; pass the exchange's axis_name to the meter too"
            )
        if changed_after(state) is not None:
            raise ValueError(_NO_GAP)
        # buffers of their own, so that the state can be donated
        own = (none, none, none, jnp.float32(0), gap, zero, zero, zero, jnp.zeros((), bool))
        return MeterState(state, *jax.tree.map(jnp.copy, own))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("params is None: the meter needs the view; pass params to update")
        check_crossing("the meter measures", names)
        step = state.step
        for name in names:
            step = jax.lax.pmax(step, name)  # all alike; says so to vmap, so that cond can skip
        alpha = jnp.asarray(schedule(step), jnp.float32)
        largest = jnp.maximum(state.largest, alpha)
        due = step % every == 0
        proposes = due & (alpha > 0)

        def own(tree):  # each worker's, whichever branch is taken
            return tree if axis_name is None else varying(tree, axis_name)

        running = own((state.gap, state.elastic_constant, state.lost_mass))

        def divisor():
            if memory is None or not callable(learning_rate):
                return largest
            steps = jnp.maximum(step - jnp.arange(memory + 1), 0)
            return jnp.max(jax.vmap(lambda s: jnp.asarray(schedule(s), jnp.float32))(steps))

        def sample(running):
            gap = elastic_gap(params, state.inner, axis_name, per_leaf=True, specs=specs)
            missing = _square(lost(state.inner, params), specs)
            whole = tree_total(gap)
            square = jnp.square(divisor()).astype(whole.dtype)
            # 0/0: nothing has been proposed yet, and nothing is held
            constant = whole / jnp.where((whole == 0) & (square == 0), 1, square)
            values = (gap if per_leaf else whole, constant, missing)
            columns = zip(running, values, (False, True, False), strict=True)
            count = (state.samples + 1).astype(jnp.float32)
            return own(tuple(_include(old, value, count, root) for old, value, root in columns))

        gap, constant, missing = jax.lax.cond(due, sample, lambda running: running, running)
        # B̂ is never negative, but XLA does not know: that ties the updates to the sample, so that
        # the inner state is read before it is overwritten, and need not be copied at every step
        never = constant.last < 0
        updates = jax.tree.map(lambda u: jnp.where(never, jnp.zeros_like(u), u), updates)
        with record_passages() as passages:
            new_updates, new_inner = inner.update(updates, state.inner, params, **extra)
        leaves = zip(jax.tree.leaves(updates), jax.tree.leaves(new_updates), strict=True)
        if all(old is new for old, new in leaves):
            raise ValueError(
                "inner does nothing to the updates, so there is nothing to measure; wrap the whole "
                "chain: meter(chain(base, relaxations, exchange), learning_rate)"
            )
        proposed = proposals(passages, new_updates)
        if proposed is None or (not passages and any(True for _ in relaxed_states(state.inner))):
            raise ValueError(_NO_GAP)

        def sample_moment(old):
            moment = _square(proposed, specs)
            count = (state.proposals + 1).astype(jnp.float32)
            return own(_include(old, moment / (alpha**2).astype(moment.dtype), count, True))

        moment = jax.lax.cond(proposes, sample_moment, lambda old: old, own(state.second_moment))
        flag = state.alarm
        if alarm is not None:
            flag = flag | (constant.last > jnp.asarray(alarm, jnp.float32))
        counts = (
            jnp.asarray(optax.safe_increment(state.step)),
            state.samples + due.astype(jnp.int32),
            state.proposals + proposes.astype(jnp.int32),
        )
        return new_updates, MeterState(
            new_inner, *counts, largest, gap, constant, moment, missing, flag
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _square(tree: Any, specs: Any) -> chex.Array:
    return tree_total(over_shards(jax.tree.map(squared_norm, tree), specs))


def _include(old: Running, value: Any, count: chex.Array, root: bool) -> Running:
    """Adds a sample to a running quantity; `root` turns squares into roots, means into RMS."""

    def mean(before, x):
        if root:
            return jnp.sqrt(before**2 + (x - before**2) / count)
        return before + (x - before) / count

    value = jax.tree.map(lambda x: x.astype(jnp.float32), value)
    last = jax.tree.map(jnp.sqrt, value) if root else value
    return Running(
        jax.tree.map(mean, old.mean, value), jax.tree.map(jnp.maximum, old.max, last), last
    )
