"""Compression of updates: with error feedback, without it, and by an estimator.

All of these come after the base optimizer and act on updates of the parameters. Sums are kept in
float32 (or wider); what is compressed is first rounded to the updates' dtype, the one in which it
travels. Nothing is lost to rounding: what a narrower message cannot express stays in the residual.

With an `axis_name` the messages are averaged over the workers, and between devices it is payloads
that travel (`elastic_jax.wire` says which way, and how many bytes); with some compressors workers
then agree on what they send (`low_rank`), or round their mean (a narrow `dtype`). An `exchange` of
your own sees decompressed messages.
"""

import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import check_seed
from elastic_jax.exchange import AllMeanState, AxisName, all_mean, axis_names
from elastic_jax.order import pass_through, relaxation, relaxed_states
from elastic_jax.precision import minus, narrow_as, plus, wide, zeros
from elastic_jax.types import Compressor
from elastic_jax.wire import Sender, new_sender, send


def _check(compressor: Any, axis_name: Any, exchange: Any, seed: Any) -> None:
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"compressor={compressor!r} is no Compressor; pass one, for example top_k(0.01)"
        )
    if axis_name is not None and exchange is not None:
        raise ValueError(
            f"axis_name={axis_name!r} averages already, as exchange=all_mean({axis_name!r}) would; "
            "pass one of axis_name and exchange, not both"
        )
    check_seed(seed)
    if exchange is not None:
        if not isinstance(exchange, optax.GradientTransformation):
            raise TypeError(f"exchange={exchange!r} is no transformation; pass all_mean(axis_name)")
        parts = relaxed_states(jax.eval_shape(exchange.init, jnp.zeros(1)))
        if not any(getattr(part.state, "role", "") in ("exchange", "mix") for part in parts):
            raise ValueError(
                "exchange does not average over workers; pass all_mean(axis_name), and put other "
                "transformations into the chain"
            )


def _transformation(
    init: optax.TransformInitFn,
    update: Callable[[Any, Any, Callable[..., Any]], tuple[Any, Any]],
    compressor: Compressor,
    axis_name: AxisName | None,
    exchange: optax.GradientTransformation | None,
) -> optax.GradientTransformationExtraArgs:
    """Makes a relaxation whose messages are averaged on the wire, by an exchange, or not at all.

    `update(updates, state, say)` is given `say(sender, tree) -> (message, average, sender)`.
    """
    names = None if axis_name is None else axis_names(axis_name)
    say = functools.partial(send, compressor, names)

    def local(updates, state, params=None, **extra):
        return update(updates, state, say)

    def crossing(updates, state, params=None, **extra):
        own, mark = state
        new_updates, own = update(updates, own, say)
        return new_updates, (own, mark)

    if names is not None:
        return relaxation(lambda params: (init(params), AllMeanState()), crossing, names)
    alone = relaxation(init, local)
    return alone if exchange is None else optax.chain(alone, exchange)


def _exchange_only(
    axis_name: AxisName | None, exchange: optax.GradientTransformation | None
) -> optax.GradientTransformationExtraArgs:
    if axis_name is not None:
        exchange = all_mean(axis_name)
    return pass_through() if exchange is None else optax.with_extra_args_support(exchange)


# ---- without feedback ----


class CompressState(NamedTuple):
    """State of `compress`, which loses mass."""

    dropped: Any  # tree [params], everything dropped so far
    sender: Sender

    def lost(self) -> Any:
        """Returns the sum of all that compression dropped."""
        return self.dropped


def compress(
    compressor: Compressor,
    axis_name: AxisName | None = None,
    exchange: optax.GradientTransformation | None = None,
    *,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Compresses updates and drops the rest: `u -> C(u)`. It loses mass, and counts what it loses.

    With an unbiased compressor the views stay at the global iterate of the compressed updates, and
    only their variance grows. With a biased one such as `top_k` what is dropped may be missing for
    good; `error_feedback` keeps it.

    Args:
        compressor: what crosses the wire.
        axis_name: the workers' axis, or several, innermost first: messages are averaged over it,
            as by `exchange=all_mean(axis_name)`, but between devices their payloads travel.
        exchange: another way to average messages, decompressed; None leaves them on their worker.
        seed: of a compressor that draws; see `fold_in_worker`.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose state's `lost()` is everything dropped.
        `compress(identity())` is `optax.identity()` (or the exchange).

    Raises:
        TypeError: if `compressor` is no `Compressor` or `exchange` no transformation.
        ValueError: if both `axis_name` and `exchange` are given.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), ej.compress(ej.top_k(1)))
        >>> view = jnp.zeros(2)
        >>> update, state = opt.update(jnp.array([3.0, 1.0]), opt.init(view), view)
        >>> print(update, ej.lost(state, view))
        [-3.  0.] [ 0. -1.]
    """
    _check(compressor, axis_name, exchange, seed)
    if compressor.name == "identity":
        return _exchange_only(axis_name, exchange)

    def init(params):
        return CompressState(zeros(params), new_sender(compressor, seed, params))

    def update(updates, state, say):
        message, average, sender = say(state.sender, updates)
        rest = jax.tree.map(lambda u, m: wide(u) - wide(m), updates, message)
        return narrow_as(average, updates), CompressState(plus(state.dropped, rest), sender)

    return _transformation(init, update, compressor, axis_name, exchange)


# ---- with feedback ----


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`."""

    residual: Any  # tree [params], float32 or wider
    sender: Sender

    def held(self) -> Any:
        """Returns the residual."""
        return self.residual


class DecayedErrorFeedbackState(NamedTuple):
    """State of `error_feedback` with a decay below 1, which loses mass."""

    residual: Any  # tree [params], float32 or wider
    sender: Sender
    dropped: Any  # tree [params], all that decayed so far

    def held(self) -> Any:
        """Returns the residual."""
        return self.residual

    def lost(self) -> Any:
        """Returns the sum of all that decayed."""
        return self.dropped


def error_feedback(
    compressor: Compressor,
    axis_name: AxisName | None = None,
    exchange: optax.GradientTransformation | None = None,
    *,
    decay: chex.Numeric = 1.0,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Compresses updates and adds what was dropped to the next one.

        y = u + h        m = C(y)        h⁺ = y - m        returns m

    `m + h⁺ = u + h`: no mass is lost. For a contraction gamma, `||h|| <= alpha M β` with
    `β = √gamma/(1-√gamma)`, hence the elastic constant `B = M β`.

    Args:
        compressor: a contraction, for example `top_k(0.01)`.
        axis_name: the workers' axis, or several, innermost first: messages are averaged over it,
            as by `exchange=all_mean(axis_name)`, but between devices their payloads travel.
        exchange: another way to average messages, decompressed; None leaves them on their worker.
        decay: what part of the residual is kept each step, in (0, 1]; may be traced. Below 1 the
            rest is lost, and the state's `lost()` says how much.
        seed: of a compressor that draws; see `fold_in_worker`.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose state's `held()` is the residual, float32
        or wider. `error_feedback(identity())` is `optax.identity()` (or the exchange).

    Raises:
        TypeError: if `compressor` is no `Compressor` or `exchange` no transformation.
        ValueError: for a decay outside (0, 1], or if both `axis_name` and `exchange` are given.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), ej.error_feedback(ej.top_k(1)))
        >>> view = jnp.zeros(2)
        >>> state = opt.init(view)
        >>> for _ in range(2):
        ...     update, state = opt.update(jnp.array([3.0, 2.0]), state, view)
        >>> print(update, ej.held(state, view))
        [ 0. -4.] [-3.  0.]

    Reference:
        Seide et al., "1-bit SGD", 2014; Karimireddy, Rebjock, Stich, Jaggi, "Error feedback fixes
        SignSGD and other gradient compression schemes", 2019.
    """
    _check(compressor, axis_name, exchange, seed)
    traced = isinstance(decay, jax.Array)
    decays = traced or decay != 1
    if decays and not traced and not (isinstance(decay, numbers.Real) and 0 < decay < 1):
        raise ValueError(f"decay={decay!r} is out of range; pass a number in (0, 1], 1 to keep all")
    if compressor.name == "identity" and not traced:
        return _exchange_only(axis_name, exchange)

    def init(params):
        sender = new_sender(compressor, seed, params)
        if decays:
            return DecayedErrorFeedbackState(zeros(params), sender, zeros(params))
        return ErrorFeedbackState(zeros(params), sender)

    def update(updates, state, say):
        y = plus(state.residual, updates)
        message, average, sender = say(state.sender, narrow_as(y, updates))
        sent = narrow_as(average, updates)
        rest = minus(y, message)
        # What a narrow dtype rounds off the mean is held too, by all workers alike.
        rest = jax.tree.map(
            lambda r, a, s: r if a.dtype == s.dtype else r + (wide(a) - wide(s)).astype(r.dtype),
            rest,
            average,
            sent,
        )
        if not decays:
            return sent, ErrorFeedbackState(rest, sender)
        kept = jax.tree.map(lambda r: r * jnp.asarray(decay).astype(r.dtype), rest)
        dropped = plus(state.dropped, minus(rest, kept))
        return sent, DecayedErrorFeedbackState(kept, sender, dropped)

    return _transformation(init, update, compressor, axis_name, exchange)


# ---- an estimator ----


class Ef21State(NamedTuple):
    """State of `ef21`, which conserves no mass."""

    estimate: Any  # tree [params], the estimate g of the worker's update
    sender: Sender
    missed: Any  # tree [params], sum of u - g so far
    average: Any  # tree [params], the mean of all workers' estimates; () without an axis_name

    def lost(self) -> Any:
        """Returns the (signed) sum of all updates less what was applied for them."""
        return self.missed


def ef21(
    compressor: Compressor,
    axis_name: AxisName | None = None,
    exchange: optax.GradientTransformation | None = None,
    *,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Applies a running estimate of the update, corrected by compressed differences.

        g⁺ = g + C(u - g)        returns g⁺, or the mean of all workers' g⁺

    An estimator, not a relaxation: `u - g⁺` is neither held nor applied later. Its state's
    `lost()` is the running sum of those differences. Workers start from `g = 0`.

    Args:
        compressor: a contraction, for example `top_k(0.01)`.
        axis_name: the workers' axis, or several, innermost first: every worker keeps the mean of
            all estimates too, and adds the mean of the messages; payloads travel between devices.
        exchange: another way to average the estimates; None leaves them on their worker.
        seed: of a compressor that draws; see `fold_in_worker`.

    Returns:
        An `optax.GradientTransformationExtraArgs`. `ef21(identity())` is `optax.identity()` (or
        the exchange).

    Raises:
        TypeError: if `compressor` is no `Compressor` or `exchange` no transformation.
        ValueError: if both `axis_name` and `exchange` are given.

    Reference:
        Richtárik, Sokolov, Fatkhullin, "EF21", 2021.
    """
    _check(compressor, axis_name, exchange, seed)
    if compressor.name == "identity":
        return _exchange_only(axis_name, exchange)

    def init(params):
        average = () if axis_name is None else zeros(params)
        own = new_sender(compressor, seed, params)
        return Ef21State(zeros(params), own, zeros(params), average)

    def update(updates, state, say):
        away = jax.tree.map(lambda u, g: u.astype(g.dtype) - g, updates, state.estimate)
        message, change, sender = say(state.sender, narrow_as(away, updates))
        estimate = plus(state.estimate, message)
        average = estimate if axis_name is None else plus(state.average, change)
        applied = narrow_as(average, updates)
        rest = jax.tree.map(lambda u, g: wide(u) - g, updates, estimate)
        rounding = jax.tree.map(lambda g, a: g - wide(a), average, applied)
        missed = plus(state.missed, plus(rest, rounding))
        return applied, Ef21State(estimate, sender, missed, () if axis_name is None else average)

    return _transformation(init, update, compressor, axis_name, exchange)
