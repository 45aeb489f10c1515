"""Elastic schedulers: exchanges that go on before everything has arrived.

A synchronous worker waits for the gradients of all. An elastic scheduler waits for enough of them:
what is missing is held, and delivered later. Which rule makes it enough, and what stands in for the
missing, is the scheduler; when gradients arrive is a model (`elastic_jax.arrivals`), in simulated
seconds. So training with a scheduler tells both what it costs in drift and what it saves in time.
The gradients themselves are gathered whole, on whatever machine runs this.

**Clocks.** Each worker has its own. Its step begins when its last one ended; its gradients leave
when they are ready and its link is free; it goes on when its rule lets it, never before its own
gradient is ready. A fast worker may so be ahead of a slow one. A second set of clocks runs as if
everybody waited for everything, with the same draws: the state's `elapsed` and `synchronous` are
both times, and `elapsed <= synchronous` for every worker (but for float32's rounding), as all times
only add and take maxima.

**NaN and infinity.** An element of an update that is not finite is applied at once by all workers,
as `all_mean` would apply it, and counts as 0 for the rule: what is held stays finite.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.arrivals import Arrivals, Clock, meet, new_clock
from elastic_jax.checks import check_seed, number, scalar, whole
from elastic_jax.exchange import AxisName, axis_names, gather, worker_index
from elastic_jax.order import relaxation
from elastic_jax.precision import minus, narrow_as, norm, plus, wide, wide_dtype, wider, zeros


class SchedulerState(NamedTuple):
    """State of an elastic scheduler."""

    missing: Any  # tree [params], float32 or wider: what this worker must still apply (signed)
    due: Any  # tree of float32 []: when all of that has arrived, after `clock.origin`
    clock: Clock
    waiting: Clock  # if everybody waited for everything
    step: chex.Array  # int32 []
    shared_key: chex.Array  # key data [2] uint32, alike on all workers

    role = "exchange"

    def held(self) -> Any:
        """Returns what has not been applied here."""
        return self.missing

    @property
    def elapsed(self) -> chex.Array:
        """Simulated seconds that this worker's steps took."""
        return self.clock.time()

    @property
    def synchronous(self) -> chex.Array:
        """Simulated seconds that they would have taken had everybody waited for everything."""
        return self.waiting.time()


class _Leaf(NamedTuple):
    """What a worker has to do with one leaf: p messages, and last of all what it holds."""

    messages: chex.Array  # [p + 1, n], float32 or wider; they add up to all that is pending
    times: chex.Array  # float32 [p + 1], when each is there; none before its own gradient
    own: chex.Array  # float32 [], when its own gradient is ready
    mine: chex.Array  # [n], its own message
    broken: chex.Array  # [n], the sum of what is not finite in the messages, where they have zeros


# a rule: (leaves, start of the step) → when to go on, and for each leaf what is then held
# [n] and when that will have arrived
_Rule = Callable[[list[_Leaf], chex.Array], tuple[chex.Array, list[tuple[Any, Any]]]]


def norm_bounded(
    axis_name: AxisName, beta: chex.Numeric, arrivals: Arrivals, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Goes on once the mass that is missing is a small part of the mass that is pending.

        y = h + mean_i u_i        go on when |missing| <= beta |y|, leaf by leaf
        returns y - missing       h⁺ = missing

    `|h⁺| <= beta |h + mean_i u_i|` is a contraction: with `|u_i| <= alpha M` it gives the elastic
    constant `B = M beta/(1 - beta)`. The worker goes on when its last leaf may; of what has then
    arrived in the others, the most that keeps the bound is applied. What is held counts as one
    message at the next step, which is there when the last of its parts is.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        beta: the part that may be missing, in [0, 1); may be traced. 0 waits for everything, as
            `all_mean` does.
        arrivals: when gradients arrive, for example `backward(compute=0.1, bandwidth=1e9)`.
        seed: of random arrivals.

    Returns:
        An `optax.GradientTransformationExtraArgs`, an exchange, whose `SchedulerState` says what is
        held and how long the steps took. Workers apply different updates; for each the view and
        what it holds add up to the global iterate.

    Raises:
        TypeError: if `arrivals` is no `Arrivals`, or the seed no int.
        ValueError: for a beta outside [0, 1), or what is no axis name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from elastic_jax.arrivals import fixed
        >>> late = fixed(jnp.array([[1.0, 9.0], [1.0, 1.0]]))  # worker 1 reaches 0 at 9 s
        >>> opt = norm_bounded("workers", 0.3, late)
        >>> def step(update):
        ...     return opt.update(update, opt.init(update))
        >>> out, state = jax.vmap(step, axis_name="workers")(jnp.array([[8.0], [2.0]]))
        >>> print(out.tolist(), state.held().tolist())  # a mean of 5: 1 of it may be missing
        [[4.0], [5.0]] [[1.0], [0.0]]
        >>> print(state.elapsed, state.synchronous)
        [1. 1.] [9. 1.]

    Reference:
        Nadiradze, Markov, Chatterjee, Kungurtsev, Alistarh, "Elastic Consistency", 2021.
    """
    number("beta", beta, lambda part: 0 <= part < 1, "a number in [0, 1)")

    def rule(leaves, start):
        enough, go = [], start
        for leaf in leaves:
            part = jnp.asarray(beta).astype(leaf.messages.dtype)
            late = leaf.times[None] > leaf.times[:, None]  # [when, message]
            rests = _sum(late, leaf.messages)
            whole = jnp.sum(leaf.messages, axis=0)
            ok = norm(rests, axis=1) <= part * norm(whole)
            enough.append(ok | ~jnp.any(late, axis=1))
            go = jnp.maximum(go, jnp.min(jnp.where(enough[-1], leaf.times, jnp.inf)))
        found = []
        for leaf, ok in zip(leaves, enough, strict=True):
            last = jnp.max(jnp.where(ok & (leaf.times <= go), leaf.times, -jnp.inf))
            late = leaf.times > last
            found.append((_sum(late, leaf.messages), _last(late, leaf.times, go)))
        return go, found

    return _scheduler(axis_name, arrivals, seed, rule)


def variance_bounded(
    axis_name: AxisName,
    arrivals: Arrivals,
    *,
    deadline: chex.Numeric | None = None,
    missing: chex.Numeric | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Its own gradient stands in for those that are missing, and is corrected at the next step.

        h⁺_j = (1/p) sum_{i missing} (u_i - u_j)        returns h_j + mean_i u_i - h⁺_j

    Who is missing does not depend on what was computed, so with m missing, noise σ and smoothness L
    the elastic constant is `B = (σ/p) √(m (m+1)) / √(1 - (2 alpha L m/p)²)`, if the same workers
    are missing in all leaves. It goes on once the correction of the step before has arrived, and

    * at the deadline, or sooner if everything is there; or
    * when at most `missing` of the p gradients are missing, leaf by leaf.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        arrivals: when gradients arrive.
        deadline: seconds after this worker's step began, >= 0; may be traced. inf waits for
            everything, as `all_mean` does. A worker without its own gradient waits for that.
        missing: m, an int >= 0 (or a JAX integer scalar, which may be traced); 0 waits for
            everything, p - 1 or more for nobody.
        seed: of random arrivals.

    Returns:
        As `norm_bounded`. Held mass is signed: a stand-in may be owed back.

    Raises:
        TypeError: if `arrivals` is no `Arrivals`, or the seed no int.
        ValueError: unless one of deadline and missing is given, or if it is out of range, or for
            what is no axis name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from elastic_jax.arrivals import fixed
        >>> late = fixed(jnp.array([[1.0, 9.0], [1.0, 1.0]]))  # worker 1 reaches 0 at 9 s
        >>> opt = variance_bounded("workers", late, deadline=2.0)
        >>> def step(update):
        ...     return opt.update(update, opt.init(update))
        >>> out, state = jax.vmap(step, axis_name="workers")(jnp.array([[8.0], [2.0]]))
        >>> print(out.tolist(), state.held().tolist())  # worker 0 takes 8 for the other's 2
        [[8.0], [5.0]] [[-3.0], [0.0]]

    Reference:
        Nadiradze, Markov, Chatterjee, Kungurtsev, Alistarh, "Elastic Consistency", 2021.
    """
    if (deadline is None) == (missing is None):
        raise ValueError(
            f"deadline={deadline!r}, missing={missing!r}: pass one of them, the other None"
        )
    if deadline is not None:
        number("deadline", deadline, lambda seconds: seconds >= 0, "seconds >= 0, or inf")
    elif not scalar("missing", missing, lambda m: m >= 0, "an int >= 0", whole=True):
        whole("missing", missing, "number of workers", 0)

    def rule(leaves, start):
        go = start
        for leaf in leaves:
            times = leaf.times[:-1]
            if deadline is None:
                place = jnp.maximum(len(times) - 1 - jnp.asarray(missing, jnp.int32), 0)
                soon = jnp.sort(times)[place]
            else:
                soon = jnp.minimum(
                    start + jnp.asarray(deadline).astype(jnp.float32), jnp.max(times)
                )
            go = functools.reduce(jnp.maximum, (go, soon, leaf.own, leaf.times[-1]))
        found = []
        for leaf in leaves:
            late = leaf.times > go
            stand_in = leaf.mine * jnp.sum(late).astype(leaf.mine.dtype)
            found.append((_sum(late, leaf.messages) - stand_in, _last(late, leaf.times, go)))
        return go, found

    return _scheduler(axis_name, arrivals, seed, rule)


def _scheduler(
    axis_name: AxisName, arrivals: Any, seed: Any, rule: _Rule
) -> optax.GradientTransformationExtraArgs:
    names = axis_names(axis_name)
    if not isinstance(arrivals, Arrivals):
        raise TypeError(
            f"arrivals={arrivals!r} is no model of arrival; pass one, for example "
            "backward(compute=0.1, bandwidth=1e9)"
        )
    check_seed(seed)

    def init(params):
        due = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        key = jax.random.key_data(jax.random.key(seed))
        return SchedulerState(
            zeros(params), due, new_clock(), new_clock(), jnp.zeros((), jnp.int32), jnp.copy(key)
        )

    def update(updates, state, params=None, **extra):
        carry, key = jax.random.split(jax.random.wrap_key_data(state.shared_key))
        draw = functools.partial(meet, arrivals, names, key, state.step, updates)
        base, start, rows, free = draw(state.clock)
        leaves, treedef = jax.tree.flatten(updates)
        held, due = map(treedef.flatten_up_to, (state.missing, state.due))
        work = [
            _messages(names, u, h, late - base, *row)
            for u, h, late, row in zip(leaves, held, due, rows, strict=True)
        ]
        go, found = rule(work, start)

        def shaped(rows):
            return treedef.unflatten(
                row.reshape(u.shape) for row, u in zip(rows, leaves, strict=True)
            )

        pending = shaped(jnp.sum(leaf.messages, axis=0) for leaf in work)
        out = narrow_as(minus(pending, shaped(rest for rest, _ in found)), updates)
        kept = minus(pending, out)  # with what a narrow dtype cannot express
        out = narrow_as(plus(out, shaped(leaf.broken for leaf in work)), updates)
        all_base, all_start, all_rows, all_free = draw(state.waiting)
        last = functools.reduce(jnp.maximum, (jnp.max(row) for row, _ in all_rows), all_start)
        return out, SchedulerState(
            kept,
            treedef.unflatten([late for _, late in found]),
            state.clock.moved(go, free, base),
            state.waiting.moved(last, all_free, all_base),
            jnp.asarray(optax.safe_increment(state.step)),
            jax.random.key_data(carry),
        )

    return relaxation(init, update, names)


def _messages(names: tuple[str, ...], u: Any, h: Any, due: Any, times: Any, own: Any) -> _Leaf:
    p = len(times)
    dtype = wider(wide_dtype(u.dtype), h.dtype)
    sent = wide(gather(u, names)).astype(dtype).reshape(p, -1)
    finite = jnp.isfinite(sent)
    broken = jnp.sum(jnp.where(finite, 0, sent), axis=0)
    messages = jnp.where(finite, sent / p, 0)
    messages = jnp.concatenate([messages, h.astype(dtype).reshape(1, -1)])
    times = jnp.append(times, jnp.maximum(due, own))
    return _Leaf(messages, times, own, messages[worker_index(names)], broken)


def _sum(which: chex.Array, messages: chex.Array) -> jax.Array:
    """Adds up some of the messages; [k, p + 1] @ [p + 1, n], far faster than a loop or a sort."""
    return jnp.matmul(which.astype(messages.dtype), messages, precision=jax.lax.Precision.HIGHEST)


def _last(late: chex.Array, times: chex.Array, go: chex.Array) -> chex.Array:
    return jnp.max(jnp.where(late, times, go))
