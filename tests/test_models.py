"""`experiments.models`: the replaced convolution, the sizes of the models, and that they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments import data, models

LAYOUT = ("NHWC", "HWIO", "NHWC")


def dataset(h, w, c, classes=10):
    images, labels = np.zeros((1, h, w, c), np.float32), np.zeros(1, np.int32)
    return data.Dataset("shape", images, labels, images, labels, classes)


def normal(rng, shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# (image, kernel, strides, padding); the product of all of them would only compile longer
CONVOLUTIONS = [
    ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), "SAME"),
    ((2, 7, 6, 3), (3, 3, 3, 4), (2, 2), "SAME"),
    ((1, 9, 8, 2), (2, 3, 2, 5), (1, 2), "SAME_LOWER"),
    ((1, 8, 9, 2), (4, 3, 2, 1), (2, 3), "SAME_LOWER"),
    ((3, 8, 8, 1), (4, 4, 1, 2), (4, 4), "VALID"),
    ((1, 6, 7, 1), (5, 2, 1, 1), (3, 1), "VALID"),
    ((2, 5, 5, 4), (1, 1, 4, 3), (2, 2), "SAME"),
    ((2, 5, 6, 2), (3, 2, 2, 3), (2, 1), ((1, 2), (0, 3))),
    ((1, 7, 7, 1), (3, 3, 1, 2), (1, 2), ((-1, 0), (2, -2))),
]


@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), CONVOLUTIONS)
def test_patch_conv_equals_lax_conv_with_its_gradients(image, kernel, strides, padding):
    rng = np.random.default_rng(sum(image) + sum(kernel))

    def value_and_pullback(conv, x, k, cotangent):
        run = functools.partial(
            conv, window_strides=strides, padding=padding, dimension_numbers=LAYOUT
        )
        y, pull = jax.vjp(run, x, k)
        return y, *pull(cotangent)

    @jax.jit
    def both(x, k, cotangent):
        convs = (models.patch_conv, lax.conv_general_dilated)
        return [value_and_pullback(conv, x, k, cotangent) for conv in convs]

    shape = lax.conv_general_shape_tuple(image, kernel, strides, padding, LAYOUT)
    ours, theirs = both(*(normal(rng, s) for s in (image, kernel, shape)))
    # A sum of n products of unit normals rounds by about eps sqrt(n), n the longest contraction.
    terms = max(*np.cumprod(kernel[:3]), np.prod(kernel[:2]) * kernel[3], np.prod(shape[:3]))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * 2.0**-24 * terms**0.5)


def test_patch_conv_vmaps_over_kernels():
    rng = np.random.default_rng(0)
    x, k = normal(rng, (2, 6, 6, 2)), normal(rng, (3, 3, 3, 2, 4))
    run = jax.jit(functools.partial(models.patch_conv, window_strides=(2, 2), padding="SAME"))
    stacked = jax.jit(jax.vmap(run, in_axes=(None, 0)))(x, k)
    for i in range(3):
        np.testing.assert_allclose(stacked[i], run(x, k[i]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lhs": np.ones((5, 5, 2), np.float32)}, r"\[b, h, w, c\].*got \(5, 5, 2\)"),
        ({"rhs": np.ones((3, 3, 3, 1), np.float32)}, r"got .*\(3, 3, 3, 1\)"),
        ({"rhs": np.ones((3, 3, 2, 1), jnp.bfloat16)}, "one dtype, got float32 and bfloat16"),
        ({"rhs": np.ones((6, 3, 2, 1), np.float32)}, "larger than the padded images"),
        ({"lhs_dilation": (2, 1)}, r"lhs_dilation=\(2, 1\) is not supported"),
        ({"rhs_dilation": (1, 2)}, r"rhs_dilation=\(1, 2\) is not supported"),
        ({"feature_group_count": 2}, "feature_group_count=2 is not supported"),
        ({"batch_group_count": 2}, "batch_group_count=2 is not supported"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, r"dimension_numbers=\('NCHW'.*NHWC"),
        ({"window_strides": (1, 0)}, r"window_strides=\(1, 0\)"),
        ({"window_strides": (1,)}, r"window_strides=\(1,\)"),
        ({"padding": "REFLECT"}, "padding='REFLECT' is not supported"),
        ({"padding": ((1, 1),)}, r"padding=\(\(1, 1\),\) is not .*two pairs"),
    ],
)
def test_patch_conv_refuses_what_it_does_not_support(change, message):
    good = {
        "lhs": jnp.ones((1, 5, 5, 2), jnp.float32),
        "rhs": jnp.ones((3, 3, 2, 1), jnp.float32),
        "window_strides": (1, 1),
        "padding": "VALID",
    }
    assert models.patch_conv(**good).shape == (1, 3, 3, 1)
    with pytest.raises(ValueError, match=message):
        models.patch_conv(**(good | change))


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("cnn", (28, 28, 1), 10_042),
        ("cnn", (32, 32, 3), 10_554),
        ("cnn", (8, 8, 1), 6_010),
        ("resnet20", (32, 32, 3), 269_722),
    ],
)
def test_sizes_and_shapes(name, shape, count):
    model = models.make(name, dataset(*shape))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert model.name == name
    assert size(params) == count
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((5, *shape), jnp.float32))
    assert logits.shape == (5, 10) and logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def random_params(model, rng):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.2 * normal(rng, leaf.shape), shapes)


def test_cnn_is_the_same_function_with_either_convolution():
    rng = np.random.default_rng(0)
    images = normal(rng, (3, 8, 8, 3))
    ours, theirs = (
        models.make("cnn", dataset(8, 8, 3, classes=4), conv=conv)
        for conv in (models.patch_conv, lax.conv_general_dilated)
    )
    params = random_params(ours, rng)
    expected = jax.jit(theirs.apply)(params, images)
    assert expected.shape == (3, 4)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
        jax.jit(ours.apply)(params, images), expected, rtol=0, atol=1e-5 * scale
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_no_layer_mixes_the_images_of_a_batch(name):
    rng = np.random.default_rng(0)
    images = normal(rng, (2, 8, 8, 3))
    # XLA's own convolution, because a ResNet-20 of it compiles faster
    model = models.make(name, dataset(8, 8, 3), conv=lax.conv_general_dilated)
    params, apply = random_params(model, rng), jax.jit(model.apply)
    logits = apply(params, images)
    others = apply(params, jnp.stack([images[0], -images[1]]))
    scale = float(jnp.abs(logits).max())
    np.testing.assert_allclose(logits[0], others[0], rtol=0, atol=1e-5 * scale)
    assert float(jnp.abs(logits[1] - others[1]).max()) > 0.01 * scale


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def digits_cnn(digits):
    return models.make("cnn", digits)


def test_init_depends_on_the_key_alone(digits_cnn):
    first, same, other = (digits_cnn.init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, same)))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, other)))


@pytest.mark.slow
def test_loss_and_accuracy_in_closed_form():
    logits = jnp.array([[0.0, 0.0], [0.0, jnp.log(3.0)], [jnp.log(3.0), 0.0]], jnp.float32)
    model = models.Model("given", init=lambda key: None, apply=lambda params, images: logits)
    labels = jnp.array([0, 1, 1], jnp.int32)
    loss = models.loss_fn(model)(None, logits, labels)
    expected = (np.log(2) + np.log(4 / 3) + np.log(4)) / 3
    assert loss.shape == () and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    share = models.accuracy(model, None, logits, labels)
    assert share.dtype == jnp.float32
    np.testing.assert_allclose(share, 2 / 3, rtol=1e-6)


@pytest.mark.slow
def test_cnn_learns_digits_by_plain_sgd_in_a_scan(digits, digits_cnn):
    model = digits_cnn
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    gradient = jax.grad(models.loss_fn(model))

    @jax.jit
    def train(params, batches):
        def step(params, batch):
            g = gradient(params, images[batch], labels[batch])
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, g), None

        return lax.scan(step, params, batches)[0]

    for seed in (0, 1):
        key, init_key = jax.random.split(jax.random.key(seed))
        batches = jax.random.randint(key, (900, 16), 0, len(images))
        params = train(model.init(init_key), batches)
        share = models.accuracy(
            model, params, jnp.asarray(digits.test_images), jnp.asarray(digits.test_labels)
        )
        assert share > 0.95


def test_unknown_model():
    with pytest.raises(ValueError, match=r"name='vgg'.*\['cnn', 'resnet20'\]"):
        models.make("vgg", dataset(8, 8, 1))
