"""A relaxation for narrow parameters: what their dtype rounds away is held in float32."""

from typing import Any, NamedTuple

import optax

from elastic_jax.order import relaxation
from elastic_jax.precision import plus, zeros
from elastic_jax.views import need, settle


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
        return AbsorbState(zeros(params))

    def update(updates, state, params=None, **extra):
        out, rest = settle(need(params, "absorb"), plus(state.remainder, updates))
        return out, AbsorbState(rest)

    return relaxation(init, update)
