"""Proofs as readable steps, and formulas as LaTeX."""

import re
from collections.abc import Container, Iterable, Iterator
from typing import Any

import sympy as sp

from theory.certificate import Certificate, Claim
from theory.gram import Entry, Scalar, Vector
from theory.induction import SO_FAR, Proof
from theory.symbols import DEFINITIONS, MEANINGS, used

_LETTERS = {
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "ε": r"\varepsilon ", "ρ": r"\rho ",
    "σ": r"\sigma ", "τ": r"\tau ", "ξ": r"\xi ", "π": r"\pi ", "ω": r"\omega ", "λ": r"\lambda ",
    "Δ": r"\Delta ", "Σ": r"\sum ", "∇": r"\nabla ", "‖": r"\Vert ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "∂": r"\partial ", "η": r"\eta ",
    "₀": "_{0}", "₁": "_{1}", "₂": "_{2}", "≤": r"\le ", "≥": r"\ge ", "−": "-", "×": r"\times ",
    "⁺": "^{+}", "²": "^{2}", "³": "^{3}", "*": r"^{*}", "·": r"\cdot ", "∞": r"\infty ",
}  # fmt: skip


_WORD = r"(?:[a-zA-Z']{3,}|a[nst]|by|i[ns]|o[fn]|to)\b"


def tex(thing: str | Scalar) -> str:
    r"""Return LaTeX for an expression, or for a formula written in Unicode.

    Example:
        >>> from theory.symbols import L, alpha, sigma
        >>> tex(alpha * L * sigma**2), tex("E‖x⁺‖²")
        ('L \\alpha  \\sigma ^{2}', 'E\\Vert x^{+}\\Vert ^{2}')
    """
    if isinstance(thing, str):
        thing = re.sub(r"√\(([^()]*)\)|√(\w)", r"\\sqrt{\1\2}", thing)
        thing = re.sub(r"_([a-z]{2,})", r"_{\1}", thing)
        thing = re.sub(r"(?<![\\\w{])(ln|max|min)\b", r"\\\1 ", thing)
        thing = re.sub(rf"(?<![\\\w{{])({_WORD}(?:,? {_WORD})*)", r"\\ \\text{\1}\\ ", thing)
        return "".join(_LETTERS.get(letter, letter) for letter in thing)
    expr = sp.sympify(thing)
    return sp.latex(expr, symbol_names={symbol: tex(symbol.name) for symbol in used(expr)})


def assumed(claim: Claim) -> Iterator[tuple[str, sp.Expr]]:
    """Yield the name and the expression of all that a claim assumes, itself or by its sources."""
    for hypothesis in claim.hypotheses:
        if hypothesis.source is None:
            yield hypothesis.name, hypothesis.expr
            continue
        for text, expr in assumed(hypothesis.source):
            # Where a parameter has been given a value, that is what is assumed.
            values = [pair for pair in hypothesis.values if pair[0] in expr.free_symbols]
            scalar = not expr.atoms(Entry) and all(s.is_nonnegative for s in expr.free_symbols)
            told = [pair for pair in values if pair[1].is_number or scalar]
            given = [f"{key} = {value}" for key, value in told if not value.is_Symbol]
            if given:
                text = f"{text} (at {', '.join(given)})"
            yield text, expr.subs(values, simultaneous=True)


def assumptions(claim: Claim) -> tuple[str, ...]:
    """Return the names of all that a claim assumes, itself or by its sources."""
    return tuple(dict.fromkeys(text for text, _ in assumed(claim)))


def vector_text(v: Vector, per_worker: Container[str] = ()) -> str:
    """Return a vector as a reader writes it: x_i is worker i's own, "mean x" the workers' mean.

    Args:
        v: the vector.
        per_worker: names of vectors that differ between workers, besides those seen in `v`.

    Example:
        >>> from theory.gram import mean, per_worker, vector
        >>> g, z = per_worker("g"), vector("z")
        >>> vector_text(z - g * 2), vector_text(g - mean(g, 3))
        ('z − 2*g_i', 'g_i − mean g')
    """
    terms = dict(v.terms)
    by_name = {base.name: (base, value) for base, value in terms.items() if value != 0}
    parts: list[tuple[Any, str]] = []
    for base, value in terms.items():
        if value == 0 or (base.deviation and base.name[:-1] in by_name):
            continue
        deviation = by_name.get(base.name + "~")
        if base.deviation:
            name = base.name[:-1]
            parts += [(value, f"{name}_i"), (-value, f"mean {name}")]
        elif base.variance is not None:
            parts.append((value, f"mean {base.name}" if base.workers is not None else base.name))
        elif deviation is None:
            parts.append((value, f"mean {base.name}" if base.name in per_worker else base.name))
        else:
            parts.append((deviation[1], f"{base.name}_i"))
            if (rest := sp.together(value - deviation[1])) != 0:
                parts.append((rest, f"mean {base.name}"))
    text = ""
    for value, name in parts:
        minus = value.could_extract_minus_sign()
        size = sp.factor(-value if minus else value)
        factor = "" if size == 1 else f"({size})" if size.is_Add else f"{size}*"
        text += (" − " if minus else " + ") + factor + name
    return text.removeprefix(" + ").strip() or "0"


def relation_text(symbol: sp.Symbol, polynomial: sp.Expr) -> str:
    """Return a relation as an equation for its symbol.

    Example:
        >>> from theory.symbols import gamma, root_gamma
        >>> relation_text(root_gamma, root_gamma**2 - gamma)
        '√γ**2 = γ'
    """
    power = symbol ** sp.Poly(polynomial, symbol).degree()
    return f"{power} = {sp.factor(sp.expand(power - polynomial))}"


def definitions(claim: Claim) -> tuple[str, ...]:
    """Return as equations what a claim's abbreviations stand for, besides `DEFINITIONS`.

    Example:
        >>> import theory
        >>> definitions(theory.bounds()["nofeedback.delay"].proof.claim)
        ('φ = L*n*α*(√γ + 1)',)
    """
    return tuple(
        relation_text(symbol, polynomial)
        for symbol, polynomial in claim.relations
        if polynomial.subs(list(DEFINITIONS.items()), simultaneous=True) != 0
    )


def _certificate(certificate: Certificate, title: str) -> Iterator[str]:
    claim = certificate.claim
    yield title
    if not certificate.multipliers and not certificate.squares:
        yield "    both sides are equal"
        return
    exprs = [claim.expr, *(hypothesis.expr for hypothesis in claim.hypotheses)]
    entries = sp.Tuple(*exprs).atoms(Entry)
    workers = {base.name[:-1] for entry in entries for base in entry.bases if base.deviation}
    yield "    right side − left side is exactly the sum of"
    sources = {h.name: h for h in claim.hypotheses}
    for name, weight in certificate.multipliers.items():
        hypothesis = sources[name]
        why = "the claim so far" if name == SO_FAR else "assumed"
        if hypothesis.source is not None:
            why = f"proved: {hypothesis.source.text}"
            shown = [f"{s} = {v}" for s, v in hypothesis.values if s != v]
            why += f", at {', '.join(shown)}" if shown else ""
        yield f"      ({sp.factor(weight)}) × [{name}]   {why}"
    for weight, w in certificate.squares:
        if isinstance(w, Vector):
            square = f"‖{vector_text(w, workers)}‖²"
        else:
            square = "1" if w == 1 else f"({sp.factor(w)})²"
        yield f"      ({sp.factor(weight)}) × {square}   a square, weight ≥ 0"


def rests_on(proof: Proof, among: Iterable[Proof] = ()) -> tuple[Proof, ...]:
    """Return a proof behind those of the claims on which it rests, each after those it uses.

    Args:
        proof: the last.
        among: where the others are taken from.

    Example:
        >>> from theory.claims.nonconvex import proofs
        >>> [each.claim.name for each in rests_on(proofs()[2], proofs())]
        ['N.step', 'N.sum', 'N']
    """
    by_claim = {other.claim.name: other for other in among}
    seen: dict[str, Proof] = {}

    def visit(current: Proof) -> None:
        for hypothesis in current.claim.hypotheses:
            name = hypothesis.source.name if hypothesis.source else ""
            if name in by_claim and name not in seen:
                visit(by_claim[name])
        seen[current.claim.name] = current

    visit(proof)
    return tuple(seen.values())


def explain(proof: Proof, among: Iterable[Proof] = ()) -> str:
    """Return the proof as readable steps, each with its rule and multiplier.

    Args:
        proof: what is explained.
        among: proofs of the claims on which it rests; those it uses come first.

    Example:
        >>> from theory.claims.constants import window
        >>> print(explain(window()[0]).splitlines()[-2].strip())
        ((n + 1)/n) × [so far]   the claim so far
    """
    return "\n\n".join("\n".join(_steps(each)) for each in rests_on(proof, among))


def legend(shown: Iterable[Proof], text: str, known: Container[sp.Symbol] = ()) -> str:
    """Return the meanings of symbols in proofs, a line each under a heading; "" if there are none.

    Args:
        shown: the proofs.
        text: what a reader sees of them; symbols that it does not name are left out.
        known: other symbols to leave out.

    Example:
        >>> from theory.claims.constants import window
        >>> print(legend(window(), "|h| ≤ α"))
        symbols
          α: step size
    """
    symbols = used(*(expr for proof in shown for expr in _formulas(proof)))
    named = [symbol for symbol in symbols if symbol.name in text and symbol not in known]
    lines = [f"  {symbol}: {MEANINGS[symbol]}" for symbol in named if symbol in MEANINGS]
    if any(isinstance(symbol, Entry) for symbol in named):
        lines.append("  ⟨a,b⟩: E (1/p) Σ_i a_i · b_i; a~ is a_i less its mean over the workers")
    return "\n".join(["symbols", *lines]) if lines else ""


def _formulas(proof: Proof) -> Iterator[sp.Basic]:
    """Yield what the steps of a proof are written with."""
    claim = proof.claim
    yield from (claim.expr, *(condition.expr for condition in claim.conditions))
    yield from (polynomial for _, polynomial in claim.relations)
    for hypothesis in claim.hypotheses:
        yield from (part for pair in hypothesis.values for part in pair)
    for certificate in proof.certificates:
        yield from map(sp.sympify, certificate.multipliers.values())
        for weight, w in certificate.squares:
            scalars = dict(w.terms).values() if isinstance(w, Vector) else (w,)
            yield from map(sp.sympify, (weight, *scalars))


def _steps(proof: Proof) -> Iterator[str]:
    claim = proof.claim
    yield f"{claim.name}: {claim.text}"
    if claim.conditions:
        yield "  where " + ", ".join(condition.text for condition in claim.conditions)
    if claim.hypotheses:
        yield "  assuming " + "; ".join(assumptions(claim))
    if claim.relations:
        yield "  where " + ", ".join(relation_text(*relation) for relation in claim.relations)
    if claim.remark:
        yield "  remark: " + claim.remark
    titles = ["  proof"] if len(proof.certificates) < 2 else ["  at the start", "  step"]
    for certificate, title in zip(proof.certificates, titles, strict=False):
        yield from _certificate(certificate, title)
