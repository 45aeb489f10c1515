"""Overlap: with `delay(1)` a collective and a gradient do not wait for each other."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from steps import draws, mesh_of

import elastic_jax as ej
from elastic_jax.programs import Collective, collectives
from experiments import overlap

P, ALPHA = 4, 0.1
LIKE = {"w": jnp.zeros((8, 6)), "out": jnp.zeros((6, 2))}
NBYTES = 4 * (8 * 6 + 6 * 2)
MEAN, LATE = ej.all_mean(AXIS), ej.delay(1)
POWER = ej.error_feedback(ej.low_rank(1), axis_name=AXIS)
HALF = ej.error_feedback(ej.identity("bfloat16"), axis_name=AXIS)


def loss(params, x):
    with jax.named_scope("loss"):
        return jnp.sum(jnp.tanh(x @ params["w"]) @ params["out"])


def chain(*parts: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.sgd(ALPHA), *parts)


@functools.cache
def program(*parts: optax.GradientTransformation, steps: int = 1, loop: bool = False) -> str:
    """Some steps of training on four devices, one after another or in a loop."""
    step = ej.worker_step(loss, chain(*parts), AXIS)
    run = ej.distribute(step, mesh_of(P))

    def train(states, batches):
        if loop:
            return jax.lax.scan(run.step, states, batches)
        for batch in batches:
            states, _ = run.step(states, batch)
        return states

    batches = jax.ShapeDtypeStruct((steps, P, 3, 8), jnp.float32)
    return jax.jit(train).lower(jax.eval_shape(run.init, LIKE), batches).compile().as_text() or ""


def around(*parts: optax.GradientTransformation, **kwargs: Any) -> list[Collective]:
    return collectives(program(*parts, **kwargs), "loss")


def test_without_a_delay_each_waits_for_the_other():
    """All that stands beside an exchange is the loss itself, which no update needs."""
    first, second = around(MEAN, steps=2)
    gradient, later = first.needs, first.delays
    assert gradient >= 4 and later >= gradient  # two products forward, two back
    assert first == Collective("all-reduce", NBYTES, gradient, later, 0, 0)
    assert second[:4] == ("all-reduce", NBYTES, 2 * gradient, 0) and second.beside <= 1


@pytest.mark.parametrize(
    "parts, kinds",
    [
        ((LATE, MEAN), ["all-reduce"]),
        ((LATE, POWER), ["all-reduce"] * 2),
        ((LATE, HALF), ["all-to-all", "all-gather"]),
        ((ej.delay(2), LATE, MEAN), ["all-reduce"]),
    ],
)
def test_delayed_before_the_exchange_both_run_in_one_step(parts, kinds):
    found = around(*parts)
    assert [one.kind for one in found] == kinds
    for one in found:
        assert one.needs == one.delays == 0 and one.beside >= 4


def test_in_the_body_of_a_loop_too():
    (one,) = around(LATE, MEAN, steps=3, loop=True)
    assert one.needs == one.delays == 0 and one.beside >= 4
    (one,) = around(MEAN, steps=3, loop=True)
    assert one.needs >= 4 and one.beside < one.needs  # the loss itself


@pytest.mark.slow
def test_delayed_after_the_exchange_it_runs_beside_the_next_gradient():
    *first, _, _ = around(POWER, LATE, steps=2)
    for one in first:
        assert one.needs >= 4 and one.delays == 0 and one.beside >= one.needs
    *first, _, _ = around(POWER, steps=2)
    for one in first:
        assert one.delays >= 4 and one.beside == 0


@pytest.mark.parametrize("parts", [(LATE, MEAN), (MEAN, LATE)])
def test_what_it_costs(parts):
    """B̂ <= τ M̂ with τ = 1, and no less where the gradient is constant."""
    for constant in (False, True):
        noise = draws(jnp.zeros(5), 8, P, seed=3)
        noise = jnp.broadcast_to(noise[:1, :1], noise.shape) if constant else noise
        meter = ej.meter(chain(*parts), ALPHA, AXIS, every=1)
        run = ej.simulate(ej.worker_step(lambda x, g: x @ g, meter, AXIS), P)
        states, _ = jax.lax.scan(run.step, run.init(jnp.zeros(5)), noise)
        measured, moment = (
            float(jnp.max(running.max))
            for running in (states.opt_state.elastic_constant, states.opt_state.second_moment)
        )
        assert 0 < measured <= moment * (1 + 1e-5)
        if constant:
            np.testing.assert_allclose(measured, moment, rtol=1e-5)


# ---- other machines' texts ----

ASYNCHRONOUS = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %tanh = f32[8,8]{1,0} tanh(%a), metadata={op_name="jit(step)/jvp(loss)/tanh"}
}

%wrapped (c: bf16[16]) -> bf16[8] {
  %c = bf16[16]{0} parameter(0)
  ROOT %part = bf16[8]{0} reduce-scatter(%c), dimensions={0}, to_apply=%add
}

ENTRY %main (p: f32[8,8], u: f32[8,8], g: bf16[16]) -> (f32[8,8], f32[8,8], bf16[8]) {
  %p = f32[8,8]{1,0:T(8,128)} parameter(0)
  %u = f32[8,8]{1,0} parameter(1)
  %g = bf16[16]{0} parameter(2)
  %start = f32[8,8]{1,0} all-reduce-start(%u), replica_groups={{0,1}}, to_apply=%add
  %fusion = f32[8,8]{1,0} fusion(%p), kind=kLoop, calls=%fused
  %dot = f32[8,8]{1,0} dot(%p, %fusion), metadata={op_name="jit(step)/transpose(jvp(loss))/dot"}
  %done = f32[8,8]{1,0} all-reduce-done(%start), metadata={op_name="jit(step)/loss/psum"}
  %other = ((bf16[16]), bf16[8]) async-start(%g), calls=%wrapped, control-predecessors={%dot}
  %end = bf16[8]{0} async-done(%other)
  %last = f32[8,8]{1,0} multiply(%dot, %done), metadata={op_name="jit(step)/jvp(loss)/mul"}
  ROOT %out = (f32[8,8]{1,0}, f32[8,8]{1,0}, bf16[8]{0}) tuple(%dot, /*index=1*/%last, %end)
}
"""


def test_a_gpu_program_says_what_its_collectives_hide():
    """Starts and ends stand apart there, and what is scheduled between them hides the time."""
    assert collectives(ASYNCHRONOUS, "loss") == [
        Collective("all-reduce", 256, needs=0, delays=1, beside=2, hiding=2),
        Collective("reduce-scatter", 32, needs=2, delays=0, beside=1, hiding=0),
    ]


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"no HLO computation; pass jax.jit\(step\)"):
        collectives("module @jit_step {}")


# ---- the command ----


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    assert overlap.main(["--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "0 programs tie a collective to the gradient" in said and "1.00" in said
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["delay"], row["unrolled"]) for row in rows] == [
        *(("none", 1), ("before", 1), ("none", 2), ("after", 2))
    ]


def test_other_exchanges_are_refused(tmp_path, capsys):
    assert overlap.main(["--exchanges", "gossip", "--out", str(tmp_path)]) == 2
    assert "--exchanges gossip: give some of all_mean" in capsys.readouterr().err
