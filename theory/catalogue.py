"""The catalogue: every claim with its proof, each after those on which it rests."""

import time
from collections.abc import Iterable, Iterator

from theory import constants, convex, nonconvex
from theory.certificate import Claim, NotProvedError
from theory.induction import Proof


def proofs() -> tuple[Proof, ...]:
    """Return every proof of this package, each after those it uses."""
    return (*nonconvex.proofs(), *convex.proofs(), *constants.proofs())


def prove(chain: Iterable[Proof] | None = None) -> Iterator[tuple[Claim, float]]:
    """Check proofs in order, and that each rests on assumptions and earlier claims only.

    Args:
        chain: the proofs; the whole catalogue if None.

    Yields:
        The proved claim, and the seconds that its check took.

    Raises:
        NotProvedError: if a check fails, or a claim is used before it is proved.

    Example:
        >>> claim, seconds = next(prove(constants.window()))
        >>> claim.name, claim.assumptions
        ('window', ('|held part of an update| ≤ αMw',))
    """
    proved: list[Claim] = []
    for proof in proofs() if chain is None else chain:
        start = time.perf_counter()
        claim = proof.check()
        for hypothesis in claim.hypotheses:
            if hypothesis.source is not None and hypothesis.source not in proved:
                raise NotProvedError(f"{claim.name} uses {hypothesis.source.name} before its proof")
        proved.append(claim)
        yield claim, time.perf_counter() - start
