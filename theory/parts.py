"""The parts of a chain: relaxations by name and number."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp

from theory import symbols

Settings = tuple[Any, Any]


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


def _number(name: str, value: float, low: float, high: float, remedy: str) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and low <= value < high):
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
    """What is held obeys |h⁺| ≤ ρ|h + u|: gossip, or a norm-bounded scheduler.

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
