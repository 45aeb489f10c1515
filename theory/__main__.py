"""Check every proof and print the catalogue, a line a claim."""

import argparse
import os
import sys
from collections.abc import Iterator
from functools import cache

from theory.catalogue import bounds, near, proofs, prove
from theory.certificate import Claim
from theory.explain import definitions, explain, legend, rests_on, tex

EXAMPLES = """examples:
  python -m theory                        check all: a line a claim, with its verdict and ms
  python -m theory | grep ^S.             the claims for strongly convex f
  python -m theory --markdown > table.md  the claims beside their classic forms
  python -m theory --latex > bounds.tex   the bounds, for \\input
  python -m theory --explain N.tuned      why SGD at elastic views converges, step by step
"""


def _conditions(claim: Claim) -> str:
    return ", ".join(condition.text for condition in claim.conditions) or "–"


def _remark(claim: Claim) -> str:
    """Return what its abbreviations stand for, and its remark."""
    where = ", ".join(definitions(claim))
    return "; ".join(part for part in (where and f"where {where}", claim.remark) if part)


@cache
def _texts() -> dict[str, str]:
    claims = (proof.claim for proof in proofs())
    return {claim.name: claim.text for claim in claims}


def _classic(claim: Claim) -> str:
    """Return the classic form of a claim, if the catalogue has one."""
    return _texts().get(f"{claim.name}.classic", "–")


def listing() -> Iterator[str]:
    """Yield name, conditions, statement (sharp), classic form, verdict and ms of every claim."""
    for claim, seconds in prove():
        cells = f"{claim.name:28} {_conditions(claim):32} {claim.text:92} {_classic(claim):62}"
        yield f"{cells} proved {1e3 * seconds:4.0f} ms   {_remark(claim)}".rstrip()


def markdown() -> Iterator[str]:
    """Yield a table of all claims in Markdown."""
    yield "| claim | where | statement | classic | remark |"
    yield "| --- | --- | --- | --- | --- |"
    for claim, _ in prove():
        cells = (claim.name, _conditions(claim), claim.text, _classic(claim), _remark(claim))
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


def explanation(name: str) -> str:
    """Return the proof of a claim or a bound, step by step, and what its symbols mean.

    Raises:
        KeyError: for an unknown name, with those that start so, or are near it.
    """
    named = {proof.claim.name: proof for proof in proofs()}
    if name not in named and name not in bounds():
        raise KeyError(f"no claim or bound {name!r}; {near(name, [*bounds(), *named])}")
    proof = named[name] if name in named else bounds()[name].proof
    shown = rests_on(proof, named.values())
    parts, known = [explain(proof, named.values())], ()
    if name not in named:
        parts, known = [bounds()[name].describe(), *parts], bounds()[name].parameters
    parts.append(legend(shown, parts[-1], known))
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    """Print name, conditions, sharp and classic statement, verdict and ms of every claim."""
    parser = argparse.ArgumentParser(
        prog="python -m theory",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--markdown", action="store_true", help="check all, and print a table of all claims"
    )
    form.add_argument(
        "--latex", action="store_true", help="check all, and print all bounds as an align* of LaTeX"
    )
    form.add_argument(
        "--explain",
        metavar="NAME",
        help="print a claim's or a bound's proof, those it rests on first, and its symbols",
    )
    arguments = parser.parse_args()
    if arguments.explain:
        try:
            lines = iter([explanation(arguments.explain)])
        except KeyError as error:
            parser.error(error.args[0])
    else:
        lines = markdown() if arguments.markdown else latex() if arguments.latex else listing()
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # whoever read this has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as if killed by SIGPIPE
