"""Draws the train, validation and test parts of a data set."""

import numbers
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data import _sources
from data._catalogue import DATASETS, DataError

# Draws every test part that is not published as one. Any number would do; it must never change,
# or rows that have been trained on would become test rows.
TEST_PART_SEED = 271828
# Regression targets are stratified by tenths of their distribution.
TARGET_QUANTILES = 10


class Part(NamedTuple):
    """Inputs of shape `(rows, ...)`, float32, and targets of shape `(rows,)`."""

    x: np.ndarray
    y: np.ndarray


class WrongLabels(NamedTuple):
    """For each row of a part, whether its label was changed: boolean, shape `(rows,)`."""

    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True, eq=False)
class Split:
    """One draw of a data set; `load()` says how it is drawn.

    `target_scale` is the standard deviation by which regression targets were divided: an error
    times `target_scale` is in the original units. It is 1.0 for classification.
    """

    name: str
    seed: int
    label_noise: float
    train: Part
    validation: Part
    test: Part
    wrong_labels: WrongLabels
    target_scale: float

    @property
    def task(self):
        """`"classification"` or `"regression"`."""
        return DATASETS[self.name].task

    @property
    def classes(self):
        """Number of classes, or None for regression."""
        return DATASETS[self.name].classes

    @property
    def input_shape(self):
        """Shape of one input, without the batch axis."""
        return self.train.x.shape[1:]

    @property
    def samples(self):
        """Number of rows in the train part."""
        return len(self.train.x)


def load(name, *, seed=0, samples=None, label_noise=0.0):
    """Loads a data set as train, validation and test parts that share no row.

    Parts are stratified: by class, and for regression by tenths of the target's distribution.
    The test part holds the same rows for every seed, and its labels are never changed. The
    seed draws the train and validation parts from all other rows. With the same seed, the
    train rows at a smaller `samples` are the first ones of those at a larger.

    Images are float32 in [0, 1]. Tables, and the targets of regression, are standardized with
    the mean and standard deviation of the train part alone. Class labels are int32.

    With `label_noise`, exactly `round(label_noise * rows)` labels of the train part, and as
    large a share of the validation part, become another class, each other class being equally
    likely. A row that is wrong at a lower noise is wrong in the same way at a higher one.

    Args:
        name: One of `names()`.
        seed: Integer >= 0. Draws the train and validation parts and the wrong labels.
        samples: Rows in the train part: at least one per class, or two for regression. None
            takes all.
        label_noise: Share of wrong labels, >= 0 and < 1. Only for classification.

    Returns:
        A `Split`.

    Raises:
        DataError: if an argument is not allowed, or if the data cannot be had, such as a
            download without a network.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise DataError(f"Argument `name` must be one of {', '.join(DATASETS)}. Received: {name=}")
    dataset = DATASETS[name]
    _check_seed(seed)
    _check_samples(samples, name)
    _check_label_noise(label_noise, name)

    x, y = _sources.read(name)
    test, others = _test_rows(y, dataset)
    generator = np.random.default_rng(int(seed))
    drawn = others[stratified_order(_strata(y[others], dataset), generator)]
    train, validation = slice(samples or dataset.train), slice(dataset.train, None)

    drawn_y, wrong = y[drawn], np.zeros(len(drawn), bool)
    if dataset.classes:
        # Drawn for every row, so that neither `samples` nor `label_noise` changes the draw.
        priority = generator.random(len(drawn))
        shift = generator.integers(1, dataset.classes, len(drawn))
        for part in train, validation:
            wrong[part] = _lowest(priority[part], label_noise)
        drawn_y = np.where(wrong, (drawn_y + shift) % dataset.classes, drawn_y)

    scale_x = _input_scaling(x[drawn[train]], dataset)
    scale_y, target_scale = _target_scaling(drawn_y[train], dataset)
    return Split(
        name=name,
        seed=int(seed),
        label_noise=float(label_noise),
        train=Part(scale_x(x[drawn[train]]), scale_y(drawn_y[train])),
        validation=Part(scale_x(x[drawn[validation]]), scale_y(drawn_y[validation])),
        test=Part(scale_x(x[test]), scale_y(y[test])),
        wrong_labels=WrongLabels(wrong[train], wrong[validation]),
        target_scale=target_scale,
    )


def stratified_order(strata, generator):
    """Orders rows at random so that every first part of them is stratified.

    The i-th of the n rows of a stratum, in random order, takes its place at (i + 1/2) / n of
    the way through the whole.

    Args:
        strata: Integers of shape `(rows,)`: the stratum of each row.
        generator: A `numpy.random.Generator`.

    Returns:
        Row numbers of shape `(rows,)`.
    """
    order = generator.permutation(len(strata))
    place = np.empty(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata[order] == stratum)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def _strata(y, dataset):
    if dataset.classes:
        return y
    rank = np.argsort(np.argsort(y, kind="stable"))
    return rank * TARGET_QUANTILES // len(y)


def _test_rows(y, dataset):
    """Returns the row numbers of the test part, and all others."""
    rows = np.arange(len(y))
    if dataset.published_test:
        return rows[-dataset.test :], rows[: -dataset.test]
    order = stratified_order(_strata(y, dataset), np.random.default_rng(TEST_PART_SEED))
    return np.sort(order[: dataset.test]), np.sort(order[dataset.test :])


def _lowest(priority, share):
    """Returns a mask of the `round(share * rows)` lowest priorities."""
    mask = np.zeros(len(priority), bool)
    mask[np.argsort(priority)[: round(share * len(priority))]] = True
    return mask


def _input_scaling(train_x, dataset):
    if dataset.pixel_maximum:
        return lambda x: x.astype(np.float32) / np.float32(dataset.pixel_maximum)
    if dataset.standardized:
        mean, deviation = _mean_and_deviation(train_x)
        return lambda x: ((x - mean) / deviation).astype(np.float32)
    return lambda x: x.astype(np.float32)


def _target_scaling(train_y, dataset):
    if dataset.classes:
        return lambda y: y.astype(np.int32), 1.0
    mean, deviation = _mean_and_deviation(train_y)
    return lambda y: ((y - mean) / deviation).astype(np.float32), float(deviation)


def _mean_and_deviation(values):
    deviation = values.std(axis=0)
    # A column that is constant in a small train part is only centred.
    return values.mean(axis=0), np.where(np.ptp(values, axis=0) > 0, deviation, 1.0)


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_seed(seed):
    if not _is_integer(seed) or seed < 0:
        raise DataError(f"Argument `seed` must be an integer >= 0. Received: {seed=}")


def _check_samples(samples, name):
    if samples is None:
        return
    fewest, most = DATASETS[name].classes or 2, DATASETS[name].train
    if not _is_integer(samples) or not fewest <= samples <= most:
        raise DataError(
            f"Argument `samples` must be None or an integer from {fewest} to {most} for {name}. "
            f"Received: {samples=}"
        )


def _check_label_noise(label_noise, name):
    # Written so that nan fails.
    if not (isinstance(label_noise, numbers.Real) and 0 <= label_noise < 1):
        raise DataError(
            f"Argument `label_noise` must be a number >= 0 and < 1. Received: {label_noise=}"
        )
    if label_noise and DATASETS[name].task == "regression":
        raise DataError(
            f"Argument `label_noise` must be 0 for {name}, whose targets are not classes. "
            f"Received: {label_noise=}"
        )
