"""A flax linen network sharded over all devices (FSDP), its updates compressed and late."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import elastic_jax as ej
from elastic_jax.shards import state_specs
from experiments.data import load


def dense(features: int, *axes: str | None) -> nn.Dense:
    """Makes a layer whose kernel is spread over mesh axes."""
    return nn.Dense(features, kernel_init=nn.with_partitioning(nn.initializers.normal(0.1), axes))


def main(devices: int | None = None, steps: int = 50, alpha: float = 0.1) -> list:
    """Trains on digits, on all devices or a number that divides 32; returns losses and gaps."""
    mesh = Mesh(jax.devices()[:devices], ("fsdp",))
    model = nn.Sequential([dense(128, None, "fsdp"), nn.relu, dense(10, "fsdp", None)])
    data, key = load("digits"), jax.random.key(0)
    images, labels = data.train_images[:1440].reshape(45, 32, 64), data.train_labels[:1440]
    relaxed = ej.error_feedback(ej.sign()), ej.delay(2)  # one bit an entry, two steps late
    opt = ej.meter(optax.chain(optax.sgd(alpha), *relaxed), alpha, every=1)

    def init(key):
        params = nn.unbox(model.init(key, images[0]))
        return params, opt.init(params)

    specs = nn.get_partition_spec(jax.eval_shape(model.init, key, images[0]))
    params, opt_state = jax.eval_shape(init, key)
    specs = specs, state_specs(opt_state, params, specs)  # the state stands where parameters do
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    params, opt_state = jax.jit(init, out_shardings=shardings)(key)

    def loss_fn(params, x, y):
        logits = jnp.asarray(model.apply(params, x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train_step(params, opt_state, *batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = opt.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    history = []
    for step in range(steps):
        batch = images[step % 45], labels.reshape(45, 32)[step % 45]
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("fsdp")))
        params, opt_state, loss = train_step(params, opt_state, *batch)
        history.append((float(loss), float(opt_state.gap.last)))
        print("step {}: loss {:.3f}, gap {:.2g}".format(step, *history[-1]))
    return history


if __name__ == "__main__":
    main()
