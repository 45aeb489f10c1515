"""Chains of relaxations: as they run, and as `theory` bounds them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

import elastic_jax as ej
import theory
from elastic_jax import arrivals, gossip, graphs, links, local, schedulers
from experiments.train_config import COMPRESSORS, make_compressor

AXIS = "workers"
LATE = arrivals.backward(compute=1.0, bandwidth=2e5, latency=0.05, spread=0.3)
Tree = Any
Bounded = Callable[[Tree, int], theory.Part | theory.Mix]  # params, p → part of a theory.Chain


# ---- graphs and compressors, as `theory` sees them ----


def gossip_mix(graph: graphs.Graph, p: int) -> theory.Mix:
    """Returns what bounds `gossip.mix`."""
    if graph.varies:
        return theory.gossip(total=graphs.total(graph, p))
    return theory.gossip(graphs.rho(graph, p))


def tracking_mix(graph: graphs.Graph, p: int) -> theory.Mix:
    """Returns what bounds `gossip.tracking`."""
    if graph.varies:
        raise ValueError("no bound is proved for tracking over a graph that varies")
    (matrix,) = graph.matrices(p)
    apart = float(np.linalg.norm(np.eye(p) - matrix, 2))
    symmetric = bool(np.allclose(matrix, matrix.T))
    return theory.tracking(graphs.rho(graph, p), apart, symmetric=symmetric)


def choco_mix(graph: graphs.Graph, compressor: ej.Compressor, params: Tree, p: int) -> theory.Mix:
    """Returns what bounds `gossip.choco`, with the step that its stability allows."""
    if p == 1:
        return theory.gossip(0.0)
    gamma = compressor.gamma(params)
    step = gossip.stable_step(graph, p, gamma)
    _, *modes = np.linalg.eigvalsh(np.eye(p) - graph.matrices(p)[0])
    return theory.choco(gamma, step * modes[0], step * modes[-1])


# ---- chains in words ----


class Part(NamedTuple):
    """A relaxation, as it runs and as it is bounded."""

    relax: Callable[[int], optax.GradientTransformation]  # seed → transformation
    bounded: Bounded
    said: str  # in words


def bounded(parts: Sequence[Part], params: Tree, workers: int) -> theory.Chain:
    """Returns what bounds a chain.

    Raises:
        ValueError: naming the part, or the order, for which nothing is proved.
    """
    found = []
    for part in parts:
        try:
            found.append(part.bounded(params, workers))
        except ValueError as error:
            raise ValueError(f"--chain: {part.said!r}: {error}") from error
    return theory.Chain(*found, workers=workers)


class _Word(NamedTuple):
    relax: Callable[[str | None, int], optax.GradientTransformation]  # the axis, a seed
    bounded: Bounded
    role: Literal["relaxation", "compressor", "exchange", "mix"] = "relaxation"


def parse(text: str) -> list[Part]:
    """Reads a chain such as `topk 0.1 feedback, delay 4`.

    Args:
        text: parts in order, with commas; `none` is none.

            * relaxations: `delay N`; `inconsistent N`, each coordinate 0 to N steps late; a
              compressor, its amount if it takes one (else a default, see `train_config`), and
              `feedback` (else it must be unbiased);
            * exchanges, one at most: `late N`, each message 0 to N steps late; `norm β`, a
              norm-bounded scheduler. Else the first compressor's messages are averaged, or, where
              there is none, the updates;
            * mixes, instead of an exchange, and last: `average H`, `gossip GRAPH`, `tracking
              GRAPH`, `choco GRAPH` and a compressor, `diloco H η μ`.

    Raises:
        ValueError: naming the part, and what would be right.
    """
    texts = [part.split() for part in text.split(",") if part.split() != ["none"]]
    words = [_word(each) for each in texts]
    roles = [word.role for word in words]
    meets = [i for i, role in enumerate(roles) if role in ("exchange", "mix")]
    if len(meets) > 1:
        raise ValueError(f"--chain {text!r}: name one exchange or mix; workers meet once a step")
    if "mix" in roles[:-1]:
        raise ValueError(f"--chain {text!r}: name the mix last; it sets the views")
    if not meets and "compressor" in roles:
        meets = [roles.index("compressor")]
    parts = [
        Part(
            functools.partial(word.relax, AXIS if i in meets else None),
            word.bounded,
            " ".join(each),
        )
        for i, (word, each) in enumerate(zip(words, texts, strict=True))
    ]
    if not meets:
        parts.append(
            Part(lambda seed: ej.all_mean(AXIS), lambda params, p: theory.delay(0), "mean")
        )
    return parts


def _word(words: Sequence[str]) -> _Word:
    name, *rest = words or [""]
    try:
        if name in RULES:
            usage, rule = RULES[name]
            if len(rest) < usage.count(" ") or (len(rest) > usage.count(" ") and name != "choco"):
                raise ValueError(f"write {usage}")
            word = rule(*rest)
            word.relax(AXIS, 0)  # or says what it cannot take
            return word
        if name.replace("_", "") not in NAMES:
            raise ValueError(f"give none, {', '.join(RULES)}, or one of {', '.join(NAMES)}")
        return _compressed(name, *rest)
    except (TypeError, ValueError, OverflowError) as error:
        shown = " ".join(words) or "nothing between commas"
        raise ValueError(f"--chain: {shown!r}: {error}") from error


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        what = "whole number" if kind is int else "number"
        raise ValueError(f"{text!r} is no {what}") from error


def _compressor(name: str, *amount: str) -> ej.Compressor:
    if name.replace("_", "") not in NAMES:
        raise ValueError(f"{name!r} is no compressor; give one of {', '.join(NAMES)}")
    if len(amount) > 1:
        raise ValueError("give one amount, and then feedback, if any")
    name = NAMES[name.replace("_", "")]
    if amount and COMPRESSORS[name][1] is None:
        raise ValueError(f"{name} takes no amount")
    return make_compressor(name, *(_number(text, float) for text in amount))


def _compressed(name: str, *rest: str) -> _Word:
    feedback = rest[-1:] == ("feedback",)
    compressor = _compressor(name, *rest[: len(rest) - feedback])
    omega = compressor.omega
    if feedback:
        relax, bounded = ej.error_feedback, lambda x, p: theory.feedback(compressor.gamma(x))
    elif omega is None:
        raise ValueError("no bound is proved without feedback, as it is biased; add it")
    else:
        relax, bounded = ej.compress, lambda x, p: theory.unbiased(omega(x))
    return _Word(
        lambda axis, seed: relax(compressor, axis_name=axis, seed=seed), bounded, "compressor"
    )


def _delay(steps: str) -> _Word:
    part = theory.delay(_number(steps, int))
    return _Word(lambda axis, seed: ej.delay(int(steps)), lambda x, p: part)


def _inconsistent(steps: str) -> _Word:
    part, model = theory.inconsistent(_number(steps, int)), ej.delays.per_coordinate(int(steps))
    return _Word(lambda axis, seed: ej.delay(model, seed=seed), lambda x, p: part)


def _late(steps: str) -> _Word:
    """A view lacks any of each other worker's last messages, as if masked whole."""
    part, model = theory.inconsistent(_number(steps, int)), ej.delays.uniform(0, int(steps))
    part = dataclasses.replace(part, label=f"messages up to {steps} late")
    return _Word(
        lambda axis, seed: links.late(AXIS, model, seed=seed), lambda x, p: part, "exchange"
    )


def _norm(beta: str) -> _Word:
    part = theory.contraction(_number(beta, float))
    return _Word(
        lambda axis, seed: schedulers.norm_bounded(AXIS, part.value, LATE, seed=seed),
        lambda x, p: part,
        "exchange",
    )


def _average(every: str) -> _Word:
    mix = theory.average(_number(every, int))
    return _Word(lambda axis, seed: local.average(AXIS, int(every)), lambda x, p: mix, "mix")


def _gossip(name: str) -> _Word:
    graph = _graph(name)
    return _Word(
        lambda axis, seed: gossip.mix(AXIS, graph), lambda x, p: gossip_mix(graph, p), "mix"
    )


def _tracking(name: str) -> _Word:
    graph = _graph(name)
    return _Word(
        lambda axis, seed: gossip.tracking(AXIS, graph), lambda x, p: tracking_mix(graph, p), "mix"
    )


def _choco(name: str, *compressor: str) -> _Word:
    graph, chosen = _graph(name), _compressor(*compressor)
    return _Word(
        lambda axis, seed: gossip.choco(AXIS, graph, chosen, seed=seed),
        lambda x, p: choco_mix(graph, chosen, x, p),
        "mix",
    )


def _diloco(every: str, rate: str, momentum: str) -> _Word:
    settings = _number(every, int), _number(rate, float), _number(momentum, float)
    mix = theory.diloco(*settings)
    return _Word(lambda axis, seed: local.diloco(AXIS, *settings), lambda x, p: mix, "mix")


def _graph(name: str) -> graphs.Graph:
    makers = graphs.ring, graphs.torus, graphs.exponential, graphs.one_peer
    known = {make.__name__: make for make in makers}
    if name not in known:
        raise ValueError(f"{name!r} is no graph; give one of {', '.join(known)}")
    return known[name]()


NAMES = {each.replace("_", ""): each for each in COMPRESSORS if each != "none"}
RULES: dict[str, tuple[str, Callable[..., _Word]]] = {
    "delay": ("delay N", _delay),
    "inconsistent": ("inconsistent N", _inconsistent),
    "late": ("late N", _late),
    "norm": ("norm β", _norm),
    "average": ("average H", _average),
    "gossip": ("gossip GRAPH", _gossip),
    "tracking": ("tracking GRAPH", _tracking),
    "choco": ("choco GRAPH COMPRESSOR", _choco),
    "diloco": ("diloco H η μ", _diloco),
}
