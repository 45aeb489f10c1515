"""A flax nnx network split over devices (tensor parallel), trained by workers on lossy links.

In a `jax.shard_map` of one's own, whose `check_vma` (on by default) makes gradients right.
"""

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import elastic_jax as ej
from elastic_jax.shards import state_specs
from experiments.data import load

SPECS = {"up": {"kernel": P(None, "model"), "bias": P("model")}, "down": {"kernel": P("model")}}


class _Network(nnx.Module):  # each device has some of the hidden units
    def __init__(self):
        self.up = nnx.Linear(64, 128, rngs=nnx.Rngs(0))
        self.down = nnx.Linear(128, 10, use_bias=False, rngs=nnx.Rngs(1))

    def loss(self, batch):
        logits = jax.lax.psum(self.down(nnx.relu(self.up(batch[0]))), "model")  # here they meet
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def main(workers: int = 2, split: int | None = None, steps: int = 50, alpha: float = 0.1) -> list:
    """Trains on digits, each worker on `split` devices; returns losses and gaps, [p] each."""
    workers = min(workers, jax.device_count())
    split = split or jax.device_count() // workers
    mesh = Mesh(np.reshape(jax.devices()[: workers * split], (workers, split)), ("data", "model"))
    network, state = nnx.split(_Network())
    params, data = nnx.to_pure_dict(state), load("digits")
    images = data.train_images[:1440].reshape(45, workers, -1, 64)
    labels = data.train_labels[:1440].reshape(45, workers, -1)
    opt = optax.chain(optax.sgd(alpha), ej.links.lossy("data", 0.2, fate="sender"), ej.delay(2))
    opt = ej.meter(opt, alpha, "data", every=1, specs=SPECS)  # a gap is that of all shards
    worker = ej.worker_step(lambda p, batch: nnx.merge(network, p).loss(batch), opt, "data")
    states = ej.simulate(worker, workers).init(params)  # stacks [p, ...]
    specs = SPECS, state_specs(jax.eval_shape(opt.init, params), params, SPECS)
    specs = jax.tree.map(lambda spec: P("data", *spec), type(states)(*specs)), P("data")

    def one(state, batch):  # what a device has of one worker
        done = worker.step(*jax.tree.map(lambda x: x[0], (state, batch)))
        return jax.tree.map(lambda x: x[None], done)

    step, history = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=specs)), []
    for i in range(steps):
        states, losses = step(states, (images[i % 45], labels[i % 45]))
        history.append((losses, states.opt_state.gap.last))
        print("step {}: losses {}, gaps {}".format(i, *history[-1]))
    return history


if __name__ == "__main__":
    main()
