"""Local steps: workers train alone, and meet now and then.

Both transformations set the parameters (role `mix`): they stand last in a chain, and the update
that they return takes a view to where it goes. Between two meetings nothing crosses workers; all
take the same steps, so that all meet at once.

What a dtype narrower than float32 cannot express of a view is held in float32.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax import checks
from elastic_jax.exchange import AxisName, axis_names, device_axes, mean, varying
from elastic_jax.order import relaxation
from elastic_jax.precision import minus, plus, wide, zeros
from elastic_jax.views import need, no_remainder, only_narrow, settle, with_remainder


class AverageState(NamedTuple):
    """State of `average`."""

    since: chex.Array  # int32 [], steps since the workers met
    remainder: Any  # tree [params], float32; MaskedNode for leaves that are float32 or wider

    role = "mix"

    def held(self) -> Any:
        """Returns what rounding keeps out of narrow parameters."""
        return self.remainder


def average(axis_name: AxisName, every: int | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Averages the views at every H-th step: local SGD.

        v_i ← v_i + u_i        and at every H-th step, then        v_i ← mean_j v_j

    It holds nothing (but rounding remainders, for narrow parameters): `x = mean_i v_i`. A view is
    away from it by what it did alone: with updates `||u_i|| <= alpha M`, `B <= (H - 1) M` in the
    mean square over workers, and `2 (H - 1) M (p - 1)/p` for each of p workers; both are attained.
    Where f is convex and `alpha L <= 2` only noise drives workers apart: in the mean square
    `B <= σ √((H - 1) (p - 1)/p)`.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        every: H, in steps; an int >= 1, or a JAX integer scalar, which may be traced and may change
            (a schedule in `optax.inject_hyperparams`): workers meet once H steps have passed since
            they met.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose update needs `params`, and sends nothing at
        steps at which the workers do not meet. `every=1` is synchronous SGD.

    Raises:
        TypeError: for an H that is no int.
        ValueError: for an H below 1, a traced one that is no integer scalar, or a bad axis name.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), average("w", every=2))
        >>> step = ej.worker_step(lambda x, slope: jnp.sum(x * slope), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states = run.init(jnp.zeros(()))
        >>> for _ in range(3):
        ...     states, _ = run.step(states, jnp.array([-1.0, -3.0]))
        ...     print(states.params)
        [1. 3.]
        [4. 4.]
        [5. 7.]

    Reference:
        Stich, "Local SGD converges fast and communicates little", 2019.
    """
    names = axis_names(axis_name)
    array = checks.scalar("every", every, lambda steps: steps >= 1, "an int >= 1", whole=True)
    period = jnp.asarray(every, jnp.int32) if array else checks.steps("every", every, 1)
    always = not array and period == 1

    def init(params):
        return AverageState(jnp.zeros((), jnp.int32), no_remainder(params))

    def update(updates, state, params=None, **extra):
        views, treedef = jax.tree.flatten(need(params, "average"))
        moves = jax.tree.map(wide, treedef.flatten_up_to(updates))
        moves = with_remainder(moves, treedef.flatten_up_to(state.remainder))

        def meet(views, moves):
            views = jax.tree.map(wide, views)
            return minus(mean(plus(views, moves), names), views)

        since = state.since + 1
        due = since >= period
        if always:
            moves = varying(meet(views, moves), names)
        else:
            moves = _when(due, names, meet, lambda views, moves: moves, views, moves)
        out, rest = settle(views, moves)
        rest = only_narrow(views, rest)
        since = jnp.where(due, 0, since)
        return treedef.unflatten(out), AverageState(since, treedef.unflatten(rest))

    return relaxation(init, update, names)


# ---- DiLoCo ----


class DilocoState(NamedTuple):
    """State of `diloco`; all but `progress`, `pending` and `remainder` is alike on all workers."""

    phase: chex.Array  # int32 [], steps so far, modulo H
    anchor: Any  # tree [params], float32 or wider: θ, from which this round starts
    momentum: Any  # tree [params], float32 or wider: m, in the direction of progress
    progress: Any  # tree [params], float32 or wider: d, the sum of updates in this round
    pending: Any  # tree [params], float32 or wider: how far the anchor is ahead; or MaskedNode
    remainder: Any  # tree [params], float32; MaskedNode for leaves that are float32 or wider
    gain: chex.Array  # float [], G
    coast: chex.Array  # float [], the weight of m in x

    role = "mix"

    def held(self) -> Any:
        """Returns `(G - 1) d + c m`, and what has not reached the view yet."""

        def ahead(d, m):
            # In a stack of workers, G and c have its axes only.
            ones = (1,) * (d.ndim - self.gain.ndim)
            gain, coast = (x.reshape(x.shape + ones) for x in (self.gain, self.coast))
            return (gain - 1).astype(d.dtype) * d + coast.astype(d.dtype) * m

        mass, treedef = jax.tree.flatten(jax.tree.map(ahead, self.progress, self.momentum))
        for more in (self.pending, self.remainder):
            mass = with_remainder(mass, treedef.flatten_up_to(more))
        return treedef.unflatten(mass)


def diloco(
    axis_name: AxisName,
    every: int,
    learning_rate: chex.Numeric = 0.7,
    momentum: chex.Numeric = 0.9,
    *,
    nesterov: bool = True,
    fragments: Any = 1,
    delay: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains alone for H steps, then moves a common anchor by momentum SGD on what was achieved.

    A round starts from the anchor θ. With the progress `d_i = v_i - θ` of H inner steps, at its end

        q = mean_i d_i      m⁺ = μ m + q      θ⁺ = θ + η (q + μ m⁺)      v_i⁺ = θ⁺

    (without Nesterov `θ⁺ = θ + η m⁺`). Nothing of `q` is lost, but momentum spreads it over rounds
    and multiplies it by the gain `G = η/(1 - μ)` in all. The global iterate is where the anchor
    would come to rest if the workers stopped,

        x = θ + G mean_i d_i + c m        c = G μ²  (without Nesterov c = G μ)

    for at the end of a round the terms in q and m of `θ⁺ + c m⁺` are `η (1 + μ) + c = G` and
    `(η μ + c) μ = c` (without Nesterov `η + c = G` and `(η + c) μ = c`). So `x⁺ = x + G mean_i u_i`
    at every step, inner and outer; held is `h_i = (G - 1) d_i + c m`. An outer optimizer that is
    not linear in q, such as Adam, has no such x: what a step is worth would depend on later ones.

    With one fragment, updates `||u_i|| <= alpha M` and p workers, for each of them,

        B <= M ((|G/p - 1| + G (p - 1)/p) (H - 1 + delay) + c H/(1 - μ))

    which is attained; several fragments, at different points of their rounds, may exceed it a
    little. Mind that x moves with the step size `alpha G`.

    Args:
        axis_name: the workers' axis, or several, innermost first.
        every: H, in steps; an int >= 1.
        learning_rate: η > 0, of the outer optimizer. It and μ may be traced, but must stay as they
            are during a run: x is defined by them.
        momentum: μ, in [0, 1).
        nesterov: whether the outer momentum is Nesterov's.
        fragments: parts of the parameters that meet in turn, each every H steps: a number of them,
            of about equal size, made of whole leaves; or a tree of ints (or a prefix of the
            parameters' tree) that says to which fragment a leaf belongs. Of K fragments, the k-th
            ends its rounds when `kH//K` (rounded down) steps have passed modulo H, so that all but
            the first have a shorter first round. There may be more fragments than leaves.
        delay: how many steps, in 0…H, a meeting's result needs to arrive. Workers go on meanwhile;
            what they do counts for the next round, and is kept: `v_i⁺ = θ⁺ + (v_i - v_i at the end
            of the round)`. Streaming DiLoCo instead mixes v_i with θ⁺, and gives up a part of it.
            (This says when a result is used. Whether a machine works meanwhile is its compiler's.)

    Returns:
        An `optax.GradientTransformationExtraArgs` whose update needs `params`. It keeps three
        trees in float32 or wider (four with a delay), sends one of them every H steps, and nothing
        at other steps. `η=1, μ=0` is `average`.

    Raises:
        TypeError: for an H, a delay or fragments that are no ints.
        ValueError: for numbers out of range, or a bad axis name; from `init`, for fragments that
            are no prefix of the parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), diloco("w", 2, learning_rate=0.5, momentum=0.5))
        >>> step = ej.worker_step(lambda x, slope: jnp.sum(x * slope), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states = run.init(jnp.zeros(()))
        >>> for _ in range(3):  # G = 1: x moves by the mean of the updates, 2
        ...     states, _ = run.step(states, jnp.array([-1.0, -3.0]))
        ...     print(states.params, (states.params + states.opt_state[1].held()).mean())
        [1. 3.] 2.0
        [3. 3.] 4.0
        [4. 6.] 6.0

    Reference:
        Douillard et al., "DiLoCo: Distributed low-communication training of language models", 2023;
        Douillard et al., "Streaming DiLoCo with overlapping communication", 2025.
    """
    names = axis_names(axis_name)
    every, delay = checks.steps("every", every, 1), checks.steps("delay", delay, 0)
    if delay > every:
        raise ValueError(f"delay={delay} is more than every={every}; pass an int in 0…{every}")
    checks.number("learning_rate", learning_rate, lambda x: 0 < x < math.inf, "a finite number > 0")
    checks.number("momentum", momentum, lambda x: 0 <= x < 1, "a number in [0, 1)")
    checks.flag("nesterov", nesterov)
    _check_fragments(fragments)
    power = momentum * momentum if nesterov else momentum
    gain = learning_rate / (1 - momentum)
    coast = gain * power
    # θ⁺ = θ + of_mean q + of_momentum m
    of_mean = learning_rate * (1 + momentum) if nesterov else learning_rate
    of_momentum = learning_rate * power

    def scalars():
        return tuple(jnp.asarray(x, jnp.result_type(float)) for x in (gain, coast))

    def init(params):
        _parts(fragments, params)
        return DilocoState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(lambda x: jnp.copy(wide(x)), params),
            zeros(params),
            zeros(params),
            zeros(params) if delay else jax.tree.map(lambda x: optax.MaskedNode(), params),
            no_remainder(params),
            *scalars(),
        )

    def meet(progress, anchors, momenta, pending):
        achieved = mean(progress, names)
        steps = [
            _times(of_mean, q) + _times(of_momentum, m)
            for q, m in zip(achieved, momenta, strict=True)
        ]
        return (
            [jnp.zeros_like(d) for d in progress],
            plus(anchors, steps),
            [_times(momentum, m) + q for q, m in zip(achieved, momenta, strict=True)],
            minus(steps, progress) if delay else pending,
        )

    def stay(*trees):
        return trees

    def update(updates, state, params=None, **extra):
        views, treedef = jax.tree.flatten(need(params, "diloco"))
        columns = [
            treedef.flatten_up_to(tree)
            for tree in (state.progress, state.anchor, state.momentum, state.pending)
        ]
        progress, anchors, _, pending = columns
        progress[:] = plus(progress, treedef.flatten_up_to(updates))
        phase = (state.phase + 1) % every
        part_of, parts = _parts(fragments, params)
        for part in sorted(set(part_of)):
            end = part * every // parts % every
            mine = [i for i, its in enumerate(part_of) if its == part]
            if delay:
                arrived = phase == (end + delay) % every
                for i in mine:
                    pending[i] = jnp.where(arrived, jnp.zeros_like(pending[i]), pending[i])
            trees = [[column[i] for i in mine] for column in columns]
            done = _when(phase == end, names, meet, stay, *trees)
            for column, leaves in zip(columns, done, strict=True):
                for i, leaf in zip(mine, leaves, strict=True):
                    column[i] = leaf
        places = plus(anchors, progress)
        places = minus(places, pending) if delay else places
        out, rest = settle(views, minus(places, views))
        rest = only_narrow(views, rest)
        progress, anchor, momenta, pending, rest = map(treedef.unflatten, (*columns, rest))
        new_state = DilocoState(phase, anchor, momenta, progress, pending, rest, *scalars())
        return treedef.unflatten(out), varying(new_state, names)

    return relaxation(init, update, names)


def _times(factor: chex.Numeric, x: jax.Array) -> jax.Array:
    return jnp.asarray(factor, x.dtype) * x


def _parts(fragments: Any, params: Any) -> tuple[list[int], int]:
    """Returns each leaf's fragment, and how many there are."""
    if not isinstance(fragments, numbers.Integral):
        try:
            each = jax.tree.map(lambda n, part: jax.tree.map(lambda _: n, part), fragments, params)
        except ValueError as error:
            raise ValueError(
                f"fragments={fragments} is no tree (or prefix) of the parameters'"
            ) from error
        return [int(part) for part in jax.tree.leaves(each)], int(
            max(jax.tree.leaves(fragments))
        ) + 1
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    part_of, full = [0] * len(sizes), [0] * int(fragments)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # the largest first
        part_of[i] = full.index(min(full))
        full[part_of[i]] += sizes[i]
    return part_of, len(full)


# ---- meeting, and rounding ----


def _when(
    due: chex.Array,
    names: tuple[str, ...],
    meet: Callable[..., Any],
    stay: Callable[..., Any],
    *trees: Any,
) -> Any:
    """Runs `meet`, which crosses workers, where it is due, and `stay` elsewhere.

    All workers count alike. A maximum over the axes of `jax.vmap` tells it so, and the branch can
    be skipped; devices need not be told, and it would cost them a message at every step.
    """
    for name in names:
        if name not in device_axes(names):
            due = jax.lax.pmax(due.astype(jnp.int32), name) > 0
    branches = (lambda *args, way=way: varying(way(*args), names) for way in (meet, stay))
    return jax.lax.cond(due, *branches, *varying(trees, names))


# ---- bad input ----


def _check_fragments(fragments: Any) -> None:
    alone = isinstance(fragments, numbers.Integral)
    advice = "pass an int >= 1, or a tree of ints >= 0 shaped like the parameters"
    parts = jax.tree.leaves(fragments)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, numbers.Integral):
            raise TypeError(f"fragments={fragments!r} holds {part!r}; {advice}")
        if part < alone:
            raise ValueError(f"fragments={fragments!r} is out of range; {advice}")
    if not parts:
        raise TypeError(f"fragments={fragments!r} holds no int; {advice}")
