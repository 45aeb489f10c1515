"""Imperfect links: exchanges whose messages are lost on the way, or late.

Workers average, `v_j⁺ = v_j + (1/p) Σ_i u_i`, and a worker's own update is applied at once at its
own view. What a link has not brought yet is held, and counted: a message is *lost* if a link drops
it (it may be sent again), *late* if it is on its way. Workers that are away are another matter:
see `elastic_jax.absent`.

Fates are drawn afresh at every step, whatever the messages say, from a key that all workers share,
so that all know of every message where it went.
"""

import numbers
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import check_seed, flag
from elastic_jax.delays import DelayModel
from elastic_jax.exchange import AxisName, all_mean, axis_names, gather, mean, worker_index
from elastic_jax.fates import (
    check_probability,
    count,
    happens,
    new_key,
    next_key,
    none,
    rounded,
    shares,
    sum_where,
    where,
    with_remainder,
)
from elastic_jax.neighbours import workers_on
from elastic_jax.order import relaxation
from elastic_jax.precision import minus, narrow, plus, wide, wide_dtype, zeros
from elastic_jax.staleness import _Queue
from elastic_jax.views import no_remainder

FATES = ("link", "sender", "receiver")

# ---- messages that links lose ----


class ResendState(NamedTuple):
    """State of `lossy` where links send again what they lost."""

    pending: Any  # tree [params] or [p, params], float32 or wider: missing here, in shares
    rest: Any  # tree [params], what narrow parameters round away
    waiting: jax.Array  # float32 [] or [p], how many updates pend here
    messages_lost: jax.Array  # int32 [], how many updates have not arrived at once, for each link
    messages_resent: jax.Array  # int32 [], how many of them have arrived since; the others pend
    shared_key: jax.Array  # key data [2] uint32

    role = "exchange"

    def held(self) -> Any:
        """Returns what this worker's view (or, if it sends, the others') lacks."""
        links = self.waiting.ndim
        here = jax.tree.map(lambda x: jnp.sum(x, axis=0) if links else x, self.pending)
        return with_remainder(here, self.rest)


class LostState(NamedTuple):
    """State of `lossy` where what is lost is lost for good."""

    dropped: Any  # tree [params], everything lost here so far
    rest: Any  # tree [params], what narrow parameters round away
    messages_lost: jax.Array  # int32 [], how many updates have not arrived, for each link
    shared_key: jax.Array  # key data [2] uint32

    role = "exchange"

    def held(self) -> Any:
        """Returns what rounding keeps back."""
        return self.rest

    def lost(self) -> Any:
        """Returns the sum of what this view lacks; of lost senders, of its own lost updates."""
        return self.dropped


def lossy(
    axis_name: AxisName,
    probability: chex.Numeric,
    *,
    resend: bool = True,
    fate: str = "link",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Averages over links that lose messages with a probability q.

        v_j⁺ = v_j + (1/p) Σ_i (u_i if link i→j is up)        own updates always

    Whose fate is drawn: that of each `link` i→j; of each `sender` i, whose message reaches all
    others or none; or of each `receiver` j, who hears all others or none. Lost messages are sent
    again at the next step, with the new one, until the link is up:

    =========== ==================================== ===========================================
    fate        held by worker j                     elastic constant B / M
    =========== ==================================== ===========================================
    link        (1/p) Σ_i (pending on i→j)           (√(p−1)/p) √(q + (p−1)q²) / (1−q)
    sender      (p−1)/p · (its own lost messages)    the same
    receiver    (1/p) (the others' that it missed)   ((p−1)/p) √(q(1+q)) / (1−q)
    =========== ==================================== ===========================================

    Constant updates attain them, in mean square over steps. With `resend=False` a lost message is
    lost for good. Of a `sender`, nobody applies it (not the sender either): views agree, and its
    `lost()` is all of it. Else the receivers lose it, and **views drift apart** for ever, as the
    square root of time; `lost()` of a worker is what its view lacks.

    With fates of links every worker gathers all messages and keeps p buffers, and `init` must be
    called where the axis is bound, as a `worker_step` does. The other two average, and keep one.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        probability: q, in [0, 1); may be traced.
        resend: whether what is lost is sent again.
        fate: "link", "sender" or "receiver".
        seed: of the fates, which all workers share.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its state counts `messages_lost`, one for each
        update and each other worker that it does not reach at once, and `messages_resent`, those
        that reach it later. `lossy(axis_name, 0)` is
        `all_mean(axis_name)`; a traced 0 agrees with it to rounding.

    Raises:
        TypeError: for a `resend` that is no bool.
        ValueError: for a probability outside [0, 1), or an unknown fate.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), lossy("w", 0.5, seed=1))
        >>> step = ej.worker_step(lambda x, b: jnp.sum(x * b), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states, _ = run.step(run.init(jnp.zeros(1)), jnp.array([[2.0], [4.0]]))
        >>> held = jax.vmap(ej.held)(states.opt_state, states.params)
        >>> print(states.params.tolist(), held.tolist(), states.opt_state[1].messages_lost[0])
        [[-1.0], [-3.0]] [[-2.0], [0.0]] 1
    """
    names = axis_names(axis_name)
    check_seed(seed)
    flag("resend", resend)
    traced = check_probability("probability", probability, most="[0, 1)")
    if fate not in FATES:
        raise ValueError(f"fate={fate!r} is unknown; pass one of {FATES}")
    if not traced and probability == 0:
        return all_mean(names)
    by_link, by_sender = fate == "link", fate == "sender"

    def lost_links(key, p):
        """Draws which messages are lost, [sender, receiver]."""
        if by_link:
            lost = happens(key, probability, p, p)
        else:
            lost = happens(key, probability, p, 1)
            lost = jnp.broadcast_to(lost if by_sender else lost.T, (p, p))
        return lost & ~jnp.eye(p, dtype=bool)

    def init(params):
        if not resend:
            return LostState(zeros(params), no_remainder(params), none(), new_key(seed))
        pending, rows = zeros(params), ()
        if by_link:
            rows = (_bound_number(names),)
            pending = jax.tree.map(lambda x: jnp.zeros((*rows, *x.shape), x.dtype), pending)
        waiting = jnp.zeros(rows, jnp.float32)
        return ResendState(pending, no_remainder(params), waiting, none(), none(), new_key(seed))

    def update_resend(updates, state, params=None, **extra):
        p, me = workers_on(names), worker_index(names)
        shared_key, key = next_key(state.shared_key)
        links = lost_links(key, p)
        down, waiting = links[me].any(), state.waiting  # of a message, or of all to a receiver
        if by_sender and p > 1:
            total = plus(jax.tree.map(lambda h: h * (p / (p - 1)), state.pending), updates)
            sent = where(~down, total)
            arrived = plus(mean(sent, names), shares(minus(updates, sent), p))
            pending = jax.tree.map(lambda y: y * ((p - 1) / p), where(down, total))
        elif by_sender:  # nobody to send to: what pends is of workers that are gone
            arrived = plus(state.pending, updates)
            pending = jax.tree.map(jnp.zeros_like, state.pending)
        elif by_link:
            _check_rows(state, p)
            down = links[:, me]
            total = plus(state.pending, shares(gather(updates, names), p))
            arrived, pending = sum_where(~down, total), where(down, total)
        else:
            down = links[:, me].any()
            own = shares(updates, p)
            total = plus(state.pending, minus(mean(jax.tree.map(wide, updates), names), own))
            arrived, pending = plus(own, where(~down, total)), where(down, total)
        out, rest = rounded(arrived, state.rest, updates)
        back = gather(jnp.sum(jnp.where(down, 0, waiting)), names)
        each = 1 if by_link else p - 1
        return out, ResendState(
            pending,
            rest,
            jnp.where(down, waiting + 1, 0),
            count(state.messages_lost, links),
            count(state.messages_resent, back.astype(jnp.int32) * each),
            shared_key,
        )

    def update_lost(updates, state, params=None, **extra):
        p, me = workers_on(names), worker_index(names)
        shared_key, key = next_key(state.shared_key)
        links = lost_links(key, p)
        if by_sender:
            down = links[me].any()
            arrived, missed = mean(where(~down, jax.tree.map(wide, updates)), names), None
            missed = where(down, updates)
        elif by_link:
            together = shares(gather(updates, names), p)
            arrived, missed = (sum_where(up, together) for up in (~links[:, me], links[:, me]))
        else:
            down, own = links[:, me].any(), shares(updates, p)
            others = minus(mean(jax.tree.map(wide, updates), names), own)
            arrived, missed = plus(own, where(~down, others)), where(down, others)
        out, rest = rounded(arrived, state.rest, updates)
        counted = count(state.messages_lost, links)
        return out, LostState(plus(state.dropped, missed), rest, counted, shared_key)

    return relaxation(init, update_resend if resend else update_lost, names)


def _bound_number(names: tuple[str, ...]) -> int:
    """Returns p, or 1 where no axis is bound: `_check_rows` will refuse the state when it is."""
    try:
        return workers_on(names)
    except NameError:
        return 1


def _check_rows(state: ResendState, p: int) -> None:
    if state.waiting.shape != (p,):
        raise ValueError(
            f"the state of lossy(fate='link') was made for {len(state.waiting)} workers, but there "
            f"are {p}; call init where the axis is bound, as worker_step(...).init does"
        )


# ---- messages that are late ----


class LateState(NamedTuple):
    """State of `late`."""

    step: jax.Array  # int32 []
    queues: Any  # tree of rings [longest + 1, params], float32 or wider: on their way to here
    messages_late: jax.Array  # int32 [], all that were sent so far and not heard at once
    shared_key: jax.Array  # key data [2] uint32

    role = "exchange"

    def held(self) -> Any:
        """Returns the shares of the other workers' updates that are on their way to this one."""
        return jax.tree.map(
            lambda queue: queue.total(self.step),
            self.queues,
            is_leaf=lambda node: isinstance(node, _Queue),
        )


def late(
    axis_name: AxisName, model: DelayModel, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Message passing: every update reaches each other worker after a delay of its own.

        v_j⁺ = v_j + (1/p) (u_j + Σ_{i≠j} (what arrives from i now))

    Each message from i to j, at each step, draws a delay D from the model; own updates are applied
    at once. With `D <= τ`, `B <= τ M (p-1)/p`, which a constant delay of constant updates attains.
    With random delays and P_s = P(D > s), whatever their largest, in mean square over steps,

        B = (M/p) √( ((p-1) E D)² + (p-1) Σ_s P_s (1 - P_s) )

    Each worker keeps a ring of `longest + 1` sums. A constant delay needs a mean only; else every
    worker gathers all messages.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        model: of `elastic_jax.delays`, for whole messages: `constant`, `uniform`, `geometric`,
            `pmf`, or `replay` (which gives all messages of a step the same delay).
        seed: of random delays.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its state counts `messages_late`.
        `late(axis_name, constant(0))` is `all_mean(axis_name)`.

    Raises:
        TypeError: for what is no `DelayModel`.
        ValueError: for a model that parts messages, `per_leaf` or `per_coordinate`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), late("w", ej.delays.constant(1)))
        >>> step = ej.worker_step(lambda x, b: jnp.sum(x * b), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states = run.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     states, _ = run.step(states, jnp.array([[2.0], [4.0]]))
        ...     print(states.params.tolist())
        [[-1.0], [-2.0]]
        [[-4.0], [-5.0]]
    """
    names = axis_names(axis_name)
    check_seed(seed)
    if not isinstance(model, DelayModel):
        raise TypeError(
            f"model={model!r} is no DelayModel; pass one, for example delays.constant(4)"
        )
    draw = model.draw
    parts = not isinstance(model.longest, numbers.Integral)
    if draw is not None:
        probe = jax.eval_shape(lambda: draw(jax.random.key(0), jnp.int32(0), jnp.zeros(2)))
        parts = parts or probe.shape != ()
    if parts:
        raise ValueError(f"model={model.name} parts a message; pass a delay of whole messages")
    if not model.longest:
        return all_mean(names)
    n = max(2, model.longest + 1)

    def init(params):
        queues = jax.tree.map(
            lambda x: _Queue(jnp.zeros((n, *x.shape), wide_dtype(x.dtype))), params
        )
        return LateState(jnp.zeros((), jnp.int32), queues, jnp.zeros((), jnp.int32), new_key(seed))

    def arrivals(key, step, p):
        """Draws every message's delay, [sender, receiver]."""
        delays = jnp.full((p, p), model.longest, jnp.int32)
        if draw is not None:
            keys = jax.random.split(key, p * p)
            delays = jax.vmap(draw, in_axes=(0, None, None))(keys, step, jnp.zeros(()))
        return jnp.where(jnp.eye(p, dtype=bool), 0, delays.reshape(p, p))

    def update(updates, state, params=None, **extra):
        p, me, now = workers_on(names), worker_index(names), state.step % n
        shared_key, key = next_key(state.shared_key)
        delays = arrivals(key, state.step, p)
        own = shares(updates, p)
        if draw is None:  # all others' messages arrive together
            others = minus(mean(jax.tree.map(wide, updates), names), own)
            due_at = (state.step + model.longest) % n
        else:
            others = shares(gather(updates, names), p)
            due_at = (state.step + delays[:, me]) % n

        def turn(queue, messages, own, u):
            slots = queue.slots.at[(state.step - 1) % n].set(0)  # what arrived at the last step
            slots = slots.at[due_at].add(messages.astype(slots.dtype))
            due = jax.lax.dynamic_index_in_dim(slots, now, keepdims=False)
            due = due + own.astype(slots.dtype) if draw is None else due
            out = narrow(due, u.dtype)
            if out.dtype != due.dtype:  # what a narrower dtype cannot express arrives a step later
                slots = slots.at[(now + 1) % n].add(due - wide(out).astype(due.dtype))
            return out, _Queue(slots)

        leaves, treedef = jax.tree.flatten(updates)
        columns = (*map(treedef.flatten_up_to, (state.queues, others, own)), leaves)
        pairs = [turn(*column) for column in zip(*columns, strict=True)]
        return treedef.unflatten(out for out, _ in pairs), LateState(
            jnp.asarray(optax.safe_increment(state.step)),
            treedef.unflatten(queue for _, queue in pairs),
            count(state.messages_late, delays > 0),
            shared_key,
        )

    return relaxation(init, update, names)
