"""Small image classifiers as pairs of pure functions, fast inside `jax.lax.scan` on a CPU.

XLA's convolution is several times slower inside a scan than outside on a CPU, and there the
simulations spend their time. `patch_conv` computes the same convolution as one matrix product and
keeps its speed in both places; `make(..., conv=jax.lax.conv_general_dilated)` asks for XLA's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.data import Dataset

Params = Any  # a pytree of float32 arrays
Conv = Callable[..., jax.Array]  # called like jax.lax.conv_general_dilated


class Model(NamedTuple):
    """A classifier without state: nothing but parameters changes while it trains."""

    name: str
    init: Callable[[jax.Array], Params]  # key -> params
    apply: Callable[[Params, jax.Array], jax.Array]  # params, images [b, h, w, c] -> logits [b, k]


def patch_conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Convolves in two dimensions by patches and one matrix product.

    Equal to `jax.lax.conv_general_dilated` up to rounding, for images `NHWC`, kernels `HWIO` and
    no dilation or groups. The patches are kh*kw strided slices, joined along the channels:
    `[b * oh * ow, kh * kw * c] @ [kh * kw * c, f]`.

    Args:
      lhs: images, [b, h, w, c], of any float dtype.
      rhs: kernel, [kh, kw, c, f], of the same dtype.
      window_strides: two strides, in pixels.
      padding: `'SAME'`, `'SAME_LOWER'`, `'VALID'`, or two pairs (before, after), in pixels.
      lhs_dilation: must be all ones, or None.
      rhs_dilation: must be all ones, or None.
      dimension_numbers: must mean `('NHWC', 'HWIO', 'NHWC')`; None means that too, where
        `jax.lax.conv_general_dilated` would take `NCHW`.
      feature_group_count: must be 1.
      batch_group_count: must be 1.
      precision: as in `jax.lax.dot_general`.

    Returns:
      The convolved images, [b, oh, ow, f], in the dtype of `lhs`.

    Raises:
      ValueError: for shapes, dtypes or settings other than those above, or a kernel larger than
        the padded images.

    Example:
      >>> images, kernel = jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 2))
      >>> patch_conv(images, kernel, (2, 2), "SAME")[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    if lhs.ndim != 4 or rhs.ndim != 4 or lhs.shape[3] != rhs.shape[2]:
        raise ValueError(
            "lhs and rhs must have shapes [b, h, w, c] and [kh, kw, c, f], "
            f"got {lhs.shape} and {rhs.shape}"
        )
    if lhs.dtype != rhs.dtype:
        raise ValueError(f"lhs and rhs must have one dtype, got {lhs.dtype} and {rhs.dtype}")
    for name, value in (("lhs_dilation", lhs_dilation), ("rhs_dilation", rhs_dilation)):
        if value is not None and tuple(value) != (1, 1):
            raise ValueError(f"{name}={tuple(value)} is not supported: use (1, 1) or None")
    for name, count in (("feature", feature_group_count), ("batch", batch_group_count)):
        if count != 1:
            raise ValueError(f"{name}_group_count={count} is not supported: use 1")
    layout = ("NHWC", "HWIO", "NHWC")
    given = layout if dimension_numbers is None else dimension_numbers
    numbers = functools.partial(lax.conv_dimension_numbers, lhs.shape, rhs.shape)
    if numbers(given) != numbers(layout):
        raise ValueError(f"dimension_numbers={given} is not supported: use {layout}")
    if len(window_strides) != 2 or min(window_strides) < 1:
        raise ValueError(
            f"window_strides={tuple(window_strides)} must be two integers of at least 1"
        )

    strides, window = tuple(window_strides), rhs.shape[:2]
    if padding not in ("SAME", "SAME_LOWER", "VALID") and (
        isinstance(padding, str) or len(padding) != 2
    ):
        raise ValueError(
            f"padding={padding!r} is not supported: use 'SAME', 'SAME_LOWER', 'VALID' "
            "or two pairs (before, after)"
        )
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    else:
        pads = padding
    (top, bottom), (left, right) = pads
    config = ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    images = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
    (b, h, w, c), (kh, kw, _, f), (sh, sw) = images.shape, rhs.shape, strides
    oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
    if oh < 1 or ow < 1:
        raise ValueError(
            f"rhs of shape {rhs.shape} is larger than the padded images, {images.shape}"
        )
    slices = [
        images[:, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    patches = jnp.concatenate(slices, axis=-1).reshape(b * oh * ow, kh * kw * c)
    product = jnp.matmul(patches, rhs.reshape(kh * kw * c, f), precision=precision)
    return product.reshape(b, oh, ow, f)


class _Cnn(nn.Module):
    """Two strided convolutions and a dense layer: no pooling, which is slow on a CPU."""

    classes: int
    conv: Conv

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [b, h, w, c] -> [b, classes]
        first = 4 if min(images.shape[1:3]) >= 16 else 2
        conv = functools.partial(nn.Conv, conv_general_dilated=self.conv)
        x = nn.relu(conv(16, (first, first), strides=first, padding="VALID")(images))
        x = nn.relu(conv(32, (3, 3), strides=2)(x))
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class _ResNet20(nn.Module):
    """He et al. (2016), section 4.2, n = 3, shortcuts without parameters, GroupNorm of 8 groups."""

    classes: int
    conv: Conv

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [b, h, w, c] -> [b, classes]
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), use_bias=False, conv_general_dilated=self.conv
        )
        norm = functools.partial(nn.GroupNorm, num_groups=8)
        x = nn.relu(norm()(conv(16)(images)))
        for width, first_stride in ((16, 1), (32, 2), (64, 2)):
            for stride in (first_stride, 1, 1):
                y = nn.relu(norm()(conv(width, strides=stride)(x)))
                y = norm()(conv(width)(y))
                new_channels = ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1]))
                x = nn.relu(y + jnp.pad(x[:, ::stride, ::stride], new_channels))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


_MODULES: dict[str, Callable[..., nn.Module]] = {"cnn": _Cnn, "resnet20": _ResNet20}


def make(name: str, dataset: Dataset, conv: Conv = patch_conv) -> Model:
    """Builds a model for the images and classes of a data set.

    * `cnn`: conv 4x4 stride 4 to 16 channels (2x2 stride 2 for images below 16 pixels), conv 3x3
      stride 2 to 32 channels, dense. 10,042 parameters on 28x28x1, 10,554 on 32x32x3 and 6,010
      on 8x8x1, with ten classes.
    * `resnet20`: ResNet-20 with widths 16, 32, 64; 269,722 parameters on 32x32x3 with ten classes.
      It normalises by GroupNorm instead of BatchNorm, because batch statistics are not parameters:
      they would change outside the optimizer, and differ from worker to worker.

    Args:
      name: `cnn` or `resnet20`.
      dataset: gives the shape of the images, [n, h, w, c], and the number of classes.
      conv: what computes the convolutions, called like `jax.lax.conv_general_dilated`.

    Returns:
      The model; `init` takes a PRNG key, `apply` takes float32 images, [b, h, w, c], and gives
      float32 logits, [b, classes]. Both can be jitted, differentiated and vmapped.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> from experiments import data
      >>> model = make("cnn", data.load("digits"))
      >>> params = jax.eval_shape(model.init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      6010
    """
    if name not in _MODULES:
        raise ValueError(f"name={name!r} is not a known model: use one of {sorted(_MODULES)}")
    module = _MODULES[name](classes=dataset.classes, conv=conv)
    shape = (1, *dataset.train_images.shape[1:])

    @jax.jit  # run op by op, flax's init of a ResNet takes seconds
    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros(shape, jnp.float32))["params"]

    def apply(params: Params, images: jax.Array) -> jax.Array:
        return jnp.asarray(module.apply({"params": params}, images))

    return Model(name, init, apply)


def loss_fn(model: Model) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
    """Returns the training loss of a model.

    Args:
      model: what `make` returns.

    Returns:
      A function of params, images [b, h, w, c] float32 and labels [b] int32: the mean over the
      batch of the cross entropy, in nats, a float32 scalar.
    """

    def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(params, images)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def accuracy(model: Model, params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the share of images whose largest logit is at their label.

    Args:
      model: what `make` returns.
      params: its parameters.
      images: [b, h, w, c] float32; all at once, so give a large set in pieces.
      labels: [b] int32.

    Returns:
      A float32 scalar between 0 and 1; the first of equal logits counts, and a NaN is the largest.
    """
    logits = model.apply(params, images)
    return jnp.mean(lax.argmax(logits, 1, labels.dtype) == labels, dtype=jnp.float32)
