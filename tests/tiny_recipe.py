"""Tiny: a recipe that trains in a moment, for the tests of the bench.

Problem: None. This file is the smallest recipe that the bench takes.
"""

VARIANTS = {"plain": {"width": 4}, "wide": {"width": 8}}

EXPERIMENTS = {
    "digits": {
        "data": "digits",
        "samples": 60,
        "label_noise": 0.1,
        "epochs": 2,
        "batch_size": 25,
        "measure": True,
        "learning_rates": {"plain": 0.1, "wide": 0.1},
    },
    "table": {
        "data": "wine",
        "epochs": 1,
        "batch_size": 32,
        "sweep": True,
        "measure": "measure_table",
        "learning_rates": {"plain": 0.1},
    },
}

CLAIMS = [
    {
        "text": "Eight units do better than four",
        "experiment": "digits",
        "variant": "wide",
        "against": "plain",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    }
]


def build_model(input_shape, classes, width, learning_rate, seed):
    """Build and compile one hidden layer. Keras loads here, so that the tests start fast."""
    import keras

    model = keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(width, "relu"),
            keras.layers.Dense(classes),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def measure(model, split):
    """Return one metric more."""
    return {"test_rows": len(split.test.y)}


def measure_table(model, split, epochs):
    """Return other metrics, in the experiment that names this function."""
    return {"columns": split.test.x.shape[1], "told_epochs": epochs}


if __name__ == "__main__":
    from recipes._lab import run_recipe

    raise SystemExit(run_recipe(__file__))
