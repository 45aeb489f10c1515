"""What a chain of relaxations costs: its elastic constant, step sizes, rates and horizons.

A chain is described in the order in which an update passes through it. Its elastic constant is put
together by the proved composition rules, part by part; the rates are those of the catalogue.

Example:
    Top-1% with error feedback, links that drop 5% of their messages and send them again, and a
    delay of 8 steps, on 16 workers:

    >>> from theory import delay, resend, top_k_feedback
    >>> chain = Chain(top_k_feedback(0.01), resend(0.05), delay(8), workers=16)
    >>> chain.elastic_constant
    <Bound chain: B ≤ M*sqrt(γ)/(1 - sqrt(γ)) + M*sqrt(q/(1 - q)**2 + (q/(1 - q) + τ)**2)>
    >>> round(chain.constant(M=1), 2)
    206.55
    >>> [(label, round(share, 3)) for label, share in chain.costs()]
    [('top-k 1% with feedback', 0.961), ('5% dropped, resent', 0.0), ('delay 8', 0.038)]
    >>> chain.rate("N").parameters
    (L, M, T, Δ, α, σ)
"""

import math
from dataclasses import replace
from typing import Any

import sympy as sp

from theory import symbols
from theory.bound import Bound
from theory.catalogue import bounds
from theory.certificate import Condition
from theory.claims.nonconvex import AVERAGE
from theory.claims.resent import behind_link
from theory.compose import compose, put
from theory.horizon import NEEDS, UNROLLED, of_condition, of_formula
from theory.minimum import positive_roots
from theory.parts import Mix, Part, whole

RATES = (
    "N", "N.tuned", "N.partial.fixed", "N.fresh", "S", "S.tuned", "S.simple", "C", "P", "P.tuned",
    "P.simple",
)  # fmt: skip
"""The rates of the catalogue in B."""


class Chain:
    """Relaxations in the order in which an update passes through them, on p workers in step.

    (Where workers apply updates one by one, undivided, what each of p holds counts whole: feedback
    at the workers of a race with delays up to τ has B = (pβ + τ)M, β = √γ/(1 − √γ).)

    The parts are functions of `theory`, each of a number: `delay(steps)`, `resend(probability)`,
    `feedback(gamma)` and `top_k_feedback(fraction)` for compression with error feedback,
    `contraction(rho)` for whatever shrinks what it holds, `inconsistent(steps)` for shared memory,
    and, first of its chain only, `unbiased(omega)` compression without feedback:

        Chain(top_k_feedback(0.01), resend(0.05), delay(8), workers=16)

    A chain may end in one mix, where workers do not all get the same: `gossip(rho)`, CHOCO's
    compressed one, `choco(gamma, slow, fast)`, gradient `tracking(rho, apart)`, local SGD's
    `average(every)`, or `diloco(every, learning_rate, momentum)`, whose gain allows nothing before
    it but unbiased compression. B is then a root mean square over workers:

        Chain(delay(8), tracking(0.9, 1.2), workers=16)

    Attributes:
        parts: the relaxations, and the mix.
        workers: p.
        gain: the global iterate moves by αG times the mean of the gradients; 1 but for DiLoCo.
        values: the numbers of the parts' symbols.
        elastic_constant: the bound of B in the parts' symbols, and in M.
    """

    def __init__(self, *parts: Part | Mix, workers: int = 1):
        """Compose the parts.

        Raises:
            TypeError: for what is no part.
            ValueError: for an order in which no constant is proved, or workers below 1.
        """
        for part in parts:
            if not isinstance(part, Part | Mix):
                raise TypeError(f"{part!r} is no part of a chain; pass delay(…), feedback(…), …")
        self.parts, self.workers = parts, whole("workers", workers, 1)
        self._relaxations = [part for part in parts if isinstance(part, Part)]
        mixes = [part for part in parts if isinstance(part, Mix)]
        if mixes and mixes != [parts[-1]]:
            raise ValueError(
                f"{self.label}: a mix comes last; behind it what is held would let views drift "
                "apart without limit"
            )
        if any(part.kind == "unbiased" for part in self._relaxations[1:]):
            raise ValueError(
                "unbiased compression behind another part would lose what that part holds back; "
                "put it first, or use feedback"
            )
        outer = [mix for mix in mixes if mix.gain is not None]
        if outer and any(part.kind != "unbiased" and part.value for part in self._relaxations):
            raise ValueError(
                f"{self.label}: an outer optimizer multiplies what reaches it, not what is held "
                "before it; pass it alone, or behind unbiased compression (it takes delay= itself)"
            )
        # Without outer optimizer, views of one worker, or of complete averages, are all alike.
        spread = [mix for mix in mixes if mix.bounds and workers > 1]
        self._mix = next(iter(outer or spread), None)
        self.gain = (self._mix and self._mix.gain) or 1.0
        self.elastic_constant, self.values = compose(self._relaxations, self._mix)

    @property
    def label(self) -> str:
        """The parts, for a reader."""
        return " → ".join(part.label for part in self.parts) or "exact SGD"

    def __repr__(self) -> str:
        """Return the parts and the elastic constant."""
        return f"<Chain {self.label}, p = {self.workers}: B ≤ {self.constant(M=1):.4g}·M>"

    def constant(self, M: float) -> float:
        """Return B in numbers, for a second moment E‖G̃‖² ≤ M²."""
        return put(self.elastic_constant, {**self.values, symbols.M: M}).at()

    def costs(self) -> list[tuple[str, float]]:
        """Return each part's label and the share of B that the chain without it would save.

        Nothing is saved where B = 0.
        """
        whole = self.constant(M=1)
        rests = [
            Chain(*self.parts[:i], *self.parts[i + 1 :], workers=self.workers)
            for i in range(len(self.parts))
        ]
        saved = [1 - rest.constant(M=1) / whole if whole else 0.0 for rest in rests]
        return [(part.label, share) for part, share in zip(self.parts, saved, strict=True)]

    def rate(self, name: str = "N") -> Bound:
        """Return a rate of the catalogue with this chain's numbers put in; α is a worker's step.

        Args:
            name: of a rate in B, such as "N", "S", "C", "P", "N.tuned"; or "W" for the rate of
                this chain that needs no second moment M.

        Raises:
            ValueError: if it is none in B, or none is proved without M for this chain.
        """
        if name != "W" and name not in RATES:
            raise ValueError(f"{name!r} is no rate in B; pass one of {', '.join(RATES)}, or W")
        rate = self._oblivious() if name == "W" else self._elastic(name)
        return put(rate, {symbols.p: self.workers})

    def _elastic(self, name: str) -> Bound:
        rate = bounds()[name].put(B=put(self.elastic_constant, self.values).expr / self.gain)
        if self.gain != 1:
            rate = put(rate, {symbols.alpha: self.gain * symbols.alpha})
            rate = replace(rate, quantity=rate.quantity.replace("at α", "at Gα"))
        if self._compressed:
            noise = symbols.sigma**2 + self._relaxations[0].value * symbols.M**2
            rate = rate.put(sigma=sp.sqrt(noise))
        return rate

    @property
    def _compressed(self) -> bool:
        """Whether there is unbiased compression."""
        return any(part.kind == "unbiased" and part.value for part in self._relaxations)

    def _oblivious(self) -> Bound:
        parts = [part for part in self._relaxations if part.value]  # the others hold nothing
        kinds = [part.kind for part in parts]
        fed = kinds[:1] == ["contraction"] and parts[0].symbol == symbols.gamma
        if set(kinds[fed:]) - {"hold"} or self._mix:
            raise ValueError(
                "without M, rates are proved for feedback, or none, before delays and resends; "
                f"this chain is {self.label}"
            )
        if not parts:
            return replace(bounds()["N"].put(B=0), name="exact SGD")
        gamma = parts[0].value if fed else 0
        # A delay before a link that resends holds what it would hold behind it.
        waits = [part.settings(sp.nsimplify(part.value)) for part in parts[fed:]]
        steps = sum(mean for mean, variance in waits if variance == 0)
        links = [mean for mean, variance in waits if variance > 0]
        if not (gamma or links):
            # The best of all y, for each α: its steps are the longest, its noise the least.
            rate = bounds()["W.best"].put(n=steps, ratio=symbols.alpha * symbols.L * steps)
            return replace(rate, quantity=AVERAGE)
        if not links:
            name, delayed = ("W.both.wide", {"tau": steps}) if steps else ("W.feedback", {})
            return bounds()[name].put(gamma=gamma, **delayed)
        # Every y > 0 gives a bound; these allow the longest steps.
        root = math.sqrt(gamma)
        n2, n1 = sp.Float(gamma / (1 - root) ** 2), sp.Float(gamma / (1 - root))
        for mean in links:
            n2, n1 = behind_link(n2, n1, mean, sp.sqrt(n2 + mean * (1 + mean)))
        return bounds()["W.held"].put(tau=steps, held_grads=n2, held_noise=n1, young=sp.sqrt(n2))

    def largest_step(self, name: str = "N", *, L: float) -> float:
        """Return the largest step size for which a rate holds, or the limit below which it does.

        Args:
            name: of the rate, as in `rate`. "N" and all other rates in B allow long steps, but
                rely on E‖G̃‖² ≤ M² for a fixed M along the whole run, whatever the step; "W" does
                not, and its steps are shorter.
            L: the smoothness.
        """
        limits = [limit.expr for limit in self._limits(name, L)]
        roots = [root for expr in limits for root in positive_roots(expr, symbols.alpha, {})]
        if not roots:
            raise ValueError(f"{name} sets no limit to α alone: ask N, S, C, P or W")
        return min(roots)

    def _limits(self, name: str, L: float) -> list[Condition]:
        """Return what a rate asks of the step size alone."""
        conditions = self.rate(name).put(L=L).conditions
        return [each for each in conditions if each.expr.free_symbols == {symbols.alpha}]

    def horizon(
        self,
        epsilon: float,
        name: str = "N",
        *,
        L: float,
        sigma: float,
        M: float | None = None,
        Delta: float | None = None,
        dist_0: float | None = None,
        c: float | None = None,
    ) -> tuple[float, float]:
        """Return the T from which on a rate is within 1 + ε of its value for exact SGD.

        For N and C it is a formula, for W one whose n₁ may depend on α; for S and P it is where a
        proved condition begins to hold for good, found by halving; that it holds from there up to
        T = e², or κT = e², beyond which it is proved to last, is checked on a grid of 400 points.
        See `theory.horizon`.

        Args:
            epsilon: ε > 0.
            name: of the rate, as in `rate`: "N", "W", "C", "S" (simplified) or "P" (simplified).
            L: the smoothness.
            sigma: the noise, positive.
            M: the second moment, E‖G̃‖² ≤ M² along the run; needed for all but "W".
            Delta: f(x_0) − f*; needed for "N", "W" and "P".
            dist_0: ‖x_0 − x*‖²; needed for "C" and "S".
            c: the strong convexity or Polyak–Łojasiewicz constant; needed for "S" and "P".

        Returns:
            T at the textbook step, α = √(p/T), or ln T/(cT) for S and P; and at exact SGD's best
            one, such as √(2Δp/(TLσ²)) for N. Both so large that α is within `largest_step`. With a
            gain G these are Gα.

        Raises:
            TypeError: if an argument that the rate needs is missing.
            ValueError: with unbiased compression, whose noise stays at every T; for another rate;
                or for numbers out of range.
        """
        if name not in NEEDS:
            raise ValueError(f"name={name!r}: horizons are known for {', '.join(NEEDS)}")
        given = {"M": M, "Delta": Delta, "dist_0": dist_0, "c": c}
        if missing := [key for key in NEEDS[name] if given[key] is None]:
            raise TypeError(f"the horizon of {name} also needs {' and '.join(missing)}")
        if self._compressed:
            raise ValueError("unbiased compression adds noise at every T; compare rates instead")
        if not sigma > 0:
            raise ValueError(
                f"sigma={sigma!r} is out of range; horizons need noise: pass sigma > 0"
            )
        known: dict[sp.Symbol, Any] = {
            symbols.L: L,
            symbols.p: self.workers,
            symbols.sigma: sigma,
            symbols.epsilon: epsilon,
            **{vars(symbols)[key]: given[key] for key in NEEDS[name] if key != "M"},
        }
        if M is not None and name != "W":
            known[symbols.B] = self.constant(M) / self.gain
        if name in UNROLLED:
            return of_condition(name, known)
        held = sp.S.Zero
        if name == "W":
            more = self.rate("W").expr - Chain(workers=self.workers).rate("W").expr
            scale = symbols.L**2 * symbols.alpha**2 * symbols.sigma**2
            held = sp.cancel((more / scale).subs(list(known.items())))
        strict = any(limit.strict for limit in self._limits(name, L))
        return of_formula(name, known, held, self.gain * self.largest_step(name, L=L), strict)

    def report(
        self,
        *,
        L: float,
        sigma: float,
        M: float | None = None,
        Delta: float | None = None,
        dist_0: float | None = None,
        c: float | None = None,
        epsilon: float = 0.1,
    ) -> str:
        """Return what the chain costs, in lines for a reader; the arguments are `horizon`'s.

        Those rates are told for which everything is given: with Delta "W", which needs no second
        moment M, where it is proved; with Delta and M "N"; with dist_0 and M "C"; with c too "P"
        and "S".
        """
        given = {"M": M, "Delta": Delta, "dist_0": dist_0, "c": c}
        constant = f"{self.constant(1):.4g}·M" if M is None else f"{self.constant(M):.4g}"
        lines = [
            f"{self.label}, p = {self.workers}",
            f"  elastic constant      B = {self.elastic_constant.expr} = {constant}",
        ]
        if self.values:
            settings = ", ".join(f"{symbol} = {x:.4g}" for symbol, x in self.values.items())
            lines.append(f"                        with {settings}")
        lines.append("                        if E‖G̃‖² ≤ M² along the run; W relies on no M")
        lines += [
            f"    without {label:30} B would be {100 * share:.3g}% smaller"
            for label, share in self.costs()
        ]
        told = [name for name, keys in NEEDS.items() if all(given[key] is not None for key in keys)]
        for name in told:
            try:
                lines += self._told(name, epsilon, L, sigma, given)
            except ValueError as error:
                lines.append(f"  {name}: {error}")
        if not told:
            lines.append(
                "  for its rates give Delta, dist_0 (C and S), c (P and S), and M (all but W)"
            )
        return "\n".join(lines)

    def _told(
        self, name: str, epsilon: float, L: float, sigma: float, given: dict[str, float | None]
    ) -> list[str]:
        """Return a rate's lines."""
        rate = self.rate(f"{name}.simple" if name in UNROLLED else name)
        strict = any(limit.strict for limit in self._limits(name, L))
        largest = f"{'<' if strict else '='} {self.largest_step(name, L=L):.4g}"
        lines = [
            f"  {rate.name:20}  {rate.quantity} ≤ {_rounded(rate.expr)}",
            f"    largest step        α {largest}",
        ]
        if self._compressed:
            return [*lines, "    no horizon: unbiased compression adds noise at every T"]
        book, best = self.horizon(epsilon, name, L=L, sigma=sigma, **given)
        usual = "α" if self.gain == 1 else "Gα"
        usual += " = ln T/(cT)" if name in UNROLLED else " = √(p/T)"
        return [
            *lines,
            f"    within {1 + epsilon:g} of exact  from T = {book:.3g} at {usual}",
            f"                        from T = {best:.3g} at exact SGD's best step",
        ]


def _rounded(expr: sp.Expr) -> sp.Basic:
    """Return an expression with its floating-point numbers to four digits."""
    return expr.xreplace({number: sp.Float(number, 4) for number in expr.atoms(sp.Float)})
