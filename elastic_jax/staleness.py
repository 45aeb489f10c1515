"""Delay: updates that arrive later than they were made.

A model of delay is a value (see `elastic_jax.delays`); `delay(model)` is the transformation. At
step t it takes `u_t`, which arrives (whole or coordinate by coordinate) at step `t + D_t`, and
returns everything that arrives now. Held mass is what is still in flight; with `D <= tau` and
`||u|| <= alpha M`, `B <= tau M`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import check_seed
from elastic_jax.delays import DelayModel, constant
from elastic_jax.exchange import varying_as
from elastic_jax.order import pass_through, relaxation
from elastic_jax.precision import narrow, wide, wide_dtype
from elastic_jax.traces import Trace


class _Queue(NamedTuple):
    """A ring of the updates in flight of one leaf.

    Step t reads slot t mod n last of all and leaves it as it is until the next step: reading a slot
    before another write of the same step would make XLA copy the whole ring.
    """

    slots: jax.Array  # [n, *shape]

    def total(self, step: chex.Array) -> chex.Array:
        n = len(self.slots)
        arrived = (step - 1) % n  # at the last step
        in_flight = jnp.arange(n, dtype=step.dtype) != arrived
        return jax.lax.dot_general(  # far faster in a scan than slots.sum(0)
            in_flight.astype(self.slots.dtype),
            self.slots,
            (((0,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=wide_dtype(self.slots.dtype),
        )


class _Next(NamedTuple):
    """The one update in flight of a leaf that is a step late: what arrives is known beforehand.

    In a ring XLA could not tell the update that is read from the one that was just written, and
    what uses the first would wait for the second: see `elastic_jax.programs`. The freedom costs
    copies: nothing says that the old values are used before the new ones take their place.
    """

    slot: jax.Array  # [*shape]

    def total(self, step: chex.Array) -> chex.Array:
        return wide(self.slot)


class DelayState(NamedTuple):
    """State of `delay`."""

    step: chex.Array  # int32 []
    queues: Any  # tree of _Queue or _Next
    worker_key: Any  # key data [2] uint32; () for delays that never change

    def held(self) -> Any:
        """Returns the sum of all updates in flight."""
        return jax.tree.map(
            lambda queue: queue.total(self.step),
            self.queues,
            is_leaf=lambda node: isinstance(node, (_Queue, _Next)),
        )


def delay(
    model: DelayModel | Any, *, longest: int | None = None, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Delays updates: `u_t` arrives at step `t + D_t`.

    Args:
        model: a `DelayModel`, or a delay in steps: `delay(4)` is
            `delay(delays.constant(4))`, a JAX scalar is `delay(delays.constant(steps, longest))`.
        longest: room for a traced delay.
        seed: of random delays; see `fold_in_worker`.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose state's `held()` is the sum of all updates
        in flight. It keeps `longest + 1` updates (one where a leaf's delay is a constant 1, none
        where it is 0); a step touches two or three of them, so that its cost does not grow with
        the delay. `delay(0)` is `optax.identity()`. `delay(1)` before or after an exchange lets it
        run beside a gradient that is being computed; as both versions of what it holds live then,
        XLA copies them, and where memory is what bounds a step it costs more than `delay(2)`.

    Raises:
        TypeError: for a delay that is no int.
        ValueError: for a negative delay, or a traced one without `longest`.

    Example:
        >>> import jax.numpy as jnp
        >>> opt = delay(2)
        >>> state = opt.init(jnp.zeros(()))
        >>> for u in (1.0, 2.0, 3.0, 4.0):
        ...     out, state = opt.update(jnp.array(u), state)
        ...     print(out)
        0.0
        0.0
        1.0
        2.0
    """
    check_seed(seed)
    if isinstance(model, Trace):
        raise TypeError("model is a Trace; pass delay(delays.replay(trace))")
    if not isinstance(model, DelayModel):
        model = constant(model, longest)
    elif longest is not None:
        raise ValueError(f"longest={longest} is for a delay in steps; {model.name} has its own")
    if model.draw is None:
        if not any(jax.tree.leaves(model.longest)):
            return pass_through()
        return _fixed(model)
    return _drawn(model, model.draw, seed)


def _fixed(model: DelayModel) -> optax.GradientTransformationExtraArgs:
    """A ring for each leaf: write the newest over what arrived last, then read the oldest."""

    def init(params):
        steps = _broadcast(model.longest, params)

        def empty(late, x):
            if late < 2:
                return _Next(jnp.zeros_like(x)) if late else optax.MaskedNode()
            return _Queue(jnp.zeros((late + 1, *x.shape), x.dtype))

        return DelayState(jnp.zeros((), jnp.int32), jax.tree.map(empty, steps, params), ())

    def update(updates, state, params=None, **extra):
        def turn(u, queue):
            if isinstance(queue, optax.MaskedNode):  # no delay
                return u, queue
            dtype = queue[0].dtype
            if u.dtype != dtype:
                raise ValueError(
                    f"updates are {u.dtype} but the queue was made for parameters of {dtype}; cast "
                    "the updates, or the parameters given to init"
                )
            if isinstance(queue, _Next):
                return queue.slot, _Next(varying_as(u, queue.slot))
            n = len(queue.slots)
            slots = jax.lax.dynamic_update_index_in_dim(queue.slots, u, (state.step - 1) % n, 0)
            oldest = jax.lax.dynamic_index_in_dim(slots, state.step % n, keepdims=False)
            return jax.lax.optimization_barrier(oldest), _Queue(slots)

        out, queues = _unzip(turn, updates, state.queues)
        return out, DelayState(_next(state.step), queues, state.worker_key)

    return relaxation(init, update)


def _drawn(model: DelayModel, draw: Callable, seed: int) -> optax.GradientTransformationExtraArgs:
    """A ring for each leaf: empty the last slot read, add the update to its own, read this one."""
    n = max(2, model.longest + 1)

    def init(params):
        queues = jax.tree.map(
            lambda x: _Queue(jnp.zeros((n, *x.shape), wide_dtype(x.dtype))),
            params,
        )
        key = jax.random.key_data(jax.random.key(seed))
        return DelayState(jnp.zeros((), jnp.int32), queues, key)

    def update(updates, state, params=None, **extra):
        carry, key = jax.random.split(jax.random.wrap_key_data(state.worker_key))
        late = draw(key, state.step, updates)
        now = state.step % n

        def turn(u, queue, late):
            wide = u.astype(queue.slots.dtype)
            slots = jax.lax.dynamic_update_index_in_dim(
                queue.slots, jnp.zeros_like(wide), (state.step - 1) % n, 0
            )
            arrives = (state.step + late) % n
            if late.ndim:
                flat = slots.reshape(n, -1)
                flat = flat.at[arrives.reshape(-1), jnp.arange(flat.shape[1])].add(wide.reshape(-1))
                slots = flat.reshape(slots.shape)
            else:
                there = jax.lax.dynamic_index_in_dim(slots, arrives, keepdims=False)
                slots = jax.lax.dynamic_update_index_in_dim(slots, there + wide, arrives, 0)
            due = jax.lax.dynamic_index_in_dim(slots, now, keepdims=False)
            out = narrow(due, u.dtype)
            # what a narrower dtype cannot express arrives one step later
            rest = due - out.astype(due.dtype)
            if u.dtype != due.dtype:
                slots = slots.at[(now + 1) % n].add(rest)
            return out, _Queue(slots)

        out, queues = _unzip(turn, updates, state.queues, late)
        data = jax.random.key_data(carry)
        return out, DelayState(_next(state.step), queues, data)

    return relaxation(init, update)


def _next(step: chex.Array) -> chex.Array:
    return jnp.asarray(optax.safe_increment(step))


def _unzip(turn: Callable, updates: Any, queues: Any, *rest: Any) -> tuple[Any, Any]:
    """Maps a function of (update, queue, …) that returns a pair, and parts the pairs."""
    leaves, treedef = jax.tree.flatten(updates)
    columns = (leaves, *map(treedef.flatten_up_to, (queues, *rest)))
    pairs = [turn(*one) for one in zip(*columns, strict=True)]
    return (
        treedef.unflatten([out for out, _ in pairs]),
        treedef.unflatten([queue for _, queue in pairs]),
    )


def _broadcast(prefix: Any, tree: Any) -> Any:
    try:
        return jax.tree.map(lambda n, part: jax.tree.map(lambda _: n, part), prefix, tree)
    except ValueError as error:
        raise ValueError(f"steps={prefix} is no tree (or prefix) of the parameters'") from error
