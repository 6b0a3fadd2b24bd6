"""Callbacks for any `model.fit`; each file can be copied alone."""

import importlib

_FILES = {
    "ActivationStatistics": "activation_statistics",
    "GradientNorms": "gradient_norms",
    "LearningRateFinder": "learning_rate_finder",
    "LearningRateLogger": "learning_rate_logger",
    "UpdateRatios": "update_ratios",
}
__all__ = list(_FILES)


def __getattr__(name):
    # Keras is imported when a callback is first asked for, not with the package.
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)


def __dir__():
    return __all__
