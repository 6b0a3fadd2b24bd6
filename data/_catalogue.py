"""What each data set is: its task, shape and counts. Imports nothing heavy."""

from dataclasses import dataclass


class DataError(ValueError):
    """A data set cannot be loaded as asked; the message is one sentence for the person asking."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set, as `load()` returns it when nothing is left out."""

    task: str  # "classification" or "regression"
    classes: int | None  # None for regression
    input_shape: tuple[int, ...]
    train: int
    validation: int
    test: int
    pixel_maximum: int | None = None  # Images: divided by it, into [0, 1].
    standardized: bool = False  # Tables: mean 0 and variance 1 in each column of the train part.
    published_test: bool = False  # Comes with a test part, which is used as it is.
    needs_network: bool = False  # Has to be downloaded, unless its files are already there.

    @property
    def total(self):
        """Number of rows in all parts together."""
        return self.train + self.validation + self.test


def _classification(classes, input_shape, train, validation, test, **how):
    return Dataset(
        task="classification",
        classes=classes,
        input_shape=input_shape,
        train=train,
        validation=validation,
        test=test,
        **how,
    )


_download = {"pixel_maximum": 255, "published_test": True, "needs_network": True}

DATASETS = {
    "digits": _classification(10, (8, 8), 1000, 400, 397, pixel_maximum=16),
    "diabetes": Dataset(
        task="regression",
        classes=None,
        input_shape=(10,),
        train=242,
        validation=100,
        test=100,
        standardized=True,
    ),
    "breast_cancer": _classification(2, (30,), 369, 100, 100, standardized=True),
    "wine": _classification(3, (13,), 98, 40, 40, standardized=True),
    "mnist1d": _classification(10, (40,), 4000, 1000, 1000),
    "mnist5k": _classification(10, (28, 28), 3000, 1000, 1000, pixel_maximum=255),
    "xor": _classification(2, (2,), 1000, 500, 500),
    "fashion_mnist": _classification(10, (28, 28), 50_000, 10_000, 10_000, **_download),
    "mnist": _classification(10, (28, 28), 50_000, 10_000, 10_000, **_download),
    "cifar10": _classification(10, (32, 32, 3), 45_000, 5_000, 10_000, **_download),
}


def names():
    """Returns the names of all data sets, those that need no network first."""
    return list(DATASETS)
