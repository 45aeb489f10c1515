"""The catalogue: every claim with its proof, each after those on which it rests; every bound."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from functools import cache

from theory.bound import Bound
from theory.certificate import Claim, NotProvedError
from theory.claims import (
    affordable,
    averaging,
    classic,
    communication,
    composition,
    compressed_gossip,
    compression,
    constants,
    convex,
    crashes,
    feedback,
    horizons,
    late_messages,
    longest_steps,
    missed,
    mixes,
    nonconvex,
    oblivious,
    outer,
    participation,
    random_delays,
    random_feedback,
    reordering,
    resent,
    stability,
    stale_compression,
    step_sizes,
    systems,
    topk,
    tracking,
    tuning,
    unrolled,
    unrolled_horizons,
)
from theory.induction import Proof

MODULES = (
    nonconvex,
    convex,
    classic,
    participation,
    constants,
    systems,
    crashes,
    averaging,
    communication,
    composition,
    outer,
    compressed_gossip,
    mixes,
    tracking,
    reordering,
    missed,
    oblivious,
    feedback,
    random_delays,
    random_feedback,
    resent,
    longest_steps,
    tuning,
    step_sizes,
    unrolled,
    horizons,
    unrolled_horizons,
    affordable,
    compression,
    topk,
    stale_compression,
    late_messages,
    stability,
)
"""The modules of claims; each has `proofs()` and `bounds()`, and uses earlier ones only."""

ELASTIC = "setting: Nadiradze, Markov, Chatterjee, Kungurtsev, Alistarh, Elastic Consistency, 2021"
REFERENCES = {
    "N": ELASTIC,
    "S": ELASTIC,
    "asynchronous": "after Koloskova, Stich, Jaggi, Sharper Guarantees for Asynchronous SGD, 2022",
    "crashes": ELASTIC,
    "delay": "Levin, May, A Note on Difference-Delay Equations, 1976",
    "feedback": "setting: Karimireddy, Rebjock, Stich, Jaggi, Error Feedback Fixes SignSGD, 2019",
    "gossip": "setting: Lian et al., Can Decentralized Algorithms Outperform Centralized, 2017",
    "local": "setting: Stich, Local SGD Converges Fast and Communicates Little, 2019",
    "message_passing": ELASTIC,
    "random_delays": ELASTIC,
    "scheduler": ELASTIC,
    "shared_memory": ELASTIC,
    "synchronous": ELASTIC,
    "unbiased": "setting: Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD, 2017",
    "W": "after Stich, Karimireddy, The Error-Feedback Framework, 2020",
}
"""Where statements come from, by the first word of their names; the others are this package's."""


@cache
def proofs() -> tuple[Proof, ...]:
    """Return every proof of this package, each after those it uses."""
    return tuple(proof for module in MODULES for proof in module.proofs())


def near(name: str, names: Iterable[str]) -> str:
    """Return what to say of a name that is none of these: which start so, or else are nearest.

    Example:
        >>> near("W", ["W.missing", "W.delay", "window"]), near("windw", ["W.missing", "window"])
        ('these start so: W.missing, W.delay', 'near it: window')
    """
    names = list(dict.fromkeys(names))
    if longer := [each for each in names if each.startswith(f"{name}.")]:
        return f"these start so: {', '.join(longer)}"
    found = get_close_matches(name, names, 3, 0.4)
    return f"near it: {', '.join(found)}" if found else "python -m theory lists all"


class Bounds(dict[str, Bound]):
    """Bounds by name; an unknown name is refused with those that start so, or the nearest ones."""

    def __missing__(self, name: str) -> Bound:
        """Raise a KeyError that helps."""
        raise KeyError(f"no bound is named {name!r}; {near(name, self)}")


@cache
def bounds() -> Bounds:
    """Return every bound of this package, by name.

    Example:
        >>> bounds()["window"].expr
        M*n*w
        >>> bounds()["windw"]
        Traceback (most recent call last):
        KeyError: "no bound is named 'windw'; near it: window, ..."
    """
    listed = [
        replace(bound, reference=REFERENCES.get(bound.name.split(".")[0], "derived here"))
        for module in MODULES
        for bound in module.bounds()
    ]
    named = Bounds((bound.name, bound) for bound in listed)
    if len(named) < len(listed):
        raise ValueError("two bounds have one name")
    return named


def prove(chain: Iterable[Proof] | None = None) -> Iterator[tuple[Claim, float]]:
    """Check proofs in order, and that each rests on assumptions and earlier claims only.

    Args:
        chain: the proofs; the whole catalogue if None.

    Yields:
        The proved claim, and the seconds that its check took.

    Raises:
        NotProvedError: if a check fails, or a claim is used before it is proved.

    Example:
        >>> from theory.explain import assumptions
        >>> claim, seconds = next(prove(constants.window()))
        >>> claim.name, assumptions(claim)
        ('window', ('given the schedule, |held part of an update| ≤ αMw',))
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
