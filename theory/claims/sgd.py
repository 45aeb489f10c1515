"""SGD at elastic views: the vectors, the assumptions and the recursion that its proofs share.

p workers; worker i reads a view v_i = x − e_i of the global iterate x, and

    x⁺ = x − α mean_i (g_i + ξ_i) ,    g_i = ∇f(v_i) ,

with unbiased noise ξ_i of variance at most σ², independent across workers and of the views. The
views are elastic: E‖e‖² ≤ α²B², mean over workers (Nadiradze et al., "Elastic Consistency", AAAI
2021, arXiv 2001.05918). Single steps are p = 1. The schedule of delays, losses and crashes is
assumed independent of the noise. x* minimises f; z = x − x*, w = v − x*, a = ∇f(x).
"""

import sympy as sp

from theory.certificate import Condition, Hypothesis
from theory.gram import Scalar, Vector, inner, mean, noise, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction
from theory.symbols import (
    B,
    L,
    alpha,
    c,
    decay,
    dist_next,
    dist_T,
    dist_T1,
    f_next,
    f_star,
    f_T,
    f_v,
    f_x,
    p,
    sigma,
    variance,
)

ONE = sp.S.One

STEP = Condition("αL ≤ 1", 1 - alpha * L, alpha, 1 / alpha)
STRICT_STEP = Condition("αL < 1", 1 - alpha * L, alpha, 1 / alpha, strict=True)
HALF_STEP = Condition("αL ≤ 1/2", 1 - 2 * alpha * L, alpha, 1 / alpha)
CURVED = Condition("c ≤ L", L - c, L)
STRICTLY_CURVED = Condition("c < L", L - c, L, strict=True)

# The vectors. Deviations of the workers are written apart, by `per_worker`.
A = vector("a")  # ∇f(x)
Z = vector("z")  # x − x*
E = per_worker("e")  # x − v
G = per_worker("g")  # ∇f(v)
XI = noise("ξ", variance)
W = Z - E
SPREAD = G - mean(G, p)  # g_i − mean g
UPDATE = mean(G + XI, p) * alpha

QUIET = Hypothesis("variance ≤ σ²", sigma**2 - variance)
ELASTIC = Hypothesis("elastic consistency", alpha**2 * B**2 - norm2(E))
BELOW = Hypothesis("f ≥ f*", f_T - f_star)


def smooth(direction: Vector) -> Hypothesis:
    """Return f(x⁺) ≤ f(x) − α⟨∇f(x), u⟩ + (L/2)α²‖u‖² for x⁺ = x − αu, u the direction."""
    update = direction * alpha
    bound = f_x - inner(A, update) + L / 2 * norm2(update)
    return Hypothesis("f is L-smooth", bound - f_next)


# What the steps assume, besides elasticity and noise.
SMOOTH = smooth(mean(G + XI, p))
LIPSCHITZ = Hypothesis("∇f is L-Lipschitz", L**2 * norm2(E) - norm2(A - G))
MOVE = Hypothesis("update", norm2(Z - UPDATE) - dist_next)  # or any step that ends nearer to x*
CONVEX = Hypothesis(
    "f is convex and L-smooth at v, x*", f_star - f_v + inner(G, W) - norm2(G) / (2 * L)
)
SECANT = Hypothesis("f is c-convex and L-smooth at v, x*", inner(G - W * c, W * L - G))

NORM_A, NORM_Z = norm2(A), norm2(Z)
DISTANCE_AT_T = {NORM_Z: dist_T, dist_next: dist_T1}


def unroll(
    name: str,
    text: str,
    step: Hypothesis,
    floor: tuple[sp.Expr, ...],
    states: tuple[sp.Expr, sp.Expr, sp.Expr],
    conditions: tuple[Condition, ...],
    rate: sp.Expr = alpha * c,
    above: Scalar = 0,
    remark: str = "",
) -> Induction:
    """Unroll u⁺ ≤ (1 − y)u + y·floor to u_T ≤ q u_0 + (1 − q)floor, q = (1 − y)^T, y the rate.

    u is what the `states` have `above` this: f − f*, for instance.
    """
    first, now, following = states
    return Induction(
        name,
        text,
        lambda u, q: (u - above, (q * (first - above), *((1 - q) * term for term in floor))),
        start=(first, ONE),
        now=(now, decay),
        following=(following, (1 - rate) * decay),
        start_by=((), {}, ()),
        step_by=((step,), {step.name: ONE, SO_FAR: 1 - rate}, ()),
        conditions=conditions,
        remark=remark,
    )
