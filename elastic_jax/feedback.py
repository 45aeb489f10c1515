"""Compression of updates: with error feedback, without it, and by an estimator.

All of these come after the base optimizer and act on updates of the parameters. Sums are kept in
float32 (or wider) and messages in the updates' dtype, so that nothing is lost to rounding: what a
narrower message cannot express stays in the residual.
"""

import numbers
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.exchange import AxisName, all_mean
from elastic_jax.order import check_seed, relaxation, relaxed_states
from elastic_jax.precision import add, narrow, wide
from elastic_jax.types import Compressor


class _Sender(NamedTuple):
    """A compressor's own memory and its worker's randomness."""

    state: Any
    worker_key: Any  # key data [2] uint32; () where the compressor is deterministic


def _sender(compressor: Compressor, seed: int, params: optax.Params) -> _Sender:
    key, start = jax.random.split(jax.random.key(seed))
    data = jax.random.key_data(key)
    return _Sender(compressor.init(start, params), () if compressor.deterministic else data)


def _send(compressor: Compressor, sender: _Sender, tree: Any) -> tuple[Any, _Sender]:
    """Compresses a tree and advances the sender."""
    data = sender.worker_key
    if compressor.deterministic:
        key = jax.random.key(0)  # ignored
    else:
        carry, key = jax.random.split(jax.random.wrap_key_data(data))
        data = jax.random.key_data(carry)
    sent, state = compressor.dense(key, sender.state, tree)
    return sent, _Sender(state, data)


def _zeros(params: optax.Params) -> Any:
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)


def _plus(tree: Any, more: Any) -> Any:
    return jax.tree.map(add, tree, more)


def _minus(tree: Any, less: Any) -> Any:
    return jax.tree.map(lambda y, m: add(y, -m), tree, less)


def _narrow(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda y, u: narrow(y, u.dtype), tree, like)


def _check(compressor: Any, axis_name: Any, exchange: Any, seed: Any) -> None:
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"compressor={compressor!r} is no Compressor; pass one, for example top_k(0.01)"
        )
    if axis_name is not None and exchange is not None:
        raise ValueError(
            f"axis_name={axis_name!r} is short for exchange=all_mean({axis_name!r}); pass one of "
            "axis_name and exchange, not both"
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


def _then_exchange(
    local: optax.GradientTransformation | None,
    axis_name: AxisName | None,
    exchange: optax.GradientTransformation | None,
) -> optax.GradientTransformationExtraArgs:
    if axis_name is not None:
        exchange = all_mean(axis_name)
    steps = [step for step in (local, exchange) if step is not None]
    if not steps:
        return optax.with_extra_args_support(optax.identity())
    return optax.chain(*steps) if len(steps) > 1 else optax.with_extra_args_support(steps[0])


# ---- without feedback ----


class CompressState(NamedTuple):
    """State of `compress`, which loses mass."""

    dropped: Any  # tree [params], everything dropped so far
    sender: _Sender

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
        axis_name: the workers' axis; short for `exchange=all_mean(axis_name)`.
        exchange: how the workers' messages are averaged; None leaves them on their worker.
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
        return _then_exchange(None, axis_name, exchange)

    def init(params):
        return CompressState(_zeros(params), _sender(compressor, seed, params))

    def update(updates, state, params=None, **extra):
        sent, sender = _send(compressor, state.sender, updates)
        rest = jax.tree.map(lambda u, m: wide(u) - wide(m), updates, sent)
        return sent, CompressState(_plus(state.dropped, rest), sender)

    return _then_exchange(relaxation(init, update), axis_name, exchange)


# ---- with feedback ----


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`."""

    residual: Any  # tree [params], float32 or wider
    sender: _Sender

    def held(self) -> Any:
        """Returns the residual."""
        return self.residual


class DecayedErrorFeedbackState(NamedTuple):
    """State of `error_feedback` with a decay below 1, which loses mass."""

    residual: Any  # tree [params], float32 or wider
    sender: _Sender
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
        axis_name: the workers' axis; short for `exchange=all_mean(axis_name)`.
        exchange: how the workers' messages are averaged; None leaves them on their worker.
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
        return _then_exchange(None, axis_name, exchange)

    def init(params):
        sender = _sender(compressor, seed, params)
        if decays:
            return DecayedErrorFeedbackState(_zeros(params), sender, _zeros(params))
        return ErrorFeedbackState(_zeros(params), sender)

    def update(updates, state, params=None, **extra):
        y = _plus(state.residual, updates)
        sent, sender = _send(compressor, state.sender, y)
        sent = _narrow(sent, updates)
        rest = _minus(y, sent)
        if not decays:
            return sent, ErrorFeedbackState(rest, sender)
        kept = jax.tree.map(lambda r: r * jnp.asarray(decay).astype(r.dtype), rest)
        dropped = _plus(state.dropped, _minus(rest, kept))
        return sent, DecayedErrorFeedbackState(kept, sender, dropped)

    return _then_exchange(relaxation(init, update), axis_name, exchange)


# ---- an estimator ----


class Ef21State(NamedTuple):
    """State of `ef21`, which conserves no mass."""

    estimate: Any  # tree [params], the estimate g of the worker's update
    sender: _Sender
    missed: Any  # tree [params], sum of u - g so far

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

        g⁺ = g + C(u - g)        returns g⁺

    An estimator, not a relaxation: `u - g⁺` is neither held nor applied later. Its state's
    `lost()` is the running sum of those differences. Workers start from `g = 0`.

    Args:
        compressor: a contraction, for example `top_k(0.01)`.
        axis_name: the workers' axis; short for `exchange=all_mean(axis_name)`.
        exchange: how the workers' estimates are averaged; None leaves them on their worker.
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
        return _then_exchange(None, axis_name, exchange)

    def init(params):
        return Ef21State(_zeros(params), _sender(compressor, seed, params), _zeros(params))

    def update(updates, state, params=None, **extra):
        away = jax.tree.map(lambda u, g: u.astype(g.dtype) - g, updates, state.estimate)
        sent, sender = _send(compressor, state.sender, away)
        estimate = _plus(state.estimate, sent)
        applied = _narrow(estimate, updates)
        rest = jax.tree.map(lambda u, g: wide(u) - wide(g), updates, applied)
        missed = _plus(state.missed, rest)
        return applied, Ef21State(estimate, sender, missed)

    return _then_exchange(relaxation(init, update), axis_name, exchange)


# ---- narrow parameters ----


class AbsorbState(NamedTuple):
    """State of `absorb`."""

    remainder: Any  # tree [params], float32 or wider

    role = "absorb"

    def held(self) -> Any:
        """Returns what rounding has kept out of the parameters so far."""
        return self.remainder


def absorb() -> optax.GradientTransformationExtraArgs:
    """Holds in float32 what parameters of a narrower dtype round away.

    `optax.apply_updates` rounds `v + u` to the dtype of v: in bfloat16 an update smaller than
    |v|/512 vanishes whole. Put last in a chain, `absorb` returns what will really be applied,

        y = u + h        v⁺ = round(v + round(y))        h⁺ = y - (v⁺ - v)        returns round(y)

    so that `v + h` moves by u exactly (in float32). For float32 parameters it holds float32's own
    rounding remainders, as far as they can be seen in float32.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its update needs `params`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> view = jnp.ones(1, jnp.bfloat16)
        >>> opt = optax.chain(optax.sgd(1.0), ej.absorb())
        >>> state = opt.init(view)
        >>> for _ in range(4):
        ...     update, state = opt.update(jnp.full(1, 0.001, jnp.bfloat16), state, view)
        ...     view = optax.apply_updates(view, update)
        >>> print(view, ej.virtual_params(view, state))
        [0.996094] [0.9960022]
    """

    def init(params):
        return AbsorbState(_zeros(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("params is None: absorb needs the view; pass params to update")
        y = _plus(state.remainder, updates)
        out = _narrow(y, params)

        def moved(v, u):
            """How far optax.apply_updates will move v, rounding as it does."""
            return wide(narrow(wide(v) + wide(u), v.dtype)) - wide(v)

        return out, AbsorbState(_minus(y, jax.tree.map(moved, params, out)))

    return relaxation(init, update)
