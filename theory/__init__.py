"""Convergence bounds and elastic constants, proved by exact algebra.

`theory.certificate` and `theory.induction` check proofs; `theory.convergence` and
`theory.constants` hold them; `theory.catalogue` lists and checks them all, as `python -m theory`
does. sympy is imported on first use, JAX never.

Example:
    >>> import theory
    >>> region = theory.Region()
    >>> from theory.symbols import L, c
    >>> region.is_positive(L + c), region.is_nonnegative(L - c)
    (True, False)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.catalogue import proofs, prove
    from theory.certificate import (
        Certificate,
        Claim,
        Condition,
        Hypothesis,
        NotProvedError,
        Region,
    )
    from theory.induction import Induction

__all__ = [
    "Certificate",
    "Claim",
    "Condition",
    "Hypothesis",
    "Induction",
    "NotProvedError",
    "Region",
    "proofs",
    "prove",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'theory' has no attribute {name!r}")
    homes = {"proofs": "catalogue", "prove": "catalogue", "Induction": "induction"}
    return getattr(import_module(f"theory.{homes.get(name, 'certificate')}"), name)
