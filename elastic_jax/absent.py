"""Workers that are away: partial participation, and crashes in the middle of a broadcast.

Who takes part, who crashes and whom a last message reaches is drawn from a key that all workers
share, or given; it does not look at what the messages say.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from elastic_jax.checks import check_seed, flag, number, scalar, whole
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
from elastic_jax.precision import minus, plus, wide, zeros
from elastic_jax.views import no_remainder

# ---- partial participation ----


class PartialState(NamedTuple):
    """State of `partial` where absent workers lose their updates."""

    dropped: Any  # tree [params], float32 or wider: u - its weight in what was applied, summed
    rest: Any  # tree [params], what narrow parameters round away
    absences: jax.Array  # int32 [], of all workers so far
    shared_key: jax.Array  # key data [2] uint32

    role = "exchange"

    def held(self) -> Any:
        """Returns what rounding keeps back."""
        return self.rest

    def lost(self) -> Any:
        """Returns the (signed) sum of this worker's updates less what was applied of them."""
        return self.dropped


class PartialKeptState(NamedTuple):
    """State of `partial` where absent workers keep their updates."""

    pending: Any  # tree [params], float32 or wider: this worker's updates since it last took part
    rest: Any  # tree [params], what narrow parameters round away
    absences: jax.Array  # int32 [], of all workers so far
    shared_key: jax.Array  # key data [2] uint32

    role = "exchange"

    def held(self) -> Any:
        """Returns what this worker will bring when it takes part."""
        return with_remainder(self.pending, self.rest)


def partial(
    axis_name: AxisName, participants: chex.Numeric, *, keep: bool = False, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Averages over a part of the workers, drawn afresh at each step; all apply the result.

        I drawn        x⁺ = x + (1/|I|) Σ_{i∈I} u_i        lost by i: u_i - (p/|I|) [i∈I] u_i

    In expectation that is the mean over all of them (over those steps at which anyone takes part).
    With `keep`, absent workers add up their updates and bring them when they next take part:

        x⁺ = x + (1/p) Σ_{i∈I} (h_i + u_i)        h_i⁺ = (h_i + u_i) [i∉I]

    Either way all views are alike. With `keep` and a probability η that a worker takes part,
    q = 1 - η, the mean of what they keep gives in mean square over steps

        B = (M/√p) √(q + p q²) / (1-q)

    which constant updates attain. Without it, B = 0.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        participants: an int >= 1, how many take part, at most p; or a float in (0, 1], each
            worker's probability. A JAX scalar of either kind may be traced (an integer is then
            held to 0…p).
        keep: whether absent workers keep their updates.
        seed: of the draws, which all workers share.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its state counts `absences`, a worker and a
        step each. `partial(axis_name, 1.0)` is `all_mean(axis_name)`; an int that turns out to be
        p agrees with it to rounding.

    Raises:
        TypeError: for a `keep` that is no bool.
        ValueError: for a number below 1 or a probability outside (0, 1]; from the update, for more
            participants than workers.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), partial("w", 1))
        >>> step = ej.worker_step(lambda x, b: jnp.sum(x * b), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states, _ = run.step(run.init(jnp.zeros(1)), jnp.array([[2.0], [4.0]]))
        >>> print(states.params.tolist(), states.opt_state[1].lost().tolist())
        [[-2.0], [-2.0]] [[2.0], [-4.0]]
    """
    names = axis_names(axis_name)
    check_seed(seed)
    flag("keep", keep)
    if isinstance(participants, jax.Array) and jnp.issubdtype(participants.dtype, jnp.integer):
        exact = scalar("participants", participants, lambda n: n >= 1, "an int >= 1", whole=True)
    else:
        exact = isinstance(participants, numbers.Integral)
        if exact:
            participants = whole("participants", participants, "number of workers")
        elif not check_probability("participants", participants, most="(0, 1]"):
            if participants == 1:
                return all_mean(names)

    def draw(key, p):
        """Draws who takes part, [p]."""
        if not exact:
            return happens(key, participants, p)
        if isinstance(participants, int) and participants > p:
            raise ValueError(
                f"participants={participants} but there are {p} workers; pass at most {p}, or a "
                "float, the probability that a worker takes part"
            )
        return jax.random.permutation(key, p) < participants

    def init(params):
        kind = PartialKeptState if keep else PartialState
        return kind(zeros(params), no_remainder(params), none(), new_key(seed))

    def update(updates, state, params=None, **extra):
        p = workers_on(names)
        shared_key, key = next_key(state.shared_key)
        present = draw(key, p)
        here = present[worker_index(names)]
        absences = count(state.absences, ~present)
        if keep:
            total = plus(state.pending, updates)
            sent, kept = where(here, total), where(here, jax.tree.map(jnp.zeros_like, total), total)
        else:
            number = jnp.maximum(jnp.sum(present), 1)
            each = jax.tree.map(lambda u: wide(u) * (p / number.astype(wide(u).dtype)), updates)
            sent = where(here, each)
            kept = plus(state.dropped, minus(jax.tree.map(wide, updates), sent))
        out, rest = rounded(mean(sent, names), state.rest, updates)
        return out, type(state)(kept, rest, absences, shared_key)

    return relaxation(init, update, names)


# ---- crashes ----

Crash = tuple[int, int, int | None]  # worker, the step it crashes at, the step it is back at
_NEVER = np.iinfo(np.int32).max  # no step


class CrashState(NamedTuple):
    """State of `crashes`."""

    missing: Any  # tree [params], float32 or wider: last messages that this view lacks, in shares
    dropped: Any  # tree [params], float32 or wider: what this worker proposed in vain
    rest: Any  # tree [params], what narrow parameters round away
    step: jax.Array  # int32 []
    back: Any  # int32 [], the step this worker is back at, if it crashed; () for a table
    crashes: jax.Array  # int32 [], of all workers so far
    messages_missed: jax.Array  # int32 [], last messages that did not reach a survivor
    messages_forwarded: jax.Array  # int32 [], how many of them survivors passed on
    shared_key: jax.Array  # key data [2] uint32

    role = "exchange"

    def held(self) -> Any:
        """Returns the last messages that this view lacks and others have."""
        return with_remainder(self.missing, self.rest)

    def lost(self) -> Any:
        """Returns what this worker proposed while it was down, and last messages nobody got."""
        return self.dropped


def crashes(
    axis_name: AxisName,
    when: Sequence[Crash] | chex.Numeric,
    *,
    down: int | None = None,
    reach: chex.Numeric = 0.5,
    forward: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Averages over workers that crash in the middle of a broadcast, and may come back.

        x⁺ = x + (1/p) Σ_{i∈I} u_i        I: those whose messages reach a survivor
        v_j + h_j = x                     h_j: (1/p) of the last messages that j lacks

    A worker that crashes at step t sends u_t to some of the survivors only, drawn for each link,
    and proposes in vain until it is back. With `forward` those who got its last message pass it
    on, so that all have it one step later; else those who missed it lack it for ever. Either way
    `B = f M/p`: for f crashes at one step, or f in all; constant updates attain it.

    While a worker is down its row stands for what it will restart from: the view of the first
    survivor (with what that view lacks). What it proposes meanwhile is lost, and so is a last
    message that no survivor gets: `lost()` says how much.

    Every worker gathers all messages.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        when: crashes as tuples `(worker, step, back)`: the worker's index, the step (0 is the
            first) whose message is its last, and the step at which it takes part again, or None.
            Or the probability in [0, 1) that a worker that is up crashes at a step; may be traced.
        down: of crashes that are drawn, how many steps a worker misses; None for all the rest.
        reach: the probability that a last message reaches a survivor, in [0, 1]; may be traced.
        forward: whether survivors pass last messages on.
        seed: of the draws, which all workers share.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its state counts `crashes`, `messages_missed`
        and `messages_forwarded`. Without any crash it is `all_mean(axis_name)`.

    Raises:
        TypeError: for a table that holds something else, or a `forward` that is no bool.
        ValueError: for numbers out of range, a worker that crashes while it is down, or `down`
            with a table; from the update, for a worker that is not there.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), crashes("w", [(0, 1, None)], reach=0.0))
        >>> step = ej.worker_step(lambda x, b: jnp.sum(x * b), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states = run.init(jnp.zeros(1))
        >>> for _ in range(3):
        ...     states, _ = run.step(states, jnp.array([[2.0], [4.0]]))
        >>> print(states.params.tolist(), states.opt_state[1].lost().tolist())
        [[-7.0], [-7.0]] [[-4.0], [0.0]]
    """
    names = axis_names(axis_name)
    check_seed(seed)
    flag("forward", forward)
    check_probability("reach", reach, most="[0, 1]")
    probability: Any = 0.0  # or a table
    plan, pause = None, None
    if isinstance(when, (list, tuple)):
        if down is not None:
            raise ValueError(
                f"down={down!r} is for crashes that are drawn; `when` says who returns"
            )
        plan = _table(when)
        nothing = not when
    else:
        probability = when
        advice = "a number in [0, 1), or a list of tuples (worker, step, back)"
        nothing = not number("when", when, lambda q: 0 <= q < 1, advice) and when == 0
        pause = None if down is None else whole("down", down, "number of steps", most=_NEVER - 1)
    if nothing:
        return all_mean(names)

    def init(params):
        mass = zeros(params), zeros(params), no_remainder(params)
        back = none() if plan is None else ()
        return CrashState(*mass, none(), back, none(), none(), none(), new_key(seed))

    def update(updates, state, params=None, **extra):
        p, me = workers_on(names), worker_index(names)
        shared_key, key = next_key(state.shared_key)
        key, of_links = jax.random.split(key)
        if plan is not None:
            crashing, away = plan(state.step, p)
        else:
            away = gather(state.back, names) > state.step
            crashing = happens(key, probability, p) & ~away
        survives = ~crashing & ~away
        # got[i, j]: i's last message reaches j; it counts if it reaches anyone
        last = crashing[:, None] & survives[None, :]
        got = last & happens(of_links, reach, p, p)
        counted = survives | got.any(1)
        missed = last & ~got & counted[:, None]
        # A row of a worker that does not survive follows the first that does.
        source = jnp.where(survives[me], me, _first(survives))
        together = shares(gather(updates, names), p)
        moves = sum_where(counted, together)
        new = sum_where(missed[:, source], together)
        if forward:  # what was missing arrives now
            change, missing = minus(new, state.missing), new
        else:
            change = plus(new, _lacks_more(state.missing, survives, me, names))
            missing = plus(state.missing, change)
        change = where(survives.any(), change)
        missing = where(survives.any(), missing, state.missing)
        out, rest = rounded(minus(moves, change), state.rest, updates)
        dropped = plus(state.dropped, where(~counted[me], updates))
        passed = missed if forward else jnp.zeros_like(missed)
        return out, CrashState(
            missing,
            dropped,
            rest,
            jnp.asarray(optax.safe_increment(state.step)),
            () if plan is not None else _back(state.back, crashing[me], state.step, pause),
            count(state.crashes, crashing),
            count(state.messages_missed, last & ~got),
            count(state.messages_forwarded, passed),
            shared_key,
        )

    return relaxation(init, update, names)


def _first(survives: jax.Array) -> jax.Array:
    return jnp.argmax(survives).astype(jnp.int32)


def _lacks_more(missing: Any, survives: jax.Array, me: jax.Array, names: tuple[str, ...]) -> Any:
    """Returns what the first survivor lacks and this worker does not, if it follows that one."""
    p = len(survives)
    of_first = mean(where(me == _first(survives), missing), names)
    return where(
        survives[me],
        jax.tree.map(jnp.zeros_like, missing),
        jax.tree.map(lambda theirs, own: theirs * p - own, of_first, missing),
    )


def _back(back: jax.Array, crashes: jax.Array, step: jax.Array, pause: int | None) -> jax.Array:
    """Returns the step at which a worker is back, if it crashes now."""
    left = _NEVER - step
    returns = step + (left if pause is None else jnp.minimum(jnp.int32(pause + 1), left))
    return jnp.where(crashes, returns, back)


def _table(when: Sequence[Crash]) -> Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]:
    """Returns `(step, p) -> (who crashes now, who is down)`, both bool [p]."""
    advice = "pass tuples (worker, step, step it is back at or None)"
    last: dict[int, float] = {}
    for crash in when:
        if not isinstance(crash, (tuple, list)) or len(crash) != 3:
            raise TypeError(f"when holds {crash!r}; {advice}")
        worker, step, back = crash
        whole("worker", worker, "index of a worker", least=0)
        whole("step", step, "step", least=0, most=_NEVER - 2)
        if back is not None:
            what = f"step after the crash at {step}"
            whole("back", back, what, least=step + 1, most=_NEVER - 1)
    for worker, step, back in sorted(when, key=lambda crash: crash[1]):
        if step < last.get(worker, 0):
            raise ValueError(
                f"when has worker {worker} crash at step {step}, but it is down; {advice}"
            )
        last[worker] = float("inf") if back is None else back
    rows = [(worker, step, _NEVER if back is None else back) for worker, step, back in when]
    of, start, end = np.asarray(rows or np.zeros((0, 3)), np.int32).T

    def plan(step, p):
        if of.max() >= p:
            raise ValueError(
                f"when has worker {of.max()} crash, but there are {p} workers, 0…{p - 1}"
            )
        mine = jnp.asarray(of[:, None] == np.arange(p))
        now, since = (jnp.asarray(start) == step)[:, None], (jnp.asarray(start) < step)
        away = (since & (step < jnp.asarray(end)))[:, None]
        return (mine & now).any(0), (mine & away).any(0)

    return plan
