"""Early stopping: end the training where validation is best, and go back to those weights.

Problem:    Validation loss falls, turns and rises, while training loss goes on falling.
Technique:  After each epoch, a callback compares the validation loss with its best so far. Where
            `patience` epochs bring nothing better, it ends the training and restores the best
            weights. Few small steps from small weights are a penalty: on a quadratic, t steps at
            rate r shrink each direction nearly as an L2 penalty of 1 / (r t) does.
Claim:      With 30% wrong labels it raises the test accuracy of a network that would learn them by
            heart, by five points and more, at a learning rate at which that network overfits. Where
            each has its own rate, no clear difference is left: a small rate does much the same for
            the network that trains on. What patience, restoring and the monitor change is too small
            to be clear here, but for the test loss on clean data: stopping by the loss gives a
            lower one than by the accuracy.
Costs:      A validation part that training must not see; one pass over it an epoch. Saves epochs.
Start at:   EarlyStopping(monitor="val_loss", patience=5, restore_best_weights=True). Keras's own
            defaults are patience 0, which equals 1, and no restoring.
Caveat:     All but one variant train on the same samples, whether they use the validation part or
            not; `with_validation` trains on both parts for all epochs, which is what stopping
            has to beat. With wrong labels, the validation part has as many of them.
            A monitor that the logs lack stops nothing and only warns: "val_loss" without
            validation data, or any misspelling once `mode` is given; with mode="auto" Keras raises.
            With start_from_epoch past the last epoch nothing is stopped or restored, in silence.
            The learning rates come from `python -m recipes.early_stopping --tune --experiments
            own_rates --variants val_loss --learning-rates 0.001:0.316:6`. with_validation takes
            that of all_epochs. Where one rate is for all, it is ten times the best one: that is
            where the network overfits.
Reference:  Prechelt (1998), Early Stopping - But When?, in Neural Networks: Tricks of the Trade,
            section 2. As a penalty: Goodfellow, Bengio, Courville (2016), Deep Learning,
            section 7.8.
Run:        python -m recipes.early_stopping, with --sweep for a start that comes too late
Measured:   No clear difference: With 30% wrong labels, each at its own learning rate, stopping
              raises test accuracy (-0.1 [-0.4, +0.3] points, p = 1.000).
            No clear difference: Stopping beats training on the validation part as well, for all
              epochs (-1.2 [-2.0, -0.4] points, p = .086).
            Supported: At one learning rate for both, stopping raises test accuracy by five points
              or more (+7.6 [+3.5, +11.7] points, p = .046).
            Supported: At one rate, stopping makes the gap between training and test smaller (-20.6
              [-22.7, -18.5] points, p < .001).
            Supported: At one rate, stopping leaves fewer of the wrong labels learned by heart
              (-0.39 [-0.428, -0.352], p < .001).
            No clear difference: Stopping at the first fall of validation accuracy lowers test
              accuracy against a patience of 5 (-2.3 [-5.6, +0.9] points, p = .355).
            No clear difference: Stopping at the first fall of validation accuracy beats training on
              (+5.2 [+0.4, +10.1] points, p = .157).
            No clear difference: Without restoring the best weights, test accuracy is lower (-0.3
              [-2.9, +2.4] points, p = 1.000).
            Supported: On clean MNIST-1D, stopping by the loss gives a lower test loss than by
              accuracy (-0.389 [-0.588, -0.189], p = .045).
            No clear difference: There, stopping by the loss also gives a lower test accuracy (-2.9
              [-5.2, -0.6] points, p = .123).
            Supported: A start past the last epoch changes nothing, to the last bit (0 in every
              run).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np

HIDDEN_UNITS = 128  # Wide for 1,000 samples: 25 weights for each, enough to memorize them.
HIDDEN_LAYERS = 2
MOMENTUM = 0.9
PATIENCE = 5  # Validation curves are jagged: the first rise says little.


def make_callbacks(monitor=None, patience=PATIENCE, restore=True, start_from_epoch=0):
    """Return the callbacks for `model.fit`: early stopping, or none where `monitor` is None.

    Args:
        monitor: String, the key in the logs to watch: "val_loss" or "val_accuracy". Keras finds
            out by itself whether it should fall or rise, and raises `ValueError` where it cannot.
        patience: Int >= 0, how many epochs without a new best end the training. 0 equals 1.
        restore: Whether to end with the weights of the best epoch instead of those of the last.
        start_from_epoch: Int >= 0, the number of epochs at the start that count for nothing: they
            are not watched, and their weights are not kept.

    Raises:
        ValueError: if `patience` or `start_from_epoch` is negative.
    """
    for name, value in {"patience": patience, "start_from_epoch": start_from_epoch}.items():
        if value < 0:
            raise ValueError(f"Argument `{name}` must be >= 0. Received: {name}={value}")
    if monitor is None:
        return []
    return [
        keras.callbacks.EarlyStopping(
            monitor,
            patience=patience,
            restore_best_weights=restore,
            start_from_epoch=start_from_epoch,
        )
    ]


def build_model(input_shape=(64,), classes=10, units=HIDDEN_UNITS, learning_rate=0.1, seed=0):
    """Build and compile a ReLU network that is wide enough to learn wrong labels by heart.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        units: Int, the width of both hidden layers.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(units, "relu", kernel_initializer=initializer)(x)
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
    """Build the model that Keras Tuner asks for, with its width and the learning rate.

    The stopping is no part of a model: give it to the search, which copies it for every trial,
    `tuner.search(..., callbacks=make_callbacks("val_loss"))`.
    """
    return build_model(
        units=hp.Int("units", 32, 512, step=2, sampling="log"),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


VARIANTS = {
    "all_epochs": {},
    "with_validation": {"join_validation": True},
    "val_loss": {"monitor": "val_loss"},
    "val_accuracy": {"monitor": "val_accuracy"},
    "not_restored": {"monitor": "val_loss", "restore": False},
    "first_fall": {"monitor": "val_accuracy", "patience": 0},
    "late_start": {"monitor": "val_loss", "start_from_epoch": 1000},
}

EQUAL_START = [list(VARIANTS)]

NOISY_DIGITS = {
    "data": "digits",
    "samples": 1000,
    "label_noise": 0.3,
    "epochs": 40,
    "batch_size": 64,
    "measure": True,
}

SYMPTOMS = ["overfits"]

EXPERIMENTS = {
    "own_rates": {
        **NOISY_DIGITS,
        "learning_rates": {"all_epochs": 0.00316, "with_validation": 0.00316, "val_loss": 0.00316},
    },
    # One path through the weights, left at different epochs, at ten times the best rate.
    "one_rate_for_all": {
        **NOISY_DIGITS,
        "learning_rates": {
            "all_epochs": 0.0316,
            "val_loss": 0.0316,
            "val_accuracy": 0.0316,
            "not_restored": 0.0316,
            "first_fall": 0.0316,
        },
    },
    "clean_mnist1d": {  # Here too one path, at the same rate.
        "data": "mnist1d",
        "samples": 1000,
        "epochs": 40,
        "batch_size": 64,
        "learning_rates": {"all_epochs": 0.0316, "val_loss": 0.0316, "val_accuracy": 0.0316},
    },
    "late_start": {
        **NOISY_DIGITS,
        "sweep": True,
        "learning_rates": {"all_epochs": 0.0316, "late_start": 0.0316},
    },
}

CLAIMS = [
    {
        "text": "With 30% wrong labels, each at its own learning rate, stopping raises test "
        "accuracy",
        "experiment": "own_rates",
        "variant": "val_loss",
        "against": "all_epochs",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Early stopping prevents overfitting.",
    },
    {
        "text": "Stopping beats training on the validation part as well, for all epochs",
        "experiment": "own_rates",
        "variant": "val_loss",
        "against": "with_validation",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "At one learning rate for both, stopping raises test accuracy by five points or "
        "more",
        "experiment": "one_rate_for_all",
        "variant": "val_loss",
        "against": "all_epochs",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
        "textbook": "Early stopping prevents overfitting.",
    },
    {
        "text": "At one rate, stopping makes the gap between training and test smaller",
        "experiment": "one_rate_for_all",
        "variant": "val_loss",
        "against": "all_epochs",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.05,
        "textbook": "Early stopping prevents overfitting.",
    },
    {
        "text": "At one rate, stopping leaves fewer of the wrong labels learned by heart",
        "experiment": "one_rate_for_all",
        "variant": "val_loss",
        "against": "all_epochs",
        "metric": "memorized",
        "direction": "lower",
        "at_least": 0.1,
    },
    {
        "text": "Stopping at the first fall of validation accuracy lowers test accuracy against "
        "a patience of 5",
        "experiment": "one_rate_for_all",
        "variant": "first_fall",
        "against": "val_accuracy",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "Stopping at the first fall of validation accuracy beats training on",
        "experiment": "one_rate_for_all",
        "variant": "first_fall",
        "against": "all_epochs",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Stop training when the accuracy on validation data begins to fall.",
    },
    {
        "text": "Without restoring the best weights, test accuracy is lower",
        "experiment": "one_rate_for_all",
        "variant": "not_restored",
        "against": "val_loss",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "On clean MNIST-1D, stopping by the loss gives a lower test loss than by accuracy",
        "experiment": "clean_mnist1d",
        "variant": "val_loss",
        "against": "val_accuracy",
        "metric": "test_loss",
        "direction": "lower",
        "at_least": 0.05,
    },
    {
        "text": "There, stopping by the loss also gives a lower test accuracy",
        "experiment": "clean_mnist1d",
        "variant": "val_loss",
        "against": "val_accuracy",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.02,
    },
    {
        "text": "A start past the last epoch changes nothing, to the last bit",
        "experiment": "late_start",
        "variant": "late_start",
        "against": "all_epochs",
        "metric": "test_loss",
        "direction": "equal",
        "at_least": 0.0,
    },
]


def prepare(split, join_validation=False):
    """Return the data as it is, or with the validation part joined to the training part.

    The validation part stays what it was, so that its metrics then speak of samples that were
    trained on: no learning rate can be chosen by them.
    """
    if not join_validation:
        return split
    train = split.train._replace(
        x=np.concatenate([split.train.x, split.validation.x]),
        y=np.concatenate([split.train.y, split.validation.y]),
    )
    wrong_labels = split.wrong_labels._replace(train=np.concatenate(split.wrong_labels))
    return replace(split, train=train, wrong_labels=wrong_labels)


def measure(model, split):
    """Return the fraction of the wrong training labels that the network gives back."""
    x, y = (values[split.wrong_labels.train] for values in split.train)
    return {"memorized": np.mean(np.argmax(model(x), axis=-1) == y)}


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
