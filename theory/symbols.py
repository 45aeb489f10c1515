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
q = _nonnegative("q", "probability that a link drops a message, which is then sent again")
crashed = _nonnegative("f", "number of workers that crash")
missing = _nonnegative("m", "number of workers whose gradients are missing")
H_local = _positive("H", "local steps between two averagings")
b = _nonnegative("b", "norm-bounded scheduler: the fraction of the mass that may still be missing")
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
decay = _nonnegative("r^T", "a T-th power: (1 − αc)^T, or ρ^T")
log_T = _positive("ln(T)", "logarithm of the number of steps, T > 1")
root_pT = _positive("√(pT)", "positive root of r² = pT")

# Held mass.
gamma = _positive("γ", "contraction of a compressor: E‖C(y) − y‖² ≤ γ‖y‖²")
root_gamma = _positive("√γ", "positive root of r² = γ")
rho = _positive("ρ", "contraction of held mass: |h⁺| ≤ ρ(|h| + αM)")
held = _nonnegative("|h|", "(E‖h‖²)^½ of the held mass h")
held_next = _nonnegative("|h⁺|", "(E‖h⁺‖²)^½ of the next held mass")
n = _positive("n", "number of updates held, or of gradients in flight")
share = _positive("w", "largest share of an update that is held")
prob = _positive("P", "probability that a given update is held")
prob_sum = _positive("ΣP", "sum of the probabilities of the updates held: Eτ")
fate_var = _nonnegative("‖rest‖²", "E‖h − E[h | content]‖²")
prob_var = _nonnegative("ΣP(1−P)", "sum of the variances of these fates")
