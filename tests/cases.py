"""The table of cases: a relaxation that stands here is under every law.

Each case makes a transformation for a given tree of parameters. What is declared of it is tested:
whether mass is lost, and the elastic constant B (in units of M) where the theory has one.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elastic_jax as ej
from elastic_jax import absent, gossip, graphs, links, local, schedulers
from elastic_jax.arrivals import backward

AXIS = "workers"
ARRIVALS = backward(compute=1.0, bandwidth=100.0, latency=0.1, spread=0.5)


class Case(NamedTuple):
    """One relaxation, as it may stand in a chain."""

    name: str
    make: Callable[[Any], optax.GradientTransformation]  # params -> transformation
    loses: bool = False  # whether it loses mass (and must say so)
    bound: Callable[[Any], float] | None = None  # params -> B/M for one worker and updates <= M
    drifts: bool = False  # law 2 does not hold for it
    gain: float = 1.0  # by how many times mean_i u_i the global iterate moves
    alike: bool = True  # of an exchange: whether all workers apply the same update


COMPRESSORS = {
    "top_k(0.25)": ej.top_k(0.25),
    "top_k(2)": ej.top_k(2),
    "top_k(0.25, tree)": ej.top_k(0.25, scope="tree"),
    "block_top_k(2, 3)": ej.block_top_k(2, 3),
    "threshold": ej.threshold(0.01),
    "threshold, small": ej.threshold(0.01, capacity=0.4),
    "random_k": ej.random_k(0.5),
    "random_k, shared": ej.random_k(0.5, shared_seed=3),
    "random_k, unbiased": ej.random_k(0.5, unbiased=True),
    "sign": ej.sign(),
    "quantize(2)": ej.quantize(2),
    "quantize(4)": ej.quantize(4),
    "quantize(8)": ej.quantize(8),
    "natural": ej.natural(),
    "low_rank(1)": ej.low_rank(1),
    "identity": ej.identity(),
    "top_k(0.25), bfloat16": ej.top_k(0.25, dtype="bfloat16"),
    "identity, bfloat16": ej.identity("bfloat16"),
}


def contraction(compressor: ej.Compressor) -> Callable[[Any], float] | None:
    """The contraction lemma: B = M √gamma/(1-√gamma)."""

    def bound(params):
        root = compressor.gamma(params) ** 0.5
        return root / (1 - root)

    return bound


def _feedback(name: str) -> Case:
    compressor = COMPRESSORS[name]
    surely = compressor.deterministic and name not in ("threshold", "threshold, small")
    bounded = surely and not name.startswith("low_rank")
    return Case(
        f"error_feedback({name})",
        lambda params: ej.error_feedback(compressor),
        bound=contraction(compressor) if bounded else None,
        drifts=name == "threshold, small",  # what comes first by index takes all the room
    )


FIT_FOR_FEEDBACK = [  # contractions: their residual stays bounded
    name for name in COMPRESSORS if name not in ("random_k, unbiased", "quantize(2)", "quantize(4)")
]

LOCAL = [
    Case("delay(0)", lambda params: ej.delay(0), bound=lambda params: 0.0),
    Case("delay(1)", lambda params: ej.delay(1), bound=lambda params: 1.0),
    Case("delay(5)", lambda params: ej.delay(5), bound=lambda params: 5.0),
    Case(
        "delay(traced 3)",
        lambda params: ej.delay(jnp.asarray(3), longest=4),
        bound=lambda params: 3.0,
    ),
    Case(
        "delay(per_leaf)",
        lambda params: ej.delay(
            ej.delays.per_leaf(
                jax.tree.unflatten(
                    jax.tree.structure(params), np.arange(len(jax.tree.leaves(params))).tolist()
                )
            )
        ),
        bound=lambda params: len(jax.tree.leaves(params)) - 1.0,
    ),
    Case(
        "delay(uniform)", lambda params: ej.delay(ej.delays.uniform(1, 4)), bound=lambda params: 4.0
    ),
    Case(
        "delay(geometric)",
        lambda params: ej.delay(ej.delays.geometric(2.0, 9)),
        bound=lambda _: 9.0,
    ),
    Case(
        "delay(pmf)", lambda params: ej.delay(ej.delays.pmf([0.5, 0.0, 0.5])), bound=lambda _: 2.0
    ),
    Case(
        "delay(per_coordinate)",
        lambda _: ej.delay(ej.delays.per_coordinate(3)),
        bound=lambda _: 3.0,
    ),
    Case("delay(replay)", lambda _: ej.delay(ej.delays.replay([0, 3, 1, 2])), bound=lambda _: 3.0),
    Case("predict", lambda _: ej.correct.predict(3, momentum=0.5), bound=lambda _: 3.0),
    *(_feedback(name) for name in FIT_FOR_FEEDBACK),
    Case(
        "error_feedback, decayed",
        lambda params: ej.error_feedback(COMPRESSORS["top_k(0.25)"], decay=0.9),
        loses=True,
    ),
    *(
        Case(f"compress({name})", lambda params, c=c: ej.compress(c), loses=name != "identity")
        for name, c in COMPRESSORS.items()
    ),
    Case("ef21", lambda params: ej.ef21(COMPRESSORS["top_k(0.25)"]), loses=True),
]


def exchanges(axis_name: str | tuple[str, ...]) -> list[Case]:
    """The exchanges, over an axis or several."""
    return [
        Case("all_mean", lambda params: ej.all_mean(axis_name)),
        Case(
            "error_feedback(axis_name)",
            lambda params: ej.error_feedback(COMPRESSORS["top_k(0.25)"], axis_name=axis_name),
        ),
        Case(
            "compress(exchange)",
            lambda params: ej.compress(COMPRESSORS["quantize(4)"], exchange=ej.all_mean(axis_name)),
            loses=True,
        ),
        Case(
            "error_feedback(low_rank, axis_name)",
            lambda params: ej.error_feedback(COMPRESSORS["low_rank(1)"], axis_name=axis_name),
        ),
        Case(
            "error_feedback(identity, bfloat16, axis_name)",
            lambda params: ej.error_feedback(
                COMPRESSORS["identity, bfloat16"], axis_name=axis_name
            ),
            bound=lambda params: 0.01,  # 2^-8 for messages, again for their mean, and a little more
        ),
        Case(
            "ef21(axis_name)",
            lambda params: ej.ef21(COMPRESSORS["top_k(0.25)"], axis_name=axis_name),
            loses=True,
        ),
        Case(
            "norm_bounded",
            lambda params: schedulers.norm_bounded(axis_name, 0.5, ARRIVALS),
            bound=lambda params: 0.5 / (1 - 0.5),
            alike=False,
        ),
        Case(
            "variance_bounded(missing)",
            lambda params: schedulers.variance_bounded(axis_name, ARRIVALS, missing=1),
            bound=lambda params: 1.0,  # |u_i - u_j|/p with p > 1
            alike=False,
        ),
        Case(
            "variance_bounded(deadline)",
            lambda params: schedulers.variance_bounded(axis_name, ARRIVALS, deadline=1.5),
            bound=lambda params: 2.0,  # (p - 1)/p of them
            alike=False,
        ),
        *(
            Case(
                f"lossy({fate})", lambda _, f=fate: links.lossy(axis_name, 0.3, fate=f), alike=False
            )
            for fate in links.FATES
        ),
        *(
            Case(
                f"lossy({fate}), not sent again",
                lambda _, f=fate: links.lossy(axis_name, 0.3, fate=f, resend=False),
                loses=True,
                drifts=fate != "sender",
                alike=fate == "sender",
            )
            for fate in links.FATES
        ),
        Case(
            "late(constant)",
            lambda _: links.late(axis_name, ej.delays.constant(2)),
            bound=lambda _: 2.0,  # (p - 1)/p of it
            alike=False,
        ),
        Case(
            "late(uniform)",
            lambda _: links.late(axis_name, ej.delays.uniform(0, 3)),
            bound=lambda _: 3.0,
            alike=False,
        ),
        Case("partial(1)", lambda _: absent.partial(axis_name, 1), loses=True),
        Case("partial(0.5)", lambda _: absent.partial(axis_name, 0.5), loses=True),
        Case("partial(0.5, keep)", lambda _: absent.partial(axis_name, 0.5, keep=True)),
        Case(
            "crashes(table)",
            lambda _: absent.crashes(axis_name, [(1, 2, 5), (0, 4, 6), (1, 8, None)]),
            loses=True,
            bound=lambda _: 1.5,  # three last messages, p > 1
            alike=False,
        ),
        Case(
            "crashes(drawn), forwarded",
            lambda _: absent.crashes(axis_name, 0.1, down=2, forward=True),
            loses=True,
            bound=lambda _: 1.0,  # all but one at once: the survivor lacks them
            alike=False,
        ),
    ]


def mixes(axis_name: str | tuple[str, ...]) -> list[Case]:
    """What sets the parameters of all workers, over an axis or several."""
    return [
        Case("average", lambda params: local.average(axis_name, 3), bound=lambda params: 4.0),
        Case(
            "diloco",
            lambda params: local.diloco(axis_name, 3, 0.7, 0.9),
            bound=lambda params: 8 * 2 + 5.67 * 3 / 0.1,
            gain=7.0,
        ),
        Case(
            "diloco, in fragments and late",
            lambda params: local.diloco(axis_name, 4, 0.5, 0.5, fragments=2, delay=1),
            bound=lambda params: 2 * 4 + 0.25 * 4 / 0.5,
        ),
        Case("mix(ring)", lambda params: gossip.mix(axis_name, graphs.ring())),
        Case("mix(one_peer)", lambda params: gossip.mix(axis_name, graphs.one_peer())),
        Case("mix(torus)", lambda params: gossip.mix(axis_name, graphs.torus())),
        Case(
            "choco(ring)",
            lambda params: gossip.choco(axis_name, graphs.ring(), COMPRESSORS["top_k(0.25)"]),
        ),
        Case("tracking(ring)", lambda params: gossip.tracking(axis_name, graphs.ring())),
    ]


EXCHANGES = exchanges(AXIS)
MIXES = mixes(AXIS)
EVERYDAY = {  # a row of each kind; the others are for the whole suite
    "delay(5)",
    "delay(uniform)",
    "predict",
    "error_feedback(top_k(0.25))",
    "error_feedback(quantize(8))",
    "error_feedback, decayed",
    "compress(random_k, unbiased)",
    "ef21",
    "absorb",
    "meter",
    "all_mean",
    "error_feedback(axis_name)",
    "norm_bounded",
    "variance_bounded(missing)",
    "lossy(link)",
    "lossy(sender), not sent again",
    "late(uniform)",
    "partial(0.5)",
    "partial(0.5, keep)",
    "crashes(table)",
    "average",
    "diloco",
    "mix(ring)",
    "choco(ring)",
    "tracking(ring)",
}


def every(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Makes a test of each case; of those that are not for every day, a slow one."""
    rows = [
        pytest.param(case, id=case.name, marks=() if case.name in EVERYDAY else pytest.mark.slow)
        for case in cases
    ]
    return pytest.mark.parametrize("case", rows)


TREES = {
    "vector": lambda dtype: jnp.zeros(7, dtype),
    "one element": lambda dtype: {"a": jnp.zeros((1,), dtype)},
    "scalar and matrix": lambda dtype: {"s": jnp.zeros((), dtype), "m": jnp.zeros((6, 4), dtype)},
    "network": lambda dtype: [
        {"w": jnp.zeros((3, 2, 4), dtype), "b": jnp.zeros((4,), dtype)},
        (jnp.zeros((5,), dtype), None),
    ],
}
