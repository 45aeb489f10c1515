"""Convergence bounds and elastic constants, proved by exact algebra.

The checker is `certificate`, `gram`, `region` and `induction`, with `roots` for the stability of
recursions; the mathematics, a module a subject, is `claims`; `catalogue` lists and checks it all,
as `python -m theory` does. What is proved can be asked for numbers: `bounds()` by name, `Chain` for
a system of one's own. sympy is imported on first use, JAX never.

Example:
    >>> import theory
    >>> region = theory.Region()
    >>> from theory.symbols import L, c
    >>> region.is_positive(L + c), region.is_nonnegative(L - c)
    (True, False)
    >>> theory.bounds()["N"].at(alpha=0.01, L=1, B=10, T=1e4, Delta=1, sigma=1, p=16)
    0.030625
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.bound import Bound
    from theory.catalogue import bounds, proofs, prove
    from theory.certificate import (
        Certificate,
        Claim,
        Condition,
        Hypothesis,
        NotProvedError,
        Region,
    )
    from theory.chain import Chain
    from theory.induction import Induction
    from theory.minimum import Minimum
    from theory.parts import (
        Mix,
        Part,
        average,
        choco,
        contraction,
        delay,
        diloco,
        feedback,
        gossip,
        inconsistent,
        resend,
        top_k_feedback,
        tracking,
        unbiased,
    )

__all__ = [
    "Bound",
    "Certificate",
    "Chain",
    "Claim",
    "Condition",
    "Hypothesis",
    "Induction",
    "Minimum",
    "Mix",
    "NotProvedError",
    "Part",
    "Region",
    "average",
    "bounds",
    "choco",
    "contraction",
    "delay",
    "diloco",
    "feedback",
    "gossip",
    "inconsistent",
    "proofs",
    "prove",
    "resend",
    "top_k_feedback",
    "tracking",
    "unbiased",
]

_HOMES = {
    "bound": "Bound",
    "catalogue": "bounds proofs prove",
    "certificate": "Certificate Claim Hypothesis",
    "chain": "Chain",
    "induction": "Induction",
    "minimum": "Minimum",
    "parts": "Mix Part average choco contraction delay diloco feedback gossip inconsistent resend "
    "top_k_feedback tracking unbiased",
    "region": "Condition NotProvedError Region",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'theory' has no attribute {name!r}")
    home = next(home for home, names in _HOMES.items() if name in names.split())
    return getattr(import_module(f"theory.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
