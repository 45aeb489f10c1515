"""Relaxed distributed SGD as optax transformations that never lose update mass.

May distributed SGD be stale, compressed, partial or lock-free, by how much, and does it still
converge? Elastic consistency (Nadiradze, Markov, Chatterjee, Kungurtsev, Alistarh, AAAI 2021)
answers: as long as each worker's view stays within `alpha² B²` of a global iterate. The
transformations here delay, compress and exchange updates; `held` says where every update is, and
`meter` how far the views have drifted.

Where is the mass          held, lost, virtual_params, elastic_gap, meter
Relax an update            error_feedback, compress, ef21, delay, absorb
Compressors                top_k, block_top_k, threshold, random_k, sign, quantize, natural,
                           low_rank, identity; Compressor
Models of delay            delays.constant, per_leaf, uniform, geometric, pmf, per_coordinate,
                           replay
Workers in step            worker_step, simulate, distribute, all_mean, fold_in_worker
Sharded parameters         shards.by_shard, state_specs
Workers that race          draw_trace, make_trace, Trace, asynchronous; speeds.constant,
                           exponential, lognormal, pareto, stops_after
Workers that really race   hogwild.train, replay
Imperfect links            links.lossy, late; absent.partial, crashes
Elastic schedulers         schedulers.norm_bounded, variance_bounded; arrivals.backward, fixed
Workers that train alone   local.average, diloco
Workers and neighbours     gossip.mix, choco, tracking; graphs.ring, torus, exponential, one_peer,
                           complete, graph, fast
Stale gradients            correct.by_staleness, compensate, predict
Make your own              relaxation, check_order
Constants                  problems, where they are known; estimate, where they are not
"""

from elastic_jax import (
    absent,
    arrivals,
    correct,
    delays,
    estimate,
    gossip,
    graphs,
    hogwild,
    links,
    local,
    problems,
    schedulers,
    shards,
    speeds,
)
from elastic_jax.absorb import absorb
from elastic_jax.compressors import identity, low_rank, natural, quantize, sign
from elastic_jax.devices import distribute
from elastic_jax.events import asynchronous
from elastic_jax.exchange import all_mean
from elastic_jax.feedback import compress, ef21, error_feedback
from elastic_jax.mass import elastic_gap, held, lost, virtual_params
from elastic_jax.meter import meter
from elastic_jax.order import check_order, relaxation
from elastic_jax.sparsifiers import block_top_k, random_k, threshold, top_k
from elastic_jax.speeds import draw_trace
from elastic_jax.staleness import delay
from elastic_jax.traces import Trace, make_trace
from elastic_jax.types import Compressor
from elastic_jax.workers import fold_in_worker, simulate, worker_step

__version__ = "0.1.0"

__all__ = [
    "Compressor",
    "Trace",
    "absent",
    "absorb",
    "all_mean",
    "arrivals",
    "asynchronous",
    "block_top_k",
    "check_order",
    "compress",
    "correct",
    "delay",
    "delays",
    "distribute",
    "draw_trace",
    "ef21",
    "elastic_gap",
    "error_feedback",
    "estimate",
    "fold_in_worker",
    "gossip",
    "graphs",
    "held",
    "hogwild",
    "identity",
    "links",
    "local",
    "lost",
    "low_rank",
    "make_trace",
    "meter",
    "natural",
    "problems",
    "quantize",
    "random_k",
    "relaxation",
    "schedulers",
    "shards",
    "sign",
    "simulate",
    "speeds",
    "threshold",
    "top_k",
    "virtual_params",
    "worker_step",
]
