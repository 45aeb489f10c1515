"""The parts of a chain: relaxations, and mixes that end it, by name and number."""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp

from theory import symbols

Settings = tuple[Any, Any]
ROUNDING = 1e-9
"""Norms may come out this much, relatively, beyond what is possible."""


@dataclass(frozen=True, repr=False)
class Part:
    """A part of a chain; made by `delay`, `resend`, `feedback` and their like.

    Attributes:
        label: what it is, with its setting.
        symbol: its parameter; primed where a chain has several of a kind.
        value: the parameter's number.
        kind: "hold" (everything waits, in order), "contraction", "masks" (anything of the last
            messages waits) or "unbiased" (compression before everything else).
        settings: parameter -> for a hold, mean and variance of the number of steps; else (ρ, 0).

    Example:
        >>> delay(8), top_k_feedback(0.01)
        (<Part delay 8>, <Part top-k 1% with feedback>)
    """

    label: str
    symbol: sp.Symbol
    value: float
    kind: str
    settings: Callable[[Any], Settings] = lambda parameter: (parameter, sp.S.Zero)

    def __repr__(self) -> str:
        """Return the label."""
        return f"<Part {self.label}>"


@dataclass(frozen=True, repr=False)
class Mix:
    """A mix, the last of its chain; made by `gossip`, `choco`, `tracking`, `average`, `diloco`.

    Attributes:
        label: what it is, with its settings.
        values: the numbers of its parameters.
        bounds: the elastic constants that are proved for it, of which the least counts; none where
            all views are alike after every step.
        gain: for outer optimizers, x moves by it times the mean of the updates; else None.
    """

    label: str
    values: Mapping[sp.Symbol, float]
    bounds: tuple[str, ...]
    gain: float | None = None

    def __repr__(self) -> str:
        """Return the label."""
        return f"<Mix {self.label}>"


def _number(
    name: str, value: float, low: float, high: float, remedy: str, strict: bool = False
) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and low <= value < high and not (strict and value == low)):
        raise ValueError(f"{name}={value!r} is out of range; {remedy}")
    return float(value)


def whole(name: str, value: int, least: int) -> int:
    """Return a whole number that is at least `least`; refuse any other."""
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (number and value >= least):
        raise ValueError(f"{name}={value!r} is out of range; pass an int >= {least}")
    return int(value)


def delay(steps: int) -> Part:
    """Everything arrives `steps` steps late, in order: N = τ messages are held.

    Alone, its elastic constant is B = τM.

    Raises:
        ValueError: for what is no whole number of steps.
    """
    return Part(f"delay {steps}", symbols.tau, whole("steps", steps, 0), "hold")


def resend(probability: float) -> Part:
    """A step's message is dropped with this probability, whatever it says, and sent with the next.

    All receivers lose it together. The number N of steps held is geometric, P(N ≥ n) = q^n; alone,
    its elastic constant is B = M√(E[N²]) = M√(q(1 + q))/(1 − q).

    Raises:
        ValueError: for a probability outside [0, 1).
    """
    probability = _number("probability", probability, 0, 1, "pass a probability in [0, 1)")
    label = f"{100 * probability:g}% dropped, resent"
    return Part(label, symbols.q, probability, "hold", lambda q: (q / (1 - q), q / (1 - q) ** 2))


def feedback(gamma: float) -> Part:
    """Compression with error feedback, E‖C(y) − y‖² ≤ γ‖y‖².

    Alone, its elastic constant is B = M√γ/(1 − √γ).

    Raises:
        ValueError: for γ outside [0, 1).
    """
    gamma = _number("gamma", gamma, 0, 1, "error feedback needs a contraction: pass γ in [0, 1)")
    return _feedback(f"feedback, γ = {gamma:g}", gamma)


def top_k_feedback(fraction: float) -> Part:
    """Top-k sparsification with error feedback; fraction = k/d, so γ = 1 − k/d.

    Raises:
        ValueError: for a fraction outside (0, 1].
    """
    if not (isinstance(fraction, numbers.Real) and 0 < fraction <= 1):
        remedy = "pass the fraction of entries sent, in (0, 1]"
        raise ValueError(f"fraction={fraction!r} is out of range; {remedy}")
    return _feedback(f"top-k {100 * fraction:g}% with feedback", 1 - float(fraction))


def _feedback(label: str, gamma: float) -> Part:
    return Part(label, symbols.gamma, gamma, "contraction", lambda y: (sp.sqrt(y), sp.S.Zero))


def contraction(rho: float) -> Part:
    """What is held obeys |h⁺| ≤ ρ|h + u|, such as a norm-bounded scheduler's.

    Alone, its elastic constant is B = Mρ/(1 − ρ).

    Raises:
        ValueError: for ρ outside [0, 1).
    """
    rho = _number("rho", rho, 0, 1, "pass ρ in [0, 1)")
    return Part(f"contraction {rho:g}", symbols.rho, rho, "contraction")


def inconsistent(steps: int) -> Part:
    """Views lack any coordinates of any of the last `steps` messages: shared memory.

    Alone, its elastic constant is B = τM.

    Raises:
        ValueError: for what is no whole number of steps.
    """
    label = f"inconsistent reads, delay {steps}"
    return Part(label, symbols.tau, whole("steps", steps, 0), "masks")


def unbiased(omega: float) -> Part:
    """Unbiased compression, E‖C(y) − y‖² ≤ ω‖y‖², without feedback; the first of its chain.

    It holds nothing back; behind it M is √(1 + ω)M, and σ² is σ² + ωM².

    Raises:
        ValueError: for a negative or infinite ω.
    """
    omega = _number("omega", omega, 0, math.inf, "pass ω >= 0")
    return Part(f"unbiased compression, ω = {omega:g}", symbols.omega, omega, "unbiased")


def gossip(rho: float | None = None, *, total: float | None = None) -> Mix:
    """Workers average with neighbours at every step, v ← Wv: ρ = ‖W − J‖, J the mean.

    Alone, its elastic constant is B = Mρ/(1 − ρ), mean over workers. Where W varies from step to
    step it is B = KM, with K the sum over k ≥ 1 of the largest ‖(W_t − J)⋯(W_(t−k+1) − J)‖.

    Args:
        rho: ρ, of a W that stays.
        total: K instead, of any.

    Raises:
        ValueError: unless one of them is given, or for ρ outside [0, 1), or K for which views
            drift apart.
    """
    if rho is not None and total is None:
        rho = _number("rho", rho, 0, 1, "pass ρ = ‖W − J‖, in [0, 1); at 1 workers never agree")
        return Mix(f"gossip, ρ = {rho:g}", {symbols.rho: rho}, ("gossip",) if rho else ())
    if total is None or rho is not None:
        raise ValueError(f"rho={rho!r}, total={total!r}: pass one of them")
    remedy = "pass K >= 0; where it is infinite workers never agree"
    total = _number("total", total, 0, math.inf, remedy)
    rounds = ("gossip.rounds",) if total else ()
    return Mix(f"gossip, K = {total:g}", {symbols.mixing: total}, rounds)


def choco(gamma: float, slow: float, fast: float) -> Mix:
    """Compressed gossip (CHOCO), E‖C(y) − y‖² ≤ γ‖y‖²; W is symmetric, and s the consensus step.

    Alone, its elastic constant is B = M√(ρ² + γ)/(1 − ρ), ρ² = (1 − slow)/(1 + slow), mean over
    workers and draws. With γ = 0 it is gossip.

    Args:
        gamma: of the compressor.
        slow: the least eigenvalue of s(I − W) but for that of the mean, 0.
        fast: its largest one.

    Raises:
        ValueError: for numbers out of range, or a step too long for such a compressor.
    """
    gamma = _number("gamma", gamma, 0, 1, "pass γ in [0, 1): messages must say something")
    remedy = "pass the least eigenvalue of s(I − W) but 0; a connected graph has it in (0, 2)"
    slow = _number("slow", slow, 0, 2, remedy, strict=True)
    fast = _number("fast", fast, slow, 2, f"pass the largest eigenvalue of s(I − W), >= {slow:g}")
    if gamma == 0:
        rate = max(abs(1 - slow), abs(1 - fast))
        return Mix(f"exact gossip, ρ = {rate:g}", {symbols.rho: rate}, ("gossip",) if rate else ())
    most = max((1 - slow) * (1 - fast), 0.0) / ((1 + slow) * (1 + fast)) if slow < 1 else 0.0
    if gamma > most * (1 + ROUNDING):
        raise ValueError(
            f"gamma={gamma!r} is too much for this consensus step, which allows γ <= {most:.6g}; "
            "pass slow and fast of a shorter one: fast <= (1 - √γ)/(1 + √γ) will do"
        )
    within = min(gamma, most * (1 - ROUNDING))  # at the edge, rounding may put it beyond
    values = {symbols.gamma: within, symbols.slow: slow, symbols.fast: fast}
    return Mix(f"CHOCO, γ = {gamma:g}", values, ("choco",))


def tracking(rho: float, apart: float | None = None, *, symmetric: bool = False) -> Mix:
    """Gradient tracking: workers mix views and estimates of the mean update, ρ = ‖W − J‖.

    Alone, its elastic constant is B = M(1 + ‖I − W‖/(1 − ρ))ρ/(1 − ρ), mean over workers; for a
    symmetric W without eigenvalues below −ρ/2, M√ρ/(1 − ρ) if that is less.

    Args:
        rho: ‖W − J‖, J the mean.
        apart: ‖I − W‖; 1 + ρ if None, which it is at most.
        symmetric: whether W is.

    Raises:
        ValueError: for ρ outside [0, 1), or for an ‖I − W‖ that no W with this ρ has.
    """
    rho = _number("rho", rho, 0, 1, "pass ρ = ‖W − J‖, in [0, 1); at 1 workers never agree")
    label = f"gradient tracking, ρ = {rho:g}"
    if rho == 0:
        return Mix(label, {symbols.rho: rho}, ())
    apart = 1 + rho if apart is None else apart
    low, high = (1 - rho) * (1 - ROUNDING), (1 + rho) * (1 + ROUNDING)
    remedy = f"‖I − W‖ is from 1 − ρ = {1 - rho:g} to 1 + ρ = {1 + rho:g}: pass that of the same W"
    apart = _number("apart", apart, low, high, remedy)
    # The least eigenvalue of a symmetric W is 1 − ‖I − W‖.
    short = ("tracking.symmetric",) if symmetric and apart <= 1 + rho / 2 else ()
    return Mix(label, {symbols.rho: rho, symbols.apart: apart}, ("tracking", *short))


def average(every: int) -> Mix:
    """Local SGD: workers train alone, and average their views at every H-th step.

    Alone, its elastic constant is B = (H − 1)M, mean over workers.

    Raises:
        ValueError: for what is no whole number of steps.
    """
    every = whole("every", every, 1)
    names = ("local",) if every > 1 else ()
    return Mix(f"average every {every}", {symbols.H_local: every}, names)


def diloco(
    every: int,
    learning_rate: float = 0.7,
    momentum: float = 0.9,
    *,
    nesterov: bool = True,
    fragments: int = 1,
    delay: int = 0,
) -> Mix:
    """DiLoCo: workers train alone for H steps; an outer optimizer with momentum moves them all.

    x moves by the gain G = η/(1 − μ) times the mean of the updates. Its elastic constant, mean over
    workers, is the least of `diloco`, `diloco.small` and `diloco.small.long` that hold.

    Args:
        every: H.
        learning_rate: η, of the outer optimizer.
        momentum: μ, in [0, 1).
        nesterov: whether it is Nesterov's.
        fragments: parts of the parameters that meet at different steps.
        delay: how many steps late a meeting's result arrives, at most H.

    Raises:
        ValueError: for numbers out of range.
    """
    every, fragments = whole("every", every, 1), whole("fragments", fragments, 1)
    if whole("delay", delay, 0) > every:
        raise ValueError(f"delay={delay} is out of range; pass an int in 0…{every}")
    rate = _number("learning_rate", learning_rate, 0, math.inf, "pass a number > 0", strict=True)
    momentum = _number("momentum", momentum, 0, 1, "pass μ in [0, 1)")
    gain = rate / (1 - momentum)
    coast = gain * momentum ** (2 if nesterov else 1)
    values = {
        symbols.gain_outer: 1 + max(abs(gain - 1), coast if fragments > 1 else 0.0),
        symbols.H_local: every,
        symbols.tau: delay,
        symbols.coast: coast,
        symbols.momentum: momentum,
    }
    names = ("diloco", "diloco.small", "diloco.small.long")
    return Mix(f"DiLoCo, H = {every}, G = {gain:g}", values, names, gain)
