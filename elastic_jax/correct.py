"""Corrections for stale gradients: smaller steps, compensated gradients, predicted views.

`by_staleness` and `compensate` stand *before* the base optimizer, in a worker's chain under
`asynchronous`, which tells every update how stale it is (`staleness`, in applied updates) and what
the server's parameters are now (`server_params`). `predict` is a relaxation like any other.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import number, whole
from elastic_jax.order import pass_through, relaxation
from elastic_jax.precision import minus, narrow, narrow_as, plus, wide, wide_dtype, zeros

# ---- smaller steps ----


class Rule(NamedTuple):
    """By what a gradient is multiplied, given its staleness."""

    name: str
    factor: Callable[[chex.Array], chex.Numeric]  # float [], applied updates -> float []


def inverse(power: chex.Numeric = 1.0) -> Rule:
    """`(1 + staleness)^-power`: the staler, the smaller. The power may be traced."""
    number("power", power, _above_0, "a finite number > 0")
    return Rule(f"inverse({power})", lambda late: (1 + late) ** -jnp.asarray(power, late.dtype))


def capped(limit: int) -> Rule:
    """`min(1, limit/staleness)`: the step size times the staleness never exceeds alpha·limit.

    Reference:
        Koloskova, Stich, Jaggi, "Sharper convergence guarantees for asynchronous SGD", 2022;
        Mishchenko, Bach, Even, Woodworth, "Asynchronous SGD beats minibatch SGD under arbitrary
        delays", 2022.
    """
    most = whole("limit", limit, "number of updates")
    return Rule(f"capped({most})", lambda late: jnp.minimum(1, most / jnp.maximum(late, 1)))


def dropped(limit: int) -> Rule:
    """1 where the staleness is below `limit`, else 0: what is too stale is thrown away.

    A gradient of which nothing is applied counts as an update, so that p workers of equal speed
    are p − 1 late for ever: with a limit below p, nothing but the first `limit` gradients would be
    applied. (In Ringmaster ASGD it does not count: `draw_trace(…, cap=limit)`.)
    """
    most = whole("limit", limit, "number of updates")
    return Rule(f"dropped({most})", lambda late: jnp.where(late < most, 1.0, 0.0))


def by_staleness(rule: Rule) -> optax.GradientTransformationExtraArgs:
    """Multiplies each gradient by a factor that depends on how stale it is.

    `g -> rule(staleness) g`. Before a base optimizer such as `optax.sgd` this is a step size that
    adapts to the delay: the update that is proposed is already the smaller one, so that no mass is
    held or lost.

    Args:
        rule: `inverse`, `capped`, `dropped`, or a `Rule` of your own.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose update needs `staleness`, a number of
        applied updates; `asynchronous` passes it.

    Raises:
        TypeError: if `rule` is no `Rule`; at an update that is not told its staleness.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> opt = optax.chain(by_staleness(capped(2)), optax.sgd(1.0))
        >>> view = jnp.zeros(1)
        >>> for late in (0, 2, 8):
        ...     update, _ = opt.update(jnp.ones(1), opt.init(view), view, staleness=late)
        ...     print(update)
        [-1.]
        [-1.]
        [-0.25]

    Reference:
        Bäckström, Papatriantafilou, Tsigas, "MindTheStep-AsyncPSGD", 2019.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule={rule!r} is no Rule; pass inverse(…), capped(…) or dropped(…)")

    def update(updates, state, params=None, *, staleness: Any = None, **extra):
        if staleness is None:
            raise TypeError(_untold("staleness"))

        def scaled(g):
            dtype = wide_dtype(g.dtype)
            factor = rule.factor(jnp.asarray(staleness, dtype))
            return narrow(wide(g) * jnp.asarray(factor, dtype), g.dtype)

        return jax.tree.map(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


# ---- compensated gradients ----


class CompensateState(NamedTuple):
    """State of `compensate`."""

    mean_square: Any  # tree [params], running mean of squared gradients; () where constant


def compensate(
    strength: chex.Numeric = 0.04,
    decay: chex.Numeric | None = None,
    *,
    epsilon: chex.Numeric = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    """Moves a stale gradient to where the parameters are now, to first order.

        g -> g + λ g⊙g⊙(x_now - v)

    since g⊙g stands in for the Hessian's diagonal. With a `decay`, λ is adapted coordinate by
    coordinate: `λ = strength/√(mean square of g + epsilon)`.

    Args:
        strength: λ, a number > 0; may be traced, as all numbers here.
        decay: of the running mean square, in [0, 1); None keeps λ constant.
        epsilon: added under the root, > 0.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose update needs `server_params` (x_now) and
        `params` (the view v); `asynchronous` passes them. (`optax.MultiSteps` passes nothing on as
        `gradient_transformation()`: put this outside.)

    Raises:
        TypeError: at an update that is not told the server's parameters.
        ValueError: for numbers out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> opt = compensate(1.0)
        >>> view, now = jnp.zeros(2), jnp.array([0.5, 0.0])
        >>> g, _ = opt.update(jnp.array([2.0, 2.0]), opt.init(view), view, server_params=now)
        >>> print(g)
        [4. 2.]

    Reference:
        Zheng et al., "Asynchronous SGD with delay compensation" (DC-ASGD), 2017.
    """
    number("strength", strength, _above_0, "a finite number > 0")
    number("epsilon", epsilon, _above_0, "a finite number > 0")
    if decay is not None:
        number("decay", decay, _below_1, "a number in [0, 1)")

    def init(params):
        return CompensateState(() if decay is None else zeros(params))

    def update(updates, state, params=None, *, server_params: Any = None, **extra):
        if params is None or server_params is None:
            raise TypeError(_untold("server_params"))
        now = jax.tree.map(  # optax.masked masks all but the extra arguments
            lambda g, x: g if isinstance(g, optax.MaskedNode) else x,
            updates,
            server_params,
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )
        g = jax.tree.map(wide, updates)
        scaled = jax.tree.map(lambda g: _times(strength, g), g)
        if decay is not None:
            kept, rate = decay, 1 - decay
            mean = jax.tree.map(
                lambda m, g: _times(kept, m) + _times(rate, g * g), state.mean_square, g
            )
            scaled = jax.tree.map(
                lambda c, m: c / jnp.sqrt(m + jnp.asarray(epsilon, m.dtype)), scaled, mean
            )
            state = CompensateState(mean)
        # g⊙g alone would be infinite for large gradients, and times 0 no number
        moved = jax.tree.map(
            lambda c, g, x, v: c * (g * (wide(x) - wide(v))), scaled, g, now, params
        )
        return narrow_as(plus(g, moved), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _untold(name: str) -> str:
    return (
        f"{name} is None: the update is not told it; use asynchronous, with this before the base "
        f"optimizer in a worker's chain, or pass {name}= to update"
    )


# ---- predicted views ----


class PredictState(NamedTuple):
    """State of `predict`."""

    trend: Any  # tree [params], running mean of the updates applied
    ahead: Any  # tree [params], x - v: the mass applied too early, negated

    def held(self) -> Any:
        """Returns minus what the view is ahead by."""
        return self.ahead


def predict(
    steps: chex.Numeric, momentum: chex.Numeric = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Shows workers where the parameters are expected to be, `steps` updates from now.

    With s a running mean of the updates, the view is `x + steps·s`:

        s⁺ = momentum s + (1 - momentum) u        v⁺ = v + u + steps (s⁺ - s)        h = -steps s

    The held mass is negative: updates are applied before they are made, and taken back as the real
    ones arrive. None is lost, and with `||u|| <= alpha M` the view is within `steps·alpha M` of
    where it would be. After `delay(τ)`, `predict(τ)` foresees what is in flight, from a trend that
    is τ steps old: it narrows the gap where updates last for 2τ steps, and widens it where they
    turn. B = 2τM for both; updates that turn after having long been alike attain it.

    Args:
        steps: how far to look ahead, a number >= 0. It and the momentum may be traced, and change.
        momentum: of the running mean, in [0, 1).

    Returns:
        A relaxation; `predict(0)` is `optax.identity()`.

    Raises:
        ValueError: for numbers out of range.

    Example:
        A constant gradient is foreseen: with it, a delay leaves no gap.

        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), ej.delay(3), predict(3, momentum=0.5))
        >>> view = jnp.zeros(1)
        >>> state = opt.init(view)
        >>> for _ in range(40):
        ...     update, state = opt.update(jnp.ones(1), state, view)
        ...     view = optax.apply_updates(view, update)
        >>> float(ej.elastic_gap(view, state))
        0.0

    Reference:
        Chen, Yang, Cheng, "Efficient and robust parallel DNN training through model parallelism on
        multi-GPU platform" (SpecTrain), 2018.
    """
    array = number("steps", steps, lambda n: 0 <= n < math.inf, "a finite number >= 0")
    number("momentum", momentum, _below_1, "a number in [0, 1)")
    if not array and steps == 0:
        return pass_through()

    def update(updates, state, params=None, **extra):
        trend = jax.tree.map(
            lambda s, u: s + _times(1 - momentum, wide(u) - s), state.trend, updates
        )
        total = plus(state.ahead, updates)  # what is held if nothing is applied
        out = narrow_as(jax.tree.map(lambda y, s: y + _times(steps, s), total, trend), updates)
        return out, PredictState(trend, minus(total, out))

    return relaxation(lambda params: PredictState(zeros(params), zeros(params)), update)


def _times(factor: chex.Numeric, x: jax.Array) -> jax.Array:
    return jnp.asarray(factor, x.dtype) * x


# ---- bad input ----


def _above_0(x: float) -> bool:
    return 0 < x < math.inf


def _below_1(x: float) -> bool:
    return 0 <= x < 1
