"""Chains in words: read as they are meant, and as far from the global iterate as is proved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elastic_jax as ej
from experiments import chains
from experiments.chains import AXIS, parse

P, D, STEPS, ALPHA = 4, 12, 60, 0.1

# the parts as `theory` sees them
CHAINS = {
    "none": "delay 0",
    "delay 3": "delay 3 → delay 0",
    "inconsistent 2, delay 1": "inconsistent reads, delay 2 → delay 1 → delay 0",
    "top_k 0.25 feedback": "feedback, γ = 0.75",
    "natural, delay 1": "unbiased compression, ω = 0.125 → delay 1",
    "topk 0.5 feedback, sign feedback": "feedback, γ = 0.5 → feedback, γ = 0.916667",
    "late 4": "messages up to 4 late",
    "topk 0.5 feedback, late 3": "feedback, γ = 0.5 → messages up to 3 late",
    "delay 1, norm 0.5": "delay 1 → contraction 0.5",
    "average 4": "average every 4",
    "inconsistent 2, average 3": "inconsistent reads, delay 2 → average every 3",
    "gossip exponential": "gossip, ρ = 0.333333",
    "gossip one_peer": "gossip, K = 1",
    "delay 2, gossip one_peer": "delay 2 → gossip, K = 1",
    "natural, gossip torus": "unbiased compression, ω = 0.125 → gossip, ρ = 0.333333",
    "tracking ring": "gradient tracking, ρ = 0.333333",
    "choco ring quantize 8": "CHOCO, γ = 0.000744",
    "diloco 4 0.1 0.9": "DiLoCo, H = 4, G = 1",
}


@pytest.fixture(scope="module", params=CHAINS)
def bounded(request):
    parts = parse(request.param)
    return request.param, parts, chains.bounded(parts, jnp.zeros(D), P)


def test_what_is_bounded(bounded):
    text, _, chain = bounded
    assert chain.label.startswith(CHAINS[text])


@pytest.mark.slow  # compiles them all
def test_what_runs_stays_within_its_bound(bounded):
    """Workers whose gradients turn now and then; none is larger than M = 1, before compression."""
    _, parts, chain = bounded
    relaxed = [part.relax(place) for place, part in enumerate(parts)]
    opt = ej.meter(optax.chain(optax.sgd(ALPHA), *relaxed), ALPHA, AXIS, every=1)
    run = ej.simulate(ej.worker_step(lambda x, slope: jnp.sum(x * slope), opt, AXIS), P)
    slopes = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS // 5, P, D)), jnp.float32)
    slopes = jnp.repeat(slopes / jnp.linalg.norm(slopes, axis=-1, keepdims=True), 5, axis=0)

    @jax.jit
    def gaps(states):
        def step(states, batch):
            states, _ = run.step(states, batch)
            return states, states.opt_state.gap.last

        return jax.lax.scan(step, states, slopes)[1]

    drift = np.sqrt(np.asarray(gaps(run.init(jnp.zeros(D)))).mean(1).max()) / ALPHA
    bound, rounding = chain.constant(M=1), 1e-5
    assert drift <= bound + rounding and (drift > rounding) == (bound > 0)


BAD = {
    "topk 0.1": "no bound is proved without feedback",
    "topk 0.1 0.2 feedback": "give one amount",
    "topk 7.5 feedback": "'topk 7.5 feedback': ",
    "delay": "'delay': write delay N",
    "delay -1": "steps=-1 is out of range",
    "delay 2.5": "'delay 2.5': '2.5' is no whole number",
    "average 3000000000": "every=3000000000 is out of range; pass an int below",
    "natural 3": "natural takes no amount",
    "topk feedback 0.1": "give one amount, and then feedback",
    "natural feedback feedback": "natural takes no amount",
    "magic": "give none, delay, .* or one of topk",
    "delay 2,, delay 3": "nothing between commas",
    "gossip moebius": "'moebius' is no graph; give one of ring",
    "gossip ring, delay 2": "name the mix last",
    "late 2, norm 0.5": "name one exchange or mix",
    "late 2, gossip ring": "name one exchange or mix",
    "norm 1.5": "rho=1.5 is out of range",
    "choco one_peer sign": "one_peer.. varies",
    "choco ring": "write choco GRAPH COMPRESSOR",
    "choco ring magic": "'magic' is no compressor; give one of topk",
    "diloco 4 0.7": "write diloco H η μ",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_bad_chains(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_tracking_over_a_graph_that_varies_has_no_bound():
    with pytest.raises(ValueError, match="'tracking one_peer': no bound is proved"):
        chains.bounded(parse("tracking one_peer"), jnp.zeros(D), P)


@pytest.mark.parametrize("compressor", ["sign", "randomk 0.25", "topk 0.5", "quantize 4"])
def test_few_workers_stand_at_the_edge_of_stability(compressor):
    """On a ring of two or three the longest step meets its condition, up to rounding."""
    for d in range(2, 30, 3):
        for p in (1, 2, 3, 4):
            chain = chains.bounded(parse(f"choco ring {compressor}"), jnp.zeros(d), p)
            assert np.isfinite(chain.constant(M=1)) and (chain.constant(M=1) > 0) == (p > 1)


def test_settings_run_as_they_are_bounded():
    fed, late = parse("topk 0.34 feedback, delay 4")
    assert fed.bounded(jnp.zeros(3), 2).label == "feedback, γ = 0.333333"  # two of three are sent
    state = late.relax(0).init(jnp.zeros(3))
    assert longest_queue(state) in (4, 5)
    for text in ("late 4", "inconsistent 4, average 2"):
        assert longest_queue(parse(text)[0].relax(0).init(jnp.zeros(3))) == 5, text


def longest_queue(state):
    return max(leaf.shape[0] for leaf in jax.tree.leaves(state) if leaf.ndim == 2)
