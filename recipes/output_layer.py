"""Output layer: as many outputs, the activation and the loss that belong to the task.

Problem:    Nothing raises an error, but the loss stands still, the accuracy is stuck, or the
            outputs are no probabilities: last activation and loss do not belong together.
Technique:  One class of several: a softmax with categorical cross-entropy, sparse for integer
            labels. Two classes: one sigmoid with binary cross-entropy. Several labels at once:
            a sigmoid for each. Numbers: no activation, with squared error. Or no activation at
            all, and `from_logits=True` in the loss.
Claim:      Logits without `from_logits=True` cost accuracy, with ten classes nearly all of it. So
            does a softmax with it, where Keras cannot see the softmax. Integer and one-hot labels
            train alike. Independent sigmoids and a softmax, or for two classes one sigmoid and a
            softmax over two, are not told apart. A ReLU on the output spoils a regression.
Costs:      None: the right pair has as many weights as the wrong one.
Start at:   No activation on the last layer and `from_logits=True`; a softmax on top for prediction.
Caveat:     On TensorFlow, Keras takes cross-entropy from before a softmax or sigmoid where it finds
            one: `from_logits=True` only warns there, and a softmax over a single unit trains like a
            sigmoid while it predicts 1 for everything. A layer in between, or the cast under
            mixed precision, hides the activation: then the mistake is silent, as it is on JAX and
            PyTorch. Independent sigmoids rank classes; their outputs do not sum to one.
            The learning rates come from
            `python -m recipes.output_layer --tune --learning-rates 0.0001:1:7`, that of sigmoids
            from the same with `0.003:3:7`.
Reference:  Bridle (1990), Probabilistic Interpretation of Feedforward Classification Network
            Outputs, with Relationships to Statistical Pattern Recognition. Goodfellow, Bengio,
            Courville (2016), Deep Learning, section 6.2.2.
Run:        python -m recipes.output_layer
Measured:   Supported: Logits without from_logits=True lower test accuracy (-83.9 [-87.7, -80.1]
              points, p < .001).
            Supported: A hidden softmax with from_logits=True lowers test accuracy (-11.0 [-17.0,
              -5.0] points, p = .029).
            Supported: One-hot labels give the test accuracy of integer labels (0.0 points in every
              run).
            No clear difference: Independent sigmoids give the test accuracy of a softmax (+0.4
              [-0.5, +1.3] points, p = .075).
            Supported: The sum of independent sigmoids is further from one than that of a softmax
              (+0.0427 [+0.0324, +0.053], p = .002).
            No clear difference: With two classes, a softmax gives the test accuracy of one sigmoid
              (+0.0 [-2.3, +2.3] points, p = .075).
            Supported: With two classes, a logit without from_logits=True lowers test accuracy
              (-34.8 [-57.3, -12.3] points, p = .038).
            Supported: A ReLU on the output raises the test error of a regression (+13.1 [+7.86,
              +18.4], p = .011).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np

HIDDEN_UNITS = 64
HIDDEN_LAYERS = 2
MOMENTUM = 0.9


def output_and_loss(output, classes):
    """Return the number of outputs, their activation, and the loss, for one kind of output."""
    losses = keras.losses
    kinds = {
        # One class of several; labels are integers, shape (batch,).
        "softmax": (classes, "softmax", losses.SparseCategoricalCrossentropy()),
        "logits": (classes, None, losses.SparseCategoricalCrossentropy(from_logits=True)),
        # One class of several; labels are one-hot, shape (batch, classes).
        "one_hot": (classes, "softmax", losses.CategoricalCrossentropy()),
        # Any number of classes at once; labels are 0 or 1 for each, shape (batch, classes).
        "sigmoids": (classes, "sigmoid", losses.BinaryCrossentropy()),
        # Two classes; labels are 0 or 1, shape (batch,).
        "sigmoid": (1, "sigmoid", losses.BinaryCrossentropy()),
        # A number.
        "linear": (1, None, losses.MeanSquaredError()),
        # The mistakes.
        "no_softmax": (classes, None, losses.SparseCategoricalCrossentropy()),
        "softmax_twice": (
            classes,
            "softmax",
            losses.SparseCategoricalCrossentropy(from_logits=True),
        ),
        "no_sigmoid": (1, None, losses.BinaryCrossentropy()),
        "relu": (1, "relu", losses.MeanSquaredError()),
    }
    if output not in kinds:
        raise ValueError(
            f"Argument `output` must be one of {', '.join(kinds)}. Received: output={output!r}"
        )
    return kinds[output]


def build_model(input_shape=(64,), classes=10, output="softmax", learning_rate=0.1, seed=0):
    """Build and compile a ReLU network that ends in one kind of output.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of classes. Kinds with a single output do not use it.
        output: "softmax", "logits", "one_hot", "sigmoids", "sigmoid" or "linear"; or, to see what
            it costs, "no_softmax", "softmax_twice", "no_sigmoid" or "relu".
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights to all kinds with as many outputs.

    Raises:
        ValueError: if `output` is none of these.
    """
    units, activation, loss = output_and_loss(output, classes)
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(units, activation, kernel_initializer=initializer)(x)
    if output == "softmax_twice":
        # Any layer here hides the softmax from the loss, which would take back the mistake.
        outputs = keras.layers.Reshape((units,))(outputs)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=MOMENTUM),
        loss=loss,
        metrics=[] if output in ("linear", "relu") else ["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, for integer labels.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        output=hp.Choice("output", ["softmax", "logits"]),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def prepare(split, labels="integer"):
    """Return the data with their labels in the form that the loss asks for."""
    if labels == "integer":
        return split

    def one_hot(part):
        return part._replace(y=keras.utils.to_categorical(part.y, split.classes).astype("float32"))

    return replace(
        split,
        train=one_hot(split.train),
        validation=one_hot(split.validation),
        test=one_hot(split.test),
    )


SYMPTOMS = ["at chance", "wrong data"]

VARIANTS = {
    "softmax": {"output": "softmax"},
    "one_hot": {"output": "one_hot", "labels": "one_hot"},
    "sigmoids": {"output": "sigmoids", "labels": "one_hot"},
    "no_softmax": {"output": "no_softmax"},
    "softmax_twice": {"output": "softmax_twice"},
    "sigmoid": {"output": "sigmoid"},
    "no_sigmoid": {"output": "no_sigmoid"},
    "linear": {"output": "linear"},
    "relu": {"output": "relu"},
}

EQUAL_START = [
    ["softmax", "one_hot", "sigmoids", "no_softmax", "softmax_twice"],
    ["sigmoid", "no_sigmoid"],
    ["linear", "relu"],
]

EXPERIMENTS = {
    "ten_classes": {
        "data": "digits",
        "samples": 1000,
        "epochs": 20,
        "batch_size": 64,
        "measure": True,
        "learning_rates": {
            "softmax": 0.0464,
            "one_hot": 0.0464,
            "sigmoids": 0.949,
            "no_softmax": 0.00215,
            "softmax_twice": 0.215,
        },
    },
    "two_classes": {
        "data": "breast_cancer",
        "epochs": 20,
        "batch_size": 64,
        "learning_rates": {"sigmoid": 0.215, "softmax": 0.01, "no_sigmoid": 0.0464},
    },
    "regression": {
        "data": "diabetes",
        "epochs": 20,
        "batch_size": 64,
        "learning_rates": {"linear": 0.00215, "relu": 0.00215},
    },
}

CLAIMS = [
    {
        "text": "Logits without from_logits=True lower test accuracy",
        "experiment": "ten_classes",
        "variant": "no_softmax",
        "against": "softmax",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.05,
        "textbook": "Last activation and loss have to belong together.",
    },
    {
        "text": "A hidden softmax with from_logits=True lowers test accuracy",
        "experiment": "ten_classes",
        "variant": "softmax_twice",
        "against": "softmax",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
        "textbook": "Last activation and loss have to belong together.",
    },
    {
        "text": "One-hot labels give the test accuracy of integer labels",
        "experiment": "ten_classes",
        "variant": "one_hot",
        "against": "softmax",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.005,
    },
    {
        "text": "Independent sigmoids give the test accuracy of a softmax",
        "experiment": "ten_classes",
        "variant": "sigmoids",
        "against": "softmax",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.01,
        "against_textbook": "Several classes need a softmax.",
    },
    {
        "text": "The sum of independent sigmoids is further from one than that of a softmax",
        "experiment": "ten_classes",
        "variant": "sigmoids",
        "against": "softmax",
        "metric": "distance_of_sum_from_one",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Only a softmax gives probabilities that sum to one.",
    },
    {
        "text": "With two classes, a softmax gives the test accuracy of one sigmoid",
        "experiment": "two_classes",
        "variant": "softmax",
        "against": "sigmoid",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
        "textbook": "For two classes, one sigmoid and a softmax over two are the same.",
    },
    {
        "text": "With two classes, a logit without from_logits=True lowers test accuracy",
        "experiment": "two_classes",
        "variant": "no_sigmoid",
        "against": "sigmoid",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.02,
    },
    {
        "text": "A ReLU on the output raises the test error of a regression",
        "experiment": "regression",
        "variant": "relu",
        "against": "linear",
        "metric": "test_rmse",
        "direction": "higher",
        "at_least": 5.0,
        "textbook": "Last activation and loss have to belong together.",
    },
]


def measure(model, split):
    """Return how far the outputs for one sample sum from one, on average over the test data."""
    outputs = keras.ops.convert_to_numpy(model(split.test.x, training=False)).astype("float64")
    return {"distance_of_sum_from_one": np.mean(np.abs(outputs.sum(axis=-1) - 1))}


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
