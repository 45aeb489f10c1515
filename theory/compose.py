"""The elastic constant of a chain: the proved rules of composition, part by part.

Example:
    >>> from theory.parts import average, delay, feedback
    >>> compose([feedback(0.5), delay(8)], None)[0].expr
    M*sqrt(γ)/(1 - sqrt(γ)) + M*τ
    >>> compose([delay(8)], average(4))[0].expr
    M*sqrt(τ**2 + (H - 1)**2)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy as sp

from theory import symbols
from theory.bound import Bound
from theory.catalogue import bounds
from theory.certificate import Condition
from theory.parts import Mix, Part

Values = dict[sp.Symbol, float]


def put(bound: Bound, settings: Mapping[sp.Symbol, Any]) -> Bound:
    """Return the bound with those settings that it depends on."""
    return bound.put(**{s.name: v for s, v in settings.items() if s in bound.parameters})


def compose(relaxations: Sequence[Part], mix: Mix | None) -> tuple[Bound, Values]:
    """Return the bound of B in the parts' symbols and in M, and the numbers of these symbols.

    Symbols of which there are several get primes.

    Args:
        relaxations: in order; unbiased compression, if any, comes first.
        mix: what comes last; None if there is none, or it leaves all views alike.
    """
    taken: list[sp.Symbol] = []
    named = [(part, _unlike(taken, part.symbol)) for part in relaxations]
    own = {symbol: _unlike(taken, symbol) for symbol in (mix.values if mix else ())}
    values = {symbol: part.value for part, symbol in named}
    values |= {own[symbol]: value for symbol, value in (mix.values.items() if mix else ())}
    named = [(part, symbol) for part, symbol in named if part.value]  # the others hold nothing

    scale = sp.S.One
    if named and named[0][0].kind == "unbiased":
        scale = sp.sqrt(1 + named.pop(0)[1])
    bound = bounds()["synchronous"]
    before = bound  # what stands before the present run of holds
    mean, variance = sp.S.Zero, sp.S.Zero
    conditions: dict[sp.Expr, Condition] = {}
    for part, symbol in named:
        setting, spread = part.settings(symbol)
        if part.kind == "hold":
            # Holds in a row hold back the sum of their numbers of steps.
            mean, variance = mean + setting, variance + spread
            bound = _held(before, mean, variance)
            conditions |= {each.expr: each for each in bound.conditions}
            continue
        if part.kind == "masks":
            bound = _masked(bound, setting, values)
        elif before.expr == 0 and variance == 0 and mean != 0:
            bound = put(bounds()["chain.behind"], {symbols.rho: setting, symbols.tau: mean})
        else:
            bound = _then(bound, "contraction", "chain.contraction", {symbols.rho: setting})
        before, mean, variance = bound, sp.S.Zero, sp.S.Zero
        conditions |= {each.expr: each for each in bound.conditions}
    if mix:
        alone = _least((put(bounds()[name], own) for name in mix.bounds), values)
        conditions |= {each.expr: each for each in alone.conditions}
        settings = {symbols.B1: bound.expr, **own}
        settings[symbols.mixing] = sp.Add(*(term / symbols.M for term in alone.terms))
        if bound.expr == 0:
            bound = alone
        elif before.expr == 0 and variance == 0:
            bound = put(bounds()["chain.mix.delay"], {**settings, symbols.tau: mean})
        elif symbols.H_local not in own:
            bound = put(bounds()["chain.mix"], settings)
        elif [part.kind for part, _ in named] == ["masks"]:
            bound = put(bounds()["local.late"], {**settings, symbols.tau: named[0][1]})
        else:
            bound = put(bounds()["chain.local"], settings)
    terms = tuple(term.subs(symbols.M, scale * symbols.M) for term in bound.terms)
    chain = replace(bound, name="chain", terms=terms, conditions=tuple(conditions.values()))
    return chain, values


def _unlike(taken: list[sp.Symbol], symbol: sp.Symbol) -> sp.Symbol:
    """Return a symbol with as many primes as tell it from those taken, and take it."""
    name = symbol.name
    while any(other.name == name for other in taken):
        name += "'"
    taken.append(sp.Symbol(name, **symbol.assumptions0))
    return taken[-1]


def _least(rules: Iterable[Bound], values: Values) -> Bound:
    """Return the rule whose number is least, of those that hold for the values."""
    found = {}
    for rule in rules:
        try:
            found[put(rule, {**values, symbols.M: 1}).at()] = rule
        except ValueError:  # each holds for some settings only
            continue
    return found[min(found)]


def _masked(before: Bound, steps: sp.Expr, values: Values) -> Bound:
    """Return the bound of any masks behind a part."""
    if before.expr == 0:
        return put(bounds()["shared_memory"], {symbols.tau: steps})
    settings = {symbols.tau: steps, symbols.B1: before.expr}
    sizes = ("small", "large")  # "large" holds for B₁ ≥ M/√2
    return _least((put(bounds()[f"chain.masks.{size}"], settings) for size in sizes), values)


def _then(before: Bound, alone: str, after: str, settings: Mapping[sp.Symbol, Any]) -> Bound:
    """Return the bound of a part behind another, or alone if that holds nothing."""
    if before.expr == 0:
        return put(bounds()[alone], settings)
    return put(bounds()[after], {**settings, symbols.B1: before.expr})


def _held(before: Bound, mean: sp.Expr, variance: sp.Expr) -> Bound:
    """Return the bound of an in-order hold of N messages behind a part."""
    steps = {symbols.square_N: mean**2 + variance, symbols.share: 1, symbols.B1: before.expr}
    return put(bounds()["oblivious" if before.expr == 0 else "chain.random"], steps)
