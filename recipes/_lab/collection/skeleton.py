"""Writes the skeleton of a new recipe: it runs as it is, and every part says what belongs there."""

import keyword
import re
import sys
from string import Template

from recipes._lab.collection import catalogue
from recipes._lab.errors import UserError
from recipes._lab.runs import check_writable, write_text

# Longer names would not fit beside their texts in the index.
LONGEST_NAME = 28

SKELETON = Template('''\
"""$title: what it does, in one sentence.

Problem:    What a person sees who needs this. The skeleton adds noise to the inputs, in the place
            of a technique; it runs as it is.
Technique:  What it does to the training, and the formula if it has one.
Claim:      What should become better, by how much, on which data. Written before the test data
            are looked at; corrected where the numbers say otherwise.
Costs:      Time, memory, one more number to tune.
Start at:   The value to try first, and the next one.
Caveat:     Where it does not help, and the traps of Keras's own version of it.
            The learning rates are to come from `python -m recipes.$name --tune`.
Reference:  Authors (year), Title, where it appeared, section 1.
Run:        python -m recipes.$name
Measured:   Nothing yet: `python -m recipes.$name --record` writes the result here.
"""

import keras
import numpy as np

HIDDEN_UNITS = 64  # Each constant with its reason.
MOMENTUM = 0.9


def build_model(input_shape=(64,), classes=10, noise=0.0, learning_rate=0.1, seed=0):
    """Build and compile the network that baseline and technique share.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        noise: Float >= 0, the standard deviation of the noise. 0, the neutral value, adds none.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights, because each layer has one of its own.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(3).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.GaussianNoise(noise, seed=next(seeds))(x)
    initializer = keras.initializers.HeNormal(seed=next(seeds))
    x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the noise and the learning rate."""
    return build_model(
        noise=hp.Float("noise", 0.0, 0.5, step=0.1),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


VARIANTS = {"none": {}, "noise": {"noise": 0.2}}

EQUAL_START = [list(VARIANTS)]  # Groups of variants that start from equal weights; a test looks.

SYMPTOMS = ["overfits"]  # One to three of those that `python -m recipes --help` lists.

EXPERIMENTS = {  # The first variant of each is its baseline.
    "digits": {
        "data": "digits",
        "samples": 200,
        "epochs": 30,
        "batch_size": 32,
        "learning_rates": {"none": 0.1, "noise": 0.1},
    },
}

CLAIMS = [  # "textbook": the sentence that a claim puts to the test, where there is one.
    {
        "text": "On 200 samples, noise raises test accuracy",
        "experiment": "digits",
        "variant": "noise",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
]


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
''')


def write(name, folder=catalogue.FOLDER):
    """Write the skeleton of a recipe called `name`; return its path."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        raise UserError(
            "NAME must be a technique's name in lower case with underscores, such as "
            f"label_smoothing, of at most {LONGEST_NAME} characters. Received: {name}"
        )
    # The file is also copied into projects, where its name must not hide another module.
    if keyword.iskeyword(name) or name in {*sys.stdlib_module_names, "keras", "numpy"}:
        raise UserError(f"NAME must not be that of a module of Python's. Received: {name}")
    path = folder / f"{name}.py"
    check_writable("The folder of the recipes", folder)
    if path.exists():
        raise UserError(f"new overwrites nothing, and there is already {path}.")
    title = name.replace("_", " ").capitalize()
    write_text(path, SKELETON.substitute(name=name, title=title))
    return path


def explain(path):
    """Print what comes after the skeleton."""
    name = path.stem
    print(f"""Written: {path}. It runs as it is; what next:

  python -m recipes.{name} --quick     does it run?
  python -m recipes.{name} --tune      the learning rate of each variant, for EXPERIMENTS
  python -m pytest tests/test_contract.py -k {name}
  python -m recipes.{name} --record    measure it, and write the result into its card
  python -m recipes readme             put it into the README""")
