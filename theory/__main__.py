"""Check every proof and print the catalogue, a line a claim."""

import argparse
import sys
from collections.abc import Iterator
from difflib import get_close_matches

from theory.catalogue import bounds, proofs, prove
from theory.certificate import Claim
from theory.explain import explain, tex


def _conditions(claim: Claim) -> str:
    return ", ".join(condition.text for condition in claim.conditions) or "–"


def _classic(claim: Claim) -> str:
    """Return the classic form of a claim, if the catalogue has one."""
    classics = [
        proof.claim.text for proof in proofs() if proof.claim.name == f"{claim.name}.classic"
    ]
    return classics[0] if classics else "–"


def listing() -> Iterator[str]:
    """Yield name, conditions, statement (sharp), classic form, verdict and ms of every claim."""
    for claim, seconds in prove():
        cells = f"{claim.name:28} {_conditions(claim):32} {claim.text:92} {_classic(claim):62}"
        yield f"{cells} proved {1e3 * seconds:4.0f} ms   {claim.remark}".rstrip()


def markdown() -> Iterator[str]:
    """Yield a table of all claims in Markdown."""
    yield "| claim | where | statement | classic | remark |"
    yield "| --- | --- | --- | --- | --- |"
    for claim, _ in prove():
        cells = (claim.name, _conditions(claim), claim.text, _classic(claim), claim.remark)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def latex() -> Iterator[str]:
    """Yield every bound as a line of a LaTeX `align*`."""
    for _ in prove():
        pass
    yield r"\begin{align*}"
    for bound in bounds().values():
        where = ", ".join(condition.text for condition in bound.conditions)
        name = bound.name.replace("_", r"\_")
        yield rf"  & {bound.latex()} && \text{{{name}}}\; {tex(where)} \\"
    yield r"\end{align*}"


def main() -> None:
    """Print name, conditions, sharp and classic statement, verdict and ms of every claim."""
    parser = argparse.ArgumentParser(prog="python -m theory", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a table of all claims in Markdown")
    form.add_argument("--latex", action="store_true", help="all bounds as LaTeX formulas")
    form.add_argument("--explain", metavar="NAME", help="the proof of a claim, step by step")
    arguments = parser.parse_args()
    if arguments.explain:
        named = {proof.claim.name: proof for proof in proofs()}
        if arguments.explain in named:
            print(explain(named[arguments.explain], proofs()))
            return
        if arguments.explain not in bounds():
            near = get_close_matches(arguments.explain, [*named, *bounds()], 3, 0.4)
            parser.error(f"no claim or bound {arguments.explain!r}; near it: {', '.join(near)}")
        bound = bounds()[arguments.explain]
        print(bound.describe(), bound.explain(), sep="\n\n")
        return
    lines = markdown() if arguments.markdown else latex() if arguments.latex else listing()
    for line in lines:
        print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
