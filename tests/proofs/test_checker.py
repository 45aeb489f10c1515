"""What the checker refuses, and what its inner product means."""

import ast
import inspect
import itertools

import numpy as np
import pytest
import sympy as sp
from evaluation import evaluate

from theory import certificate, gram, induction, region, symbols
from theory.certificate import (
    Certificate,
    Claim,
    Condition,
    Hypothesis,
    NotProvedError,
    Region,
    remainder,
)
from theory.explain import assumptions
from theory.gram import inner, mean, noise, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction

x, y = sp.symbols("x y", positive=True)


@pytest.mark.parametrize(
    "expr",
    [
        sp.sqrt(x) - sp.sqrt(x + 1),
        sp.Float(0.5) * x,
        sp.exp(x),
        sp.sin(x) ** 2,
        sp.zoo,
        1 / (x - x),
    ],
)
def test_what_is_not_exact_is_refused(expr: sp.Expr) -> None:
    with pytest.raises(NotProvedError):
        Certificate(Claim("odd", "", -expr, (0,)), {}, ((expr, 1),)).check()


def test_true_but_not_shown_is_refused() -> None:
    assert not Region().is_nonnegative(x**2 - x * y + y**2)  # true, but "unknown" is a failure
    assert Region().is_nonnegative((x - y) ** 2)
    assert not Region().is_positive((x - y) ** 2)
    assert not Region().is_nonnegative(x / (x - y) ** 2)
    assert not Region().is_nonnegative(sp.Symbol("real", real=True))


@pytest.mark.parametrize(
    "condition",
    [
        Condition("quadratic", 1 - x**2, x),
        Condition("negative scale", 1 - x, x, -1 / x),
        Condition("no sign", 1 - sp.Symbol("s", real=True), sp.Symbol("s", real=True)),
        Condition("absent", 1 - x, y),
        Condition("slope may vanish", 1 - x * (y - 1), x),
    ],
    ids=lambda condition: condition.text,
)
def test_conditions_that_cannot_be_parametrised_are_refused(condition: Condition) -> None:
    with pytest.raises(NotProvedError):
        Region([condition])


def test_conditions_cannot_bound_one_parameter_twice() -> None:
    below = Condition("x ≤ y", y - x, x, 1 / x)
    with pytest.raises(NotProvedError):
        Region([below, Condition("x ≥ 2y", x - 2 * y, x)])
    with pytest.raises(NotProvedError):
        Region([below, Condition("y ≥ 2x", y - 2 * x, y)])


def test_each_condition_has_a_slack_of_its_own() -> None:
    """Of two parameters that are at least 1 either may be the larger."""
    region = Region([Condition("at least 1", each - 1, each) for each in (x, y)])
    assert region.is_positive(x + y - 1)
    assert not region.is_nonnegative(x - y) and not region.is_nonnegative(y - x)


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_only_strict_conditions_exclude_equality(order: tuple[bool, bool]) -> None:
    for strict in order:  # what was found of one is not said of the other
        region = Region([Condition("x and 1", x - 1, x, strict=strict)])
        assert region.is_nonnegative(x - 1) and region.is_positive(x - 1) == strict


def test_relations_must_be_monic() -> None:
    with pytest.raises(NotProvedError, match="monic"):
        remainder(x, [(x, x * y - 1)])


def test_an_instance_inherits_conditions_and_signs() -> None:
    below = Condition("x ≤ 1", 1 - x, x, 1 / x)
    source = Claim("source", "", -1, (-x,), (), (below,))
    for value in (2 * y, 1 - y, -y):
        use = source.instance({x: value})
        with pytest.raises(NotProvedError):
            Certificate(Claim("use", "", 0, (use.expr,), (use,)), {"source": 1}).check()
    use = source.instance({x: 1 / (1 + y)})
    Certificate(Claim("use", "", 0, (use.expr,), (use,)), {"source": 1}).check()
    free = sp.Symbol("free", real=True)
    with pytest.raises(ValueError, match="renamed"):
        Claim("source", "", 0, (free**2,)).instance({free: x + y})


def test_induction_must_keep_the_signs_of_its_state() -> None:
    bad = Induction(
        "bad",
        "",
        lambda k: (0, (k - k,)),
        (0,),
        (x,),
        (x - 1,),
        ((), {}, ()),
        ((), {SO_FAR: 0}, ()),
    )
    with pytest.raises(NotProvedError, match="sign"):
        bad.check()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_inner_product_is_the_mean_over_noise_and_workers(p: int) -> None:
    rng = np.random.default_rng(p)
    a, (g, shift) = rng.normal(size=3), rng.normal(size=(2, p, 3))
    flips = np.array(list(itertools.product([-1, 1], repeat=p)))
    # b and r depend on the noise: b = a + the noise of worker 0, r_i = g_i − the noise of worker i.
    xi = flips[:, :, None] * shift  # [outcome, worker, 3]
    b = a + xi[:, 0, :]
    V = (shift**2).sum() / p
    n = noise("n", sp.Float(V))
    symbolic = {
        "a": vector("a"),
        "b": vector("b", after=n),
        "g": per_worker("g"),
        "n": n,
        "r": per_worker("r", after=n),
    }
    arrays = {
        "a": np.broadcast_to(a, xi.shape),
        "b": np.broadcast_to(b[:, None], xi.shape),
        "g": np.broadcast_to(g, xi.shape),
        "n": xi,
        "r": g - xi,
    }
    average = {
        name: np.broadcast_to(v.mean(1, keepdims=True), v.shape) for name, v in arrays.items()
    }
    parts = average | {f"{name}~": v - average[name] for name, v in arrays.items()}
    parts |= {"n": xi}
    known = {
        f"⟨{s},{t}⟩": (parts[s] * parts[t]).sum(2).mean()
        for s, t in itertools.product(parts, repeat=2)
    }
    for s, t in itertools.combinations_with_replacement(symbolic, 2):
        expected = (arrays[s] * arrays[t]).sum(2).mean()
        assert evaluate(inner(symbolic[s], symbolic[t]), known) == pytest.approx(expected)
        expected = (average[s] * average[t]).sum(2).mean()
        means = inner(mean(symbolic[s], p), mean(symbolic[t], p))
        assert evaluate(means, known) == pytest.approx(expected)


def test_names_are_not_confused() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        inner(vector("b"), vector("b", after=noise("n", x)))
    with pytest.raises(ValueError, match="two noises"):
        inner(noise("n", x), noise("n", y))
    with pytest.raises(ValueError, match="name"):
        vector("g~")


def test_the_checker_is_short_enough_to_read() -> None:
    """400 lines at most, but for comments and docstrings: what all else rests on."""
    lines = 0
    for module in (certificate, gram, induction, region):
        source = inspect.getsource(module)
        told = {
            line
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }
        code = (line.strip() for i, line in enumerate(source.splitlines(), 1) if i not in told)
        lines += sum(bool(line) and not line.startswith("#") for line in code)
    print(f"{lines} lines of code")
    assert lines <= 400


def test_an_instance_says_what_it_assumes() -> None:
    L, rho = symbols.L, symbols.rho
    source = Claim("s", "", 2 * rho, (2,), (Hypothesis("ρ ≤ 1", 1 - rho),))
    use = Claim("use", "", L, (0,), (source.instance({rho: 1 + L}),))
    assert assumptions(use) == ("ρ ≤ 1 (at ρ = L + 1)",)


def test_an_instance_says_what_it_assumes_of_vectors() -> None:
    a = vector("a")
    near = Hypothesis("‖a‖² ≤ B²", symbols.B**2 - norm2(a))
    source = Claim("s", "", norm2(a), (symbols.B**2,), (near,))
    use = Claim("use", "", norm2(a), (0,), (source.instance({symbols.B: 0}),))
    assert assumptions(use) == ("‖a‖² ≤ B² (at B = 0)",)
