"""Every symbol of the proofs, once: its sign and its meaning in one line.

The sign prover reads signs from here and from nowhere else: a symbol is positive, non-negative,
or (function values, inner products) of unknown sign.

Example:
    >>> from theory import symbols
    >>> symbols.MEANINGS[symbols.L]
    'smoothness: ‖∇f(x) − ∇f(y)‖ ≤ L‖x − y‖'
    >>> symbols.B.is_nonnegative, symbols.B.is_positive, symbols.f_x.is_nonnegative
    (True, None, None)
"""

import sympy as sp

MEANINGS: dict[sp.Symbol, str] = {}
"""The one-line meaning of every symbol."""


def _symbol(name: str, meaning: str, **signs: bool) -> sp.Symbol:
    symbol = sp.Symbol(name, real=True, **signs)
    if symbol in MEANINGS:
        raise ValueError(f"symbol {name} is defined twice")
    MEANINGS[symbol] = meaning
    return symbol


def _positive(name: str, meaning: str) -> sp.Symbol:
    return _symbol(name, meaning, positive=True)


def _nonnegative(name: str, meaning: str) -> sp.Symbol:
    return _symbol(name, meaning, nonnegative=True)


# The problem and the algorithm.
alpha = _positive("α", "step size")
L = _positive("L", "smoothness: ‖∇f(x) − ∇f(y)‖ ≤ L‖x − y‖")
c = _positive("c", "strong convexity, or the Polyak–Łojasiewicz constant")
p = _positive("p", "number of workers")
T = _positive("T", "number of steps")
B = _nonnegative("B", "elastic constant: E‖x − v‖² ≤ α²B², mean over workers")
sigma = _nonnegative("σ", "noise: E‖G̃(v) − ∇f(v)‖² ≤ σ²")
variance = _nonnegative("V", "the noise's variance, mean over workers; at most σ²")
Delta = _nonnegative("Δ", "f(x_0) − f*, or an upper bound of it")
M = _positive("M", "second moment: E‖G̃‖² ≤ M²")

# The relaxations.
tau = _nonnegative("τ", "delay: a view lacks at most the last τ updates")
q = _positive("q", "probability that a link drops a message, which is then sent again")
crashed = _positive("f", "number of workers that crash")
missing = _positive("m", "number of workers whose gradients are missing")
H_local = _positive("H", "local steps between two averagings")
b = _positive("b", "norm-bounded scheduler: the fraction of the mass that may still be missing")
omega = _nonnegative("ω", "variance of an unbiased compressor: E‖C(y) − y‖² ≤ ω‖y‖²")
d = _positive("d", "number of parameters")
k = _positive("k", "number of entries that are sent")
epsilon = _positive("ε", "how much worse than exact SGD a bound may be, relatively")

# Function values (expected; f_v is also the mean over workers).
f_star = _symbol("f*", "infimum of f")
f_x = _symbol("f(x)", "E f at the global iterate")
f_next = _symbol("f(x⁺)", "E f at the next global iterate")
f_v = _symbol("f(v)", "E f at the views, mean over workers")
f_0 = _symbol("f_0", "f at the first global iterate")
f_T = _symbol("f_T", "E f at the global iterate after the steps so far")
f_T1 = _symbol("f_T+1", "E f at the global iterate after one step more")

# Quantities along a run.
steps = _nonnegative("t", "number of steps so far")
grad_T = _nonnegative("A_T", "E‖∇f(x)‖² at the next step")
grad_sum = _nonnegative("ΣA", "sum of E‖∇f(x)‖² over the steps so far")
value_T = _symbol("f(v_T)", "E f at the views of the next step, mean over workers")
value_sum = _symbol("Σf(v)", "sum of E f(v) over the steps so far, mean over workers")
dist_next = _nonnegative("‖z⁺‖²", "E‖x⁺ − x*‖²")
dist_0 = _nonnegative("Z_0", "‖x_0 − x*‖²")
dist_T = _nonnegative("Z_T", "E‖x − x*‖² after the steps so far")
dist_T1 = _nonnegative("Z_T+1", "E‖x − x*‖² after one step more")
decay = _nonnegative("r^T", "a T-th power: (1 − αc)^T, (1 − αc/2)^T, or ρ^T")
log_T = _positive("ln(T)", "logarithm of the number of steps, T > 1")
root_pT = _positive("√(pT)", "positive root of r² = pT")
root_T = _positive("√T", "positive root of r² = T")
decay_half = _nonnegative("r_½^T", "(1 − αc/2)^T")

# Partial participation.
active = _positive("η", "share of the workers that take part: |I|/p, or P(i ∈ I)")
active_min = _positive("η_min", "smallest share of the workers that takes part in a step")
active_sum = _nonnegative("Ση", "sum of |I|/p over the steps so far")
active_grad_sum = _nonnegative("ΣηA", "sum of (|I|/p)·E‖∇f(x)‖² over the steps so far")
active_mean = _positive("η_mean", "mean over the steps of the share of the workers that takes part")

# Step sizes and horizons.
best = _positive("α*", "the step size that minimises a bound")
start_cost = _nonnegative("D", "coefficient of 1/α, or of (1 − αc)^T, in a bound")
noise_cost = _nonnegative("S", "coefficient of α in a bound")
drift_cost = _nonnegative("C", "coefficient of α² in a bound")
decay_best = _positive("r*^(T−1)", "(1 − α*c)^(T−1)")
noisy = _positive("σ₊", "the noise σ where it is not zero")
noise_held = _positive("n₁", "weight of the noise that is held: L²α²σ²n₁ in a bound")
least = _positive("Y", "T ≥ Y ln T is asked for")
log_least = _symbol("ln(2Y)", "logarithm of 2Y")
shrink = _positive("x", "step size, as a fraction of exact SGD's best")
bend_cost = _nonnegative("C′", "coefficient of α²/(1 − hα) in a bound")
pole = _positive("h", "C′α²/(1 − hα) grows without limit as α tends to 1/h")
gain = _nonnegative("e", "|D − F(α)|: by how much a start is worse, or better, than its floor")
later = _positive("T′", "a larger number of steps")
log_later = _positive("ln(T′)", "logarithm of T′")
log_start = _positive("ln(κT)", "ln(κT); κ tells how much larger than its noise a start is")
log_start_later = _positive("ln(κT′)", "ln(κT′)")
best_later = _positive("α*′", "the step size that minimises a bound of T′ steps")

# Held mass.
gamma = _positive("γ", "contraction of a compressor: E‖C(y) − y‖² ≤ γ‖y‖²")
root_gamma = _positive("√γ", "positive root of r² = γ")
rho = _positive("ρ", "contraction of held mass: |h⁺| ≤ ρ(|h| + αM)")
held = _nonnegative("|h|", "(E‖h‖²)^½ of the held mass h")
held_next = _nonnegative("|h⁺|", "(E‖h⁺‖²)^½ of the next held mass")
n = _positive("n", "number of updates held, or of gradients in flight: at most τ if delays are")
late = _positive("o", "number of one worker's updates that a view lacks")
share = _positive("w", "largest share of an update that is held")
prob = _positive("P", "probability that a given update is held")
prob_sum = _positive("ΣP", "sum of the probabilities of the updates held: Eτ")
prob_var = _nonnegative("ΣP(1−P)", "sum of the variances of these fates")
mass = _symbol("E‖h‖²", "second moment of held mass, mean over schedules")
square_sum = _symbol("Σ‖u‖²", "sum of the held updates' second moments")
square_links = _nonnegative("E[(ΣN)²]", "second moment of the number held on all links to a worker")
worst = _symbol("max‖h‖²", "the largest E‖h_i‖² of all workers i")
noise_sum = _nonnegative("ΣV", "sum of the missing workers' noise variances")
code_var = _nonnegative("V_C", "E‖C(G̃) − G̃‖² of an unbiased compressor")

# Chains of relaxations.
B1 = _positive("B₁", "elastic constant of the first relaxation of a chain, for every view")
along = _symbol("h·y", "⟨h, y⟩ for the held mass h and the unit vector y along it")
let_by = _nonnegative("‖Ky‖²", "the part of y on the entries of a message that are not held")
let_next = _nonnegative("‖K⁺y‖²", "the same, of the message before it")
root_mask = _positive("√(M²+2B₁²)", "positive root of r² = M² + 2B₁²")
root_omega = _positive("√(1+ω)", "positive root of r² = 1 + ω")
total_prob = _nonnegative("ΣP(N)", "probability of the values of N so far")
holes = _nonnegative("#holes", "runs of messages that are let through while older ones are held")
hole_cost = _nonnegative("X", "at least 2B₁ − M, and at least 0")

# Compression without feedback.
sigma_k = _nonnegative("σ_k", "noise that is sent: E‖top_k(ξ)‖² ≤ σ_k²")
kept_T = _nonnegative("π_T", "Σ_j π_j E(∂_j f)² at the next step, π_j = P(j ∈ top_k(ξ))")
kept_sum = _nonnegative("Σπ", "sum of Σ_j π_j E(∂_j f)² over the steps so far")
sent_T = _nonnegative("S_T", "E‖∇f on the entries sent‖² at the next step")
sent_sum = _nonnegative("ΣS", "sum of E‖∇f on the entries sent‖² over the steps so far")
top_squares = _nonnegative("Σ_top", "sum of the k largest squared entries")
rest_squares = _nonnegative("Σ_rest", "sum of the other squared entries")
kth_square = _nonnegative("θ", "the k-th largest squared entry")
excess = _nonnegative("u", "excess weight of what is left out: bounds hold for any that is chosen")
root_p = _positive("√p", "positive root of r² = p")
noise_size = _positive("s", "absolute value of an entry of the noise")
grad_size = _positive("g", "absolute value of an entry of the gradient")

# Views that miss gradients, without a bound of the second moment.
longest = _nonnegative("τ_max", "a gradient is missing from at most so many views")
young = _positive("y", "head start: bounds weigh y + n held updates, for any y that is chosen")
ratio = _positive("r", "αLτ: the step size as a fraction of 1/(Lτ)")
harmonic = _nonnegative("Σ1/(y+j)", "sum of 1/(y + j) over j = 1, …, number of updates held")
window_sum = _symbol("G_held", "sum of E‖∇f(v)‖² over the updates that a view misses")
weighted_sum = _symbol("ΣP_n(y+n)G_held", "G_held of N = n, weighted by P_n(y + n)")
memory = _positive("μ", "share of a residual's square that bounds keep, for any γ < μ < 1")
gap_T = _nonnegative("E_T", "E‖x − v‖² at the next step, mean over workers")
gap_sum = _nonnegative("ΣE", "sum of E‖x − v‖² over the steps so far, mean over workers")
view_mean_T = _nonnegative("Ḡ_T", "E‖mean_i ∇f(v_i)‖² at the next step")
view_spread_T = _nonnegative("G~_T", "mean_i E‖∇f(v_i)‖² at the next step, less Ḡ_T")
view_sum = _nonnegative("ΣG", "sum of E‖∇f(v)‖² over the steps so far, mean over workers")
visits = _nonnegative("U_T", "sum of E‖∇f(v)‖² times the views that may yet miss that gradient")
visits_next = _nonnegative("U_T+1", "the same, after one step more")
residual_T = _nonnegative("H_T", "mean_i E‖h_i‖² of the workers' residuals h_i")
residual_T1 = _nonnegative("H_T+1", "the same, after one step more")
residual_view = _nonnegative("R_T", "E‖mean_i h_i‖² of the residuals that the next view misses")
residual_sum = _nonnegative("ΣR", "sum of E‖mean_i h_i‖² over the views so far")
backlog = _nonnegative("K_T", "sum of mean_i E‖h_i‖² over residuals that no view missed yet")
backlog_next = _nonnegative("K_T+1", "the same, after one step more")
prob_N = _nonnegative("P_n", "probability that a view misses the last N = n updates")
gap_N = _nonnegative("E_n", "E‖x − v‖² if N = n")
mean_N = _nonnegative("EN", "mean of N")
square_N = _nonnegative("EN²", "mean of N²")
root_N = _positive("√EN²", "positive root of r² = E[N²]")
weight_N = _nonnegative("ΣE[(y+N)1(N≥j)]", "sum over j of E[y + N if N ≥ j, else 0]")
weighted_residual = _nonnegative("ΣP_n(1+n/y)R", "R of N = n, weighted by P_n(1 + n/y)")
weighted_residual_sum = _nonnegative("ΣΣP_n(1+n/y)R", "the same, summed over the views so far")
weighted_old = _symbol("ΣP_n(1+n/y)‖h'‖²", "mean_i E‖h_i‖² of N = n, weighted by P_n(1 + n/y)")
weight_residual = _nonnegative("ΣP_n(1+n/y)", "sum of the weights P_n(1 + n/y)")
link_T = _nonnegative("Λ_T", "E‖h‖² of what a link that resends holds back, mean over workers")
link_T1 = _nonnegative("Λ_T+1", "the same, after one step more")
link_sum = _nonnegative("ΣΛ", "sum of E‖h‖² behind each of the steps so far, for that link")
held_sum = _nonnegative("ΣH", "sum of mean_i E‖h_i‖² behind each of the steps so far")
held_grads = _nonnegative("n₂′", "gradient weight of what is held: ΣH ≤ α²(n₂′ΣG + n₁′σ²T)")
held_noise = _nonnegative("n₁′", "noise weight of what is held: ΣH ≤ α²(n₂′ΣG + n₁′σ²T)")
repeats = _positive("κ", "what a view misses of residuals is missing from at most so many views")
grad_weight = _positive("n₂", "ΣE‖x − v‖² ≤ α²(n₂ΣE‖∇f(v)‖² + …)")
root_weight = _positive("√(1+4n₂)", "positive root of r² = 1 + 4n₂")
root_2 = _positive("√2", "positive root of r² = 2")

# Compression without feedback at views that differ from x.
split = _positive("ζ", "weight of compression's floor against staleness: bounds hold for any one")
beta = _positive("β", "√γ/(1 − √γ): what error feedback holds back, in updates")
view_grad = _positive("e_j", "entry of x − v, its absolute value")
stretched = _positive("φ", "αLτ(1 + √γ): the step as a fraction of 1/(Lτ), times 1 + √γ")

# Workers that train alone and meet, and workers that mix.
gain_outer = _positive(
    "G", "outer optimizer: η/(1 − μ_m); with fragments 1 + max(|η/(1 − μ_m) − 1|, c_m)"
)
momentum = _nonnegative("μ_m", "momentum of an outer optimizer, below 1")
damping = _positive("1−μ_m", "what a meeting takes off an outer momentum, at most 1")
coast = _nonnegative(
    "c_m", "share of the outer momentum in x: ημ_m²/(1 − μ_m) (Nesterov), or ημ_m/(1 − μ_m)"
)
gain_excess = _positive("G−1", "by how much the gain of an outer optimizer exceeds 1")
slow = _positive("a_min", "gossip: at most each eigenvalue of s(I − W) but 0, s the step size")
fast = _positive("a_max", "gossip: at least each eigenvalue of s(I − W), s the step size")
fast_rate = _positive("r_W", "gossip: (1 − a_max)/(1 + a_max); see a_max")
weight = _positive("γ/ρ²", "gossip: weight of what messages left unsaid, γ(1 + a_min)/(1 − a_min)")
apart = _positive("‖I−W‖", "norm of I − W on deviations from the mean: 1 − ρ to 1 + ρ")
mixing = _nonnegative("K", "a mix keeps views within αKM of their mean, if |u| ≤ αM")
passed = _nonnegative("s_W", "to what part some rounds of a graph shrink deviations, at most")
message = _nonnegative("max‖m‖²", "the largest mean square, over workers, of messages to a mix")

DEFINITIONS: dict[sp.Symbol, sp.Expr] = {
    root_gamma: sp.sqrt(gamma),
    root_pT: sp.sqrt(p * T),
    root_p: sp.sqrt(p),
    root_T: sp.sqrt(T),
    log_T: sp.log(T),
    root_N: sp.sqrt(square_N),
    root_omega: sp.sqrt(1 + omega),
    root_mask: sp.sqrt(M**2 + 2 * B1**2),
    root_2: sp.sqrt(2),
}
"""What the proofs' abbreviations stand for, in the parameters that a user knows."""

RUN = frozenset(
    {variance, noise_sum, code_var, held, held_next, mass, square_sum, worst, message, visits}
    | {f_star, f_x, f_next, f_v, f_0, f_T, f_T1, value_T, value_sum, dist_next, dist_T, dist_T1}
    | {grad_T, grad_sum, active_grad_sum, kept_T, kept_sum, sent_T, sent_sum, top_squares}
    | {rest_squares, kth_square, noise_size, grad_size, view_grad, along, let_by, let_next}
    | {gap_T, gap_N, gap_sum, view_mean_T, view_spread_T, view_sum, visits_next, window_sum}
    | {weighted_sum, residual_T, residual_T1, residual_view, residual_sum, backlog, backlog_next}
    | {weighted_residual, weighted_residual_sum, weighted_old, link_T, link_T1, link_sum, held_sum}
)
"""Norms, gaps and function values along a run, which nobody sets; all else is a parameter, or made
of parameters: what a proof assumes of those is a condition of its bound."""


def used(*exprs: sp.Basic) -> tuple[sp.Symbol, ...]:
    """Return the symbols of expressions, by name.

    Example:
        >>> used(L * alpha, c)
        (L, c, α)
    """
    found = set().union(*(expr.free_symbols for expr in exprs))
    return tuple(sorted((s for s in found if isinstance(s, sp.Symbol)), key=str))
