"""Fragile: a recipe that diverges or kills its own process on demand, for tests of the search.

Problem: None. Where the environment variable FRAGILE_RECIPE names a file, the first model that is
built for the learning rate and seed written there ends its process as `kill -9` does.
"""

import os
import signal
from pathlib import Path

VARIANTS = {
    "plain": {},
    "small_rates_diverge": {"diverges_below": 0.05},
    "one_seed_diverges": {"diverging_seed": 1001},
    "all_diverge": {"diverges_below": 1e9},
}

EXPERIMENTS = {
    "classes": {
        "data": "wine",
        "epochs": 2,
        "batch_size": 49,
        "learning_rates": dict.fromkeys(VARIANTS, 0.25),
    },
    "numbers": {
        "data": "diabetes",
        "samples": 50,
        "epochs": 2,
        "batch_size": 25,
        "sweep": True,
        "learning_rates": {"plain": 0.25},
    },
}

CLAIMS = []


def build_model(
    input_shape, learning_rate, seed, classes=None, diverges_below=0.0, diverging_seed=None
):
    """Build and compile a linear model; Keras loads here, so that the tests start fast."""
    import keras

    _die_if_told(f"{learning_rate:g} {seed}")
    if learning_rate < diverges_below or seed == diverging_seed:
        learning_rate = 1e38
    inputs = keras.Input(input_shape)
    outputs = keras.layers.Dense(classes or 1)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if classes
        else keras.losses.MeanSquaredError(),
    )
    return model


def _die_if_told(trial):
    order = Path(os.environ.get("FRAGILE_RECIPE", "/nonexistent"))
    if order.is_file() and order.read_text() == trial:
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from recipes._lab import run_recipe

    raise SystemExit(run_recipe(__file__))
