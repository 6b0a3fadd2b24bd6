"""Weight averaging: predict with the mean of the last weights instead of the very last ones.

Problem:    At a constant learning rate the weights end up wandering around a minimum: accuracy
            jumps from epoch to epoch, and the last epoch may be a bad one.
Technique:  Training goes on as it is; beside it an average of the weights is kept, with which the
            network predicts in the end. Exponential moving average (EMA): after each step,
            average = m * average + (1 - m) * weights, which spans about 1 / (1 - m) steps.
            Stochastic weight averaging (SWA): the plain mean of the weights after each epoch,
            from some epoch on.
Claim:      At a learning rate that is too high to settle, the exponential average does as well as a
            rate that decays to zero; that it beats the last weights there, by three or four points
            in the mean, is not clear from five seeds. Each at its own rate, it gains a point over a
            constant one. An average that spans more steps than were made still holds the first
            ones, and lags behind: its training loss is higher. With batch normalization, statistics
            computed again raise the accuracy of the mean over epochs in the mean, not clearly.
Costs:      A copy of the weights; for EMA also a multiplication for each weight and step.
Start at:   SGD(..., use_ema=True, ema_momentum=0.99), Keras's default, where an average over 100
            steps is short against the whole training. A constant rate, higher than the best one
            without averaging.
Caveat:     Keras puts the average into the model when `fit` ends, and only then: the `val_loss` of
            every epoch, and what ModelCheckpoint saves, are of the raw weights, unless
            SwapEMAWeights(swap_on_epoch=True) comes first in the list of callbacks. So are the
            curves here. A second `fit` goes on from the average. With `ema_overwrite_frequency`
            training itself goes on from the average again and again, which is another method.
            Moving statistics of batch normalization belong to the raw weights and are averaged by
            neither: call `recompute_statistics` before predicting.
            The learning rates of own_rates come from `python -m recipes.weight_averaging --tune
            --experiments own_rates --learning-rates 0.0003:0.3:7`. In the other experiments the
            rate is the subject.
Reference:  Polyak, Juditsky (1992), Acceleration of Stochastic Approximation by Averaging, SIAM
            Journal on Control and Optimization 30. Izmailov, Podoprikhin, Garipov, Vetrov, Wilson
            (2018), Averaging Weights Leads to Wider Optima and Better Generalization, section 3.
Run:        python -m recipes.weight_averaging
Measured:   No clear difference: At a rate that is too high, the exponential average raises test
              accuracy (+3.4 [-0.5, +7.4] points, p = .145).
            No clear difference: The mean over the second half of the epochs does so too (+4.1
              [+0.7, +7.6] points, p = .120).
            Supported: The exponential average does as well as cosine decay, within two points (+0.3
              [-0.7, +1.3] points, p = .032).
            Supported: After 960 steps, an average with a momentum of 0.999 has a higher training
              loss than one with 0.99 (+0.443 [+0.392, +0.494], p < .001).
            Supported: Each at its own rate, the exponential average raises test accuracy (+1.1
              [+0.8, +1.3] points, p = .003).
            No clear difference: With batch normalization, statistics computed again raise the test
              accuracy of the mean over epochs by ten points or more (+13.8 [+2.1, +25.4] points, p
              = .120).
            No clear difference: With batch normalization, they raise that of the exponential
              average (+0.8 [-0.6, +2.2] points, p = .187).
            Supported: Without averaging, statistics computed again change test accuracy by a point
              at most (-0.4 [-0.8, +0.1] points, p = .048).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import keras
import numpy as np

HIDDEN_UNITS = 64
HIDDEN_LAYERS = 2
MOMENTUM = 0.9
NORMALIZATION_MOMENTUM = 0.9  # Keras's default of 0.99 needs more steps than there are here.


class EpochAverage(keras.callbacks.Callback):
    """Ends the training with the mean of the weights after each epoch (SWA).

    The mean is over the trainable variables, from the end of epoch `from_epoch` on, in float64.
    Other variables, such as the moving statistics of batch normalization, are those of the last
    epoch. Where training ends before `from_epoch`, the weights stay as they are.

    Args:
        from_epoch: Int >= 0, the number of epochs that are left out at the start.

    Raises:
        ValueError: if `from_epoch` is negative.
    """

    def __init__(self, from_epoch=0):
        super().__init__()
        if from_epoch < 0:
            raise ValueError(f"Argument `from_epoch` must be >= 0. Received: {from_epoch=}")
        self.from_epoch = from_epoch

    def on_train_begin(self, logs=None):
        self.count, self.sums = 0, []

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self.from_epoch:
            weights = [
                keras.ops.convert_to_numpy(variable).astype("float64")
                for variable in self.model.trainable_variables
            ]
            sums = self.sums or [0.0] * len(weights)
            self.sums = [s + weight for s, weight in zip(sums, weights, strict=True)]
            self.count += 1

    def on_train_end(self, logs=None):
        if self.count:
            for variable, s in zip(self.model.trainable_variables, self.sums, strict=True):
                variable.assign(s / self.count)


def recompute_statistics(model, x, batch_size=1024):
    """Give the batch normalizations of `model` the statistics that its present weights produce.

    Mean and variance of every normalization become the mean over the batches of `x`, weighted by
    their sizes, of what it sees in training mode. Dropout, if any, is active meanwhile.

    Args:
        model: A Keras model. Models inside of it are searched too.
        x: Array of shape `(samples, ...)`, training inputs.
        batch_size: Int. The variance is that within a batch, so large batches are better.
    """
    layers = list(_normalizations(model))
    momenta = [layer.momentum for layer in layers]
    try:
        for start in range(0, len(x), batch_size):
            end = min(start + batch_size, len(x))
            for layer in layers:
                layer.momentum = start / end  # The share of the samples before this batch.
            model(x[start:end], training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _normalizations(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from _normalizations(layer)


def make_callbacks(average_from_epoch=None):
    """Return the callbacks for `model.fit`: SWA from an epoch on, or none where it is None."""
    return [] if average_from_epoch is None else [EpochAverage(average_from_epoch)]


def build_model(
    input_shape=(64,),
    classes=10,
    ema_momentum=0.0,
    cosine_decay=False,
    batch_normalization=False,
    learning_rate=0.1,
    total_steps=1000,
    seed=0,
):
    """Build and compile a ReLU network, with or without a moving average of its weights.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        ema_momentum: Float in [0, 1]. With 0 the average is the weights, and none is kept.
        cosine_decay: Whether the learning rate falls to 0 over `total_steps`.
        batch_normalization: Whether to normalize each hidden layer before its ReLU.
        learning_rate: Float or schedule, for SGD with momentum. With `cosine_decay` a float.
        total_steps: Int, the number of steps of the whole training, for `cosine_decay`.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, kernel_initializer=initializer)(x)
        if batch_normalization:
            x = keras.layers.BatchNormalization(momentum=NORMALIZATION_MOMENTUM)(x)
        x = keras.layers.ReLU()(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    if cosine_decay:
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)
    optimizer = keras.optimizers.SGD(
        learning_rate, momentum=MOMENTUM, use_ema=ema_momentum > 0, ema_momentum=ema_momentum
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the average's momentum and the learning rate.

    The search has to see the average: `tuner.search(..., callbacks=[
    keras.callbacks.SwapEMAWeights()])` evaluates with it. Without, every momentum scores the same.
    """
    return build_model(
        ema_momentum=hp.Choice("ema_momentum", [0.9, 0.97, 0.99, 0.997]),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


VARIANTS = {
    "constant": {},
    "ema": {"ema_momentum": 0.99},
    "swa": {"average_from_epoch": 15},
    "cosine": {"cosine_decay": True},
    "ema_0.999": {"ema_momentum": 0.999},
    "normalized": {"batch_normalization": True},
    "normalized_ema": {"batch_normalization": True, "ema_momentum": 0.99},
    # From epoch 5: the longer the path, the less its mean is like the last weights.
    "normalized_swa": {"batch_normalization": True, "average_from_epoch": 5},
}

EQUAL_START = [
    ["constant", "ema", "swa", "cosine", "ema_0.999"],
    ["normalized", "normalized_ema", "normalized_swa"],
]

NOISY_DIGITS = {
    "data": "digits",
    "samples": 1000,
    "label_noise": 0.1,
    "epochs": 30,
    "batch_size": 32,
}

EXPERIMENTS = {
    # One path through the weights, but for cosine: the averages leave the training as it is.
    "high_rate": {
        **NOISY_DIGITS,
        "learning_rates": {
            "constant": 0.1,
            "ema": 0.1,
            "swa": 0.1,
            "cosine": 0.1,
            "ema_0.999": 0.1,
        },
    },
    "own_rates": {
        **NOISY_DIGITS,
        "learning_rates": {"constant": 0.003, "ema": 0.00949, "cosine": 0.00949},
    },
    "normalization": {
        **NOISY_DIGITS,
        "measure": True,
        "learning_rates": {"normalized": 0.3, "normalized_ema": 0.3, "normalized_swa": 0.3},
    },
}

CLAIMS = [
    {
        "text": "At a rate that is too high, the exponential average raises test accuracy",
        "experiment": "high_rate",
        "variant": "ema",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.02,
    },
    {
        "text": "The mean over the second half of the epochs does so too",
        "experiment": "high_rate",
        "variant": "swa",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.02,
    },
    {
        "text": "The exponential average does as well as cosine decay, within two points",
        "experiment": "high_rate",
        "variant": "ema",
        "against": "cosine",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "After 960 steps, an average with a momentum of 0.999 has a higher training loss "
        "than one with 0.99",
        "experiment": "high_rate",
        "variant": "ema_0.999",
        "against": "ema",
        "metric": "train_loss",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "Each at its own rate, the exponential average raises test accuracy",
        "experiment": "own_rates",
        "variant": "ema",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "With batch normalization, statistics computed again raise the test accuracy of "
        "the mean over epochs by ten points or more",
        "experiment": "normalization",
        "variant": "normalized_swa",
        "against": "normalized_swa",
        "metric": "recomputed_accuracy",
        "against_metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "With batch normalization, they raise that of the exponential average",
        "experiment": "normalization",
        "variant": "normalized_ema",
        "against": "normalized_ema",
        "metric": "recomputed_accuracy",
        "against_metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "Without averaging, statistics computed again change test accuracy by a point at "
        "most",
        "experiment": "normalization",
        "variant": "normalized",
        "against": "normalized",
        "metric": "recomputed_accuracy",
        "against_metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.01,
    },
]

SYMPTOMS = ["unstable"]


def measure(model, split):
    """Return test accuracy after the statistics were computed again, from the training inputs."""
    recompute_statistics(model, split.train.x)
    x, y = split.test
    return {"recomputed_accuracy": np.mean(np.argmax(model(x, training=False), axis=-1) == y)}


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
