"""Stability of linear recursions, decided exactly.

A recursion is stable if all its characteristic roots lie inside the unit circle, and not if one
lies on it or outside. With one parameter y, and a polynomial of any order that a delay makes: where
roots cross the circle is known in closed form, and that they all leave it. For a given order, a
root on the circle makes a resultant in y zero, which leaves finitely many ranges of y; one rational
in each is put to the Schur–Cohn test. With more parameters and order 1 or 2: Jury's criteria are
inequalities, which `Region` decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import isqrt

import sympy as sp

from theory.certificate import Certificate, NotProvedError, Region, remainder
from theory.symbols import L, alpha, d, k, tau

STEP_SIZE = alpha * L

Case = tuple[int, int]
Range = tuple[Fraction, Fraction]
_i, _y, _z = sp.symbols("i y z")
_PI = (Fraction(31415926535897932384, 10**19), Fraction(31415926535897932385, 10**19))
_DIGITS = 10**20


def characteristic(blocks: int, delay: int) -> sp.Poly:
    """Return D·z^(τ+D)(1 − 1/z) + y(1 + z + … + z^(D−1)), zero for modes of the recursion.

    The recursion is x_{t+1} = x_t − (y/D) Σ_{j<D} x_{t−τ−j}: each step applies the D last
    gradients to one of D blocks, τ steps late.

    Example:
        >>> characteristic(1, 2).as_expr()
        y + z**3 - z**2
    """
    sent = sp.Add(*(_z**j for j in range(blocks)))
    return sp.Poly(blocks * (_z - 1) * _z ** (blocks + delay - 1) + _y * sent, _z)


@lru_cache
def crossings(blocks: int, delay: int) -> sp.Poly:
    """Return a square-free polynomial in y, zero wherever y > 0 puts a root on the unit circle.

    There 1/z, the conjugate of z, is a root too: the polynomial shares a root with its reverse.
    """
    forward = characteristic(blocks, delay)
    backward = sp.Poly(forward.all_coeffs()[::-1], _z)
    common = sp.Poly(sp.resultant(forward.as_expr(), backward.as_expr(), _z), _y).sqf_part()
    return common.quo(sp.Poly(_y, _y)) if common.eval(0) == 0 else common


def all_inside(coefficients: list[sp.Expr]) -> bool:
    """Return whether all roots lie inside the unit circle (Schur–Cohn), leading coefficient first.

    Example:
        >>> all_inside([sp.S(2), sp.S(0), sp.S(1)]), all_inside([sp.S(1), sp.S(0), sp.S(1)])
        (True, False)
    """
    while len(coefficients) > 1:
        first, last = coefficients[0], coefficients[-1]
        if abs(last) >= abs(first):
            return False
        mirrored = coefficients[::-1]
        coefficients = [first * a - last * b for a, b in zip(coefficients, mirrored, strict=True)]
        coefficients.pop()
    return True


def enclosure(expr: sp.Basic) -> Range:
    """Return rationals around a real number made of rationals, π, square roots and sines.

    Example:
        >>> low, high = enclosure(2 * sp.sin(sp.pi / 14))
        >>> low < high < low + Fraction(1, 10**15), round(float(low), 9)
        (True, 0.445041868)
    """
    if isinstance(expr, sp.Rational):
        value = Fraction(int(expr.p), int(expr.q))
        return value, value
    if expr is sp.pi:
        return _PI
    if isinstance(expr, (sp.Add, sp.Mul)):
        total, *others = (enclosure(part) for part in expr.args)
        for low, high in others:
            ends = [a * b for a in total for b in (low, high)]
            added = total[0] + low, total[1] + high
            total = added if isinstance(expr, sp.Add) else (min(ends), max(ends))
        return total
    if isinstance(expr, sp.Pow) and (low := enclosure(expr.base)[0]) > 0:
        high, power = enclosure(expr.base)[1], abs(expr.exp)
        if power == sp.Rational(1, 2):
            low = Fraction(isqrt(int(low * _DIGITS**2)), _DIGITS)
            high = Fraction(isqrt(int(high * _DIGITS**2) + 1) + 1, _DIGITS)
        elif isinstance(power, sp.Integer):
            low, high = low ** int(power), high ** int(power)
        else:
            raise NotProvedError(f"no enclosure: {expr}")
        return (low, high) if expr.exp > 0 else (1 / high, 1 / low)
    if isinstance(expr, (sp.sin, sp.cos)):
        low, high = enclosure(expr.args[0])
        if isinstance(expr, sp.cos):
            low, high = _PI[0] / 2 - high, _PI[1] / 2 - low
        if 0 <= low and high <= _PI[0] / 2:  # where the sine rises
            return _sine(low)[0], _sine(high)[1]
    raise NotProvedError(f"no enclosure: {expr}")


def _sine(x: Fraction) -> Range:
    """Return bounds of sin x for x in [0, 2]: partial sums of an alternating, falling series."""
    term, sums = x, [x]
    for i in range(2, 26, 2):
        term *= -x * x / (i * (i + 1))
        sums.append(sums[-1] + term)
    return min(sums[-2:]), max(sums[-2:])


@lru_cache(maxsize=512)
def _minimal(number: sp.Expr) -> sp.Poly:
    return sp.minimal_polynomial(number, _y, polys=True)


@dataclass(frozen=True)
class DelayStability(Certificate):
    """A proof that `characteristic(D, τ)` at y = αL is stable if and only if αL < limit.

    For all whole D ≥ 1 and τ ≥ 0. On the circle z = w², w = e^{iφ} with 0 < φ ≤ π/2 (a conjugate
    does as its root does); let s = sin φ, S = sin Dφ, n = D + 2τ.

    * *Crossings.* z = 1 is no root. (z − 1)·characteristic is a power of w times −4D s² wⁿ + 2iyS:
      where it is zero, wⁿ = ±i and y = 2D s²/|S|, so nφ = qπ/2 with an odd q.
    * *First.* It is q = 1: otherwise q ≥ 3, |sin qx| ≤ q sin x and sin qφ ≥ 2qφ/π ≥ (2q/π) sin φ
      (0 ≤ x, qφ ≤ π/2) make y at least 4q/π² > 1 times as large.
    * *Outwards.* Re(d ln y/d ln z) = τ + D/2 > 0 there, as Re z/(z − 1) = 1/2 = −Re z^D/(1 − z^D):
      |z| grows with y at every crossing, so roots leave the circle, one by one, and never return.
    * *Start.* At y = 0 the roots are 0, and 1 once, which moves inwards: dz/dy = −1.

    Taken as known: a polynomial's roots move continuously with its coefficients; |sin qx| ≤ q sin x
    for whole q and 0 ≤ x ≤ π/2; Jordan's inequality, sin x ≥ 2x/π there.

    In some cases the same is shown once more, by counting: the limit's minimal polynomial divides
    `crossings`, which has no smaller positive root, and one rational in each range between the
    crossings is put to the Schur–Cohn test.

    Attributes:
        blocks: D, in the claim's symbols.
        cases: for each (D, τ), a rational in each range, from 0 to beyond the last crossing.
    """

    blocks: sp.Expr = sp.S.One
    cases: Mapping[Case, tuple[sp.Rational, ...]] = field(default_factory=dict)

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """None: this is no identity."""
        return ()

    def _check(self) -> None:
        if len(self.claim.conditions) != 1 or not self.claim.conditions[0].strict:
            raise NotProvedError("the claim's one condition is αL < limit, strictly")
        limit = sp.expand(self.claim.conditions[0].expr + STEP_SIZE)
        if sp.expand(self.claim.expr + STEP_SIZE - limit) != 0 or not self.cases:
            raise NotProvedError("the claim is αL ≤ limit, counted in some cases", limit)
        angle = sp.pi / (2 * (self.blocks + 2 * tau))
        first = 2 * self.blocks * sp.sin(angle) ** 2 / sp.sin(self.blocks * angle)
        if sp.expand(limit - first) != 0:
            raise NotProvedError(f"the first crossing is {first}", limit - first)
        check_crossings()
        for (blocks, delay), points in self.cases.items():
            case = {d: sp.Integer(blocks), k: sp.S.One, tau: sp.Integer(delay)}
            check_motion(blocks, delay)
            count_roots(blocks, delay, limit.subs(case, simultaneous=True), points)


def _require_zero(what: str, *exprs: sp.Expr) -> None:
    for expr in exprs:
        if rest := remainder(expr, [(_i, _i**2 + 1)]):
            raise NotProvedError(what, rest)


def check_crossings() -> None:
    """Check what `DelayStability` says of crossings, for symbolic D and τ, or raise."""
    D, w, power_D, power_n, s, S = sp.symbols("D w w^D w^n s S", positive=True)
    z, n = w**2, D + 2 * tau
    # z^(D+τ−1) = wⁿ w^D/w²: the exponents agree.
    _require_zero("exponents", 2 * (D + tau - 1) - (n + D - 2))
    times = D * (z - 1) ** 2 * power_n * power_D / w**2 + _y * (power_D**2 - 1)
    turned = D * power_n * (w - 1 / w) ** 2 + _y * (power_D - 1 / power_D)
    _require_zero("the characteristic polynomial on the circle", times - power_D * turned)
    crossed = D * power_n * (2 * _i * s) ** 2 + _y * 2 * _i * S
    for sign in (1, -1):
        at = {power_n: sign * _i, _y: sign * 2 * D * s**2 / S}
        _require_zero("the crossings", crossed.subs(at))
        # They are the only ones: |wⁿ| = 1, with wⁿ as the equation has it.
        _require_zero("wⁿ", crossed.subs(power_n, _i * _y * S / (2 * D * s**2)))
    if enclosure(12 / sp.pi**2)[0] <= 1:
        raise NotProvedError("q = 1 is not shown to be the first crossing")
    for part, half in ((_z / (_z - 1), 1), (_z / (1 - _z), -1)):
        _require_zero("real parts on the circle", part + part.subs(_z, 1 / _z) - half)
    speed = 2 * sp.S.Half + (D + tau - 1) - D * sp.S.Half
    _require_zero("the real part of d ln y/d ln z", speed - tau - D / 2)
    if not Region().is_positive(speed):
        raise NotProvedError("roots are not shown to move outwards", speed)


def check_motion(blocks: int, delay: int) -> None:
    """Check, for one D and τ, how roots of `characteristic` move with y, or raise."""
    polynomial = characteristic(blocks, delay).as_expr()
    times = blocks * (_z - 1) ** 2 * _z ** (blocks + delay - 1) + _y * (_z**blocks - 1)
    _require_zero("(z − 1)·characteristic", (_z - 1) * polynomial - times)
    _require_zero("1 is no root", polynomial.subs(_z, 1) - blocks * _y)
    on = times.subs(_y, 0) / (1 - _z**blocks)  # y where z is a root
    speed = 2 * _z / (_z - 1) + blocks + delay - 1 + blocks * _z**blocks / (1 - _z**blocks)
    _require_zero("d ln y/d ln z", _z * sp.diff(on, _z) / on - speed)
    slopes = [sp.diff(polynomial, x).subs({_z: 1, _y: 0}) for x in (_y, _z)]
    _require_zero("the start", polynomial.subs({_z: 1, _y: 0}), slopes[0] - slopes[1])
    if not slopes[1] > 0:
        raise NotProvedError("the root 1 is not shown to move inwards", slopes[1])


def count_roots(blocks: int, delay: int, limit: sp.Expr, points: tuple[sp.Rational, ...]) -> None:
    """Show by counting, for one D and τ, that αL < limit is stable, and nothing else, or raise."""
    where, edge = f"D = {blocks}, τ = {delay}", crossings(blocks, delay)
    if limit.free_symbols or not edge.rem(_minimal(limit)).is_zero:
        raise NotProvedError(f"{where}: no root on the unit circle at {limit}", limit)
    low, high = (sp.Rational(end.numerator, end.denominator) for end in enclosure(limit))
    if low <= 0 or edge.count_roots(0, high) != 1:
        raise NotProvedError(f"{where}: {limit} is not the first crossing", limit)
    last = edge.count_roots(0, sp.oo)
    if len(points) != last + 1:
        raise NotProvedError(f"{where}: {len(points)} points for {last + 1} ranges")
    for index, point in enumerate(points):
        if point <= 0 or edge.eval(point) == 0 or edge.count_roots(0, point) != index:
            raise NotProvedError(f"{where}: {point} is not in range {index}", point)
        polynomial = sp.Poly(characteristic(blocks, delay).as_expr().subs(_y, point), _z)
        if all_inside(polynomial.all_coeffs()) != (index == 0):
            raise NotProvedError(f"{where}: not stable below alone, at αL = {point}", point)


def ranges(blocks: int, delay: int) -> tuple[sp.Rational, ...]:
    """Return a rational in each range of y > 0 between `crossings`, and one beyond them.

    Example:
        >>> ranges(1, 0)
        (1, 5/2)
    """
    edge, points = crossings(blocks, delay), []
    low, high = sp.Rational(0), sp.Rational(2)
    while edge.count_roots(0, high) < edge.count_roots(0, sp.oo):
        high *= 2
    for index in range(int(edge.count_roots(0, high)) + 1):
        below, above = low, high + 2
        while (count := edge.count_roots(0, point := (below + above) / 2)) != index or (
            edge.eval(point) == 0
        ):
            below, above = (below, point) if count > index else (point, above)
        points.append(point)
        low = point
    return tuple(points)


@dataclass(frozen=True)
class LinearStability(Certificate):
    """A proof by Jury's criteria that u⁺ = (matrix)u is stable, or that it is not.

    One or two characteristic roots lie inside the unit circle if and only if p(1) > 0,
    ±p(−1) > 0 and, for two, |determinant| < 1, p the characteristic polynomial.

    Attributes:
        matrix: of order 1 or 2.
        stable: whether stability is proved, or that a root lies on the circle or outside.
    """

    matrix: tuple[tuple[sp.Expr, ...], ...] = ()
    stable: bool = True

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """None: this is no identity."""
        return ()

    def _check(self) -> None:
        region, rows, order = Region(self.claim.conditions), self.matrix, len(self.matrix)
        if order not in (1, 2) or any(len(row) != order for row in rows):
            raise NotProvedError(f"a matrix of order {order}")
        trace = sp.Add(*(row[i] for i, row in enumerate(rows)))
        det = rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0] if order == 2 else sp.S.Zero
        jury = [1 - trace + det, 1 + trace + det, 1 - det, 1 + det]  # p(1), ±p(−1), |det| < 1
        if not region.is_nonnegative(self.claim.expr):
            raise NotProvedError("the conditions do not say what the claim says", self.claim.expr)
        if self.stable:
            shown = all(region.is_positive(expr) for expr in jury)
        else:
            shown = any(region.is_nonnegative(-expr) for expr in jury)
        if not shown:
            raise NotProvedError(f"not shown {'' if self.stable else 'not '}stable: {jury}")
