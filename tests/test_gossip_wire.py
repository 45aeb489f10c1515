"""What crosses the wire when workers mix: bytes read from the lowered program."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS
from jax.sharding import PartitionSpec
from mixing import spread_out
from steps import mesh_of

import elastic_jax as ej
from elastic_jax import gossip, graphs

BIG = {"m": jnp.zeros((24, 16), jnp.bfloat16), "b": jnp.zeros(40, jnp.float32)}


def crossing(make: Any, devices: int = 8) -> dict[str, list[int]]:
    """Bytes that each collective of one update gets from each device."""
    opt = make(AXIS)

    def block(stack):
        tree = jax.tree.map(lambda x: x[0], stack)
        return jax.tree.map(lambda x: x[None], opt.update(tree, opt.init(BIG), tree))

    spec = PartitionSpec(AXIS)
    run = jax.shard_map(
        block, mesh=mesh_of(devices), in_specs=spec, out_specs=spec, check_vma=False
    )
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), BIG)
    text = jax.jit(run).lower(stack).as_text()
    found: dict[str, list[int]] = {}
    pattern = r'"?stablehlo\.(collective_permute|all_gather|all_reduce)"?\(.*?\) ?(?:<|\(\{)'
    for match in re.finditer(pattern, text):
        tail = text[match.start() :]
        types = re.search(r": \(tensor<([\dx]*?)x?(bf16|f32|ui?\d+|i\d+)>\) ->", tail)
        assert types, tail[:200]
        numbers = int(np.prod([int(n) for n in types[1].split("x") if n]))
        width = int(re.sub(r"\D", "", types[2])) // 8
        found.setdefault(match[1], []).append(numbers * width)
    return found


def test_bytes_of_mixing():
    """Two neighbours: two messages, in the parameters' own dtypes."""
    one = 384 * 2 + 40 * 4
    ring = crossing(lambda axis: gossip.mix(axis, graphs.ring()))
    assert set(ring) == {"collective_permute"} and sum(ring["collective_permute"]) == 2 * one
    track = crossing(lambda axis: gossip.tracking(axis, graphs.ring()))
    assert sum(track["collective_permute"]) == 4 * one
    peer = crossing(lambda axis: gossip.mix(axis, graphs.one_peer()))
    assert sum(peer["collective_permute"]) == 3 * one  # one in each of three branches
    whole = crossing(lambda axis: gossip.mix(axis, graphs.complete()))
    assert whole == {"all_reduce": [40 * 4, 384 * 4]}
    torus = crossing(lambda axis: gossip.mix(axis, graphs.torus()))
    assert set(torus) == {"all_gather"} and sum(torus["all_gather"]) == one


@pytest.mark.slow
@pytest.mark.parametrize(
    "compressor", [ej.top_k(0.1), ej.sign(), ej.random_k(0.1)], ids=lambda c: c.name
)
def test_bytes_of_choco(compressor):
    """Payloads travel: twice on a ring, and once to all where every worker mixes with every one."""
    ring = crossing(lambda axis: gossip.choco(axis, graphs.ring(), compressor, 0.1))
    assert set(ring) == {"collective_permute"}
    assert sum(ring["collective_permute"]) == 2 * compressor.nbytes(BIG)
    graph = graphs.graph(spread_out(8))
    dense = crossing(lambda axis: gossip.choco(axis, graph, compressor, 0.1))
    assert set(dense) == {"all_gather"}
    assert sum(dense["all_gather"]) == compressor.nbytes(BIG)


def test_choco_sends_messages_where_payloads_are_no_smaller():
    ring = crossing(lambda axis: gossip.choco(axis, graphs.ring(), ej.top_k(0.9), 0.1))
    assert sum(ring["collective_permute"]) == 2 * (384 * 2 + 40 * 4)
