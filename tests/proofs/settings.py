"""Numbers at which several tests ask for bounds."""

import theory
from theory import symbols

SETTING = {"L": 2.0, "sigma": 1.5, "Delta": 3.0}
START = {"M": 2.0, "dist_0": 4.0, "c": 0.3}


def at(bound: theory.Bound, **known: float) -> float:
    """Return a bound's value; it need not depend on all that is known."""
    return bound.at(**{k: v for k, v in known.items() if vars(symbols)[k] in bound.parameters})
