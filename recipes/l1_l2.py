"""L1 and L2 penalties: charge the loss for large weights, so that few grow without need.

Problem:    Training accuracy is far above validation accuracy, and the weights keep growing.
Technique:  The loss gets l1 * sum |w| + l2 * sum w^2 over the kernels. L2 pulls every weight by a
            share of itself: along curvature h it keeps h / (h + 2 l2). L1 pulls all by the same
            amount and would set small ones to zero. Weight decay takes the share off the weights
            themselves, after the optimizer has scaled the gradient; in plain SGD that is L2.
Claim:      With 30% wrong labels, each at its own rate, L2 keeps the weights smaller; on the gap
            between training and test, and on test accuracy, neither L2 nor L1 shows a clear effect.
            At ten times the best rate, where the network learns wrong labels by heart, L2 narrows
            the gap; what it gains in accuracy is not clear. Keras's L1 sets no weight to exactly
            zero, because a subgradient step jumps over it; a soft threshold after each step does,
            here one in seven. Where the data give no gradient, Adam shrinks weights at the same
            pace for any L2; AdamW does not. Under batch normalization L2 shrinks the kernels and
            leaves test accuracy where it was.
Costs:      A sum over the weights a step. A zero weight saves nothing by itself.
Start at:   l2 1e-3 to 1e-2 with SGD; with Adam, AdamW and weight_decay 1e-2. No penalty on
            biases, gamma and beta. L1 to find inputs that are not needed.
Caveat:     Keras's L2 has no factor 1/2: its gradient is 2 l2 w, so weight_decay in SGD is 2 l2.
            Keras's weight_decay also decays biases, gamma and beta, unless
            `exclude_from_weight_decay` is called. Never compare losses with penalties in them:
            the tables here have the data's part alone. Sizes of penalties were set by hand.
            The learning rates come from `python -m recipes.l1_l2 --tune --experiments penalties
            normalized --learning-rates 0.003:1:6`. Where one rate is for all, it is given: ten
            times the best one without a penalty. With Adam it is Keras's default, since the
            subject there is the pace of the decay.
Reference:  Krogh, Hertz (1991), A Simple Weight Decay Can Improve Generalization, NIPS 4.
            Tibshirani (1996), Regression Shrinkage and Selection via the Lasso, section 2.
            Parikh, Boyd (2014), Proximal Algorithms, sections 4.2 and 6.5.2. Loshchilov, Hutter
            (2019), Decoupled Weight Decay Regularization, arXiv:1711.05101, section 2. Van
            Laarhoven (2017), L2 Regularization versus Batch and Weight Normalization,
            arXiv:1706.05350, section 2.
Run:        python -m recipes.l1_l2, with --sweep for batch normalization
Measured:   Supported: With 30% wrong labels, each at its own learning rate, L2 keeps the norm of
              the weights smaller (-12.7 [-12.8, -12.6], p < .001).
            No clear difference: Each at its own rate, L2 narrows the gap between training and test
              (-0.2 [-2.6, +2.2] points, p = 1.000).
            No clear difference: Each at its own rate, L2 raises test accuracy (-0.2 [-1.9, +1.5]
              points, p = 1.000).
            No clear difference: At a rate of 0.316 for both, L2 raises test accuracy by five points
              or more (+3.3 [-0.9, +7.5] points, p = .275).
            Supported: At that rate, L2 narrows the gap between training and test (-16.5 [-19.8,
              -13.2] points, p = .001).
            No clear difference: Each at its own rate, L1 raises test accuracy (-1.8 [-3.2, -0.4]
              points, p = .116).
            No clear difference: L1 and L2 together, each at half, test as well as L2 (-1.0 [-2.5,
              +0.5] points, p = .254).
            Supported: L1 in the loss makes not one weight in a thousand exactly zero (0 in every
              run).
            No clear difference: L1 by soft thresholds makes a quarter of the weights exactly zero
              (+0.15 [+0.144, +0.155], p < .001).
            Supported: Both ways to L1 give the same test accuracy (0.0 points in every run).
            Supported: Without a gradient from the data, Adam shrinks weights as fast for l2 = 0.01
              as for 0.0001 (-0.00395 [-0.00412, -0.00379], p < .001).
            Supported: AdamW shrinks them more with a decay of 1 than of 0.01 (-0.146 [-0.146,
              -0.146], p < .001).
            Supported: Under batch normalization, L2 makes the norm of the weights smaller (-5.58
              [-5.61, -5.56], p < .001).
            Supported: There, each at its own rate, it changes test accuracy by less than two points
              (-0.3 [-1.0, +0.4] points, p = .008).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import keras
import numpy as np

HIDDEN_UNITS = 128  # Wide for 1,000 samples: 25 weights for each, enough to memorize them.
HIDDEN_LAYERS = 2


@keras.saving.register_keras_serializable(package="recipes")
class SoftThreshold(keras.constraints.Constraint):
    """Moves every weight toward zero by `amount`, and sets those within it to zero.

    ```
    w = sign(w) * max(|w| - amount, 0)
    ```

    Keras applies a constraint after each step of the optimizer. After plain SGD, with `amount` the
    learning rate times l1, this is the proximal gradient method for the loss plus l1 * sum |w|.

    Args:
        amount: Float >= 0. 0 changes nothing.

    Raises:
        ValueError: if `amount` is negative.
    """

    def __init__(self, amount):
        if not amount >= 0:
            raise ValueError(f"Argument `amount` must be >= 0. Received: amount={amount}")
        self.amount = amount

    def __call__(self, w):
        return keras.ops.soft_shrink(w, self.amount)

    def get_config(self):
        return {"amount": self.amount}


def build_model(
    input_shape=(64,),
    classes=10,
    l1=0.0,
    l2=0.0,
    proximal_l1=0.0,
    weight_decay=0.0,
    optimizer="sgd",
    batch_normalization=False,
    learning_rate=0.1,
    seed=0,
):
    """Build and compile a ReLU network with penalties on its kernels.

    ```
    loss = cross_entropy + sum over the kernels of (l1 * sum(|w|) + l2 * sum(w ** 2))
    ```

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        l1: Float >= 0, the factor of the sum of the absolute weights, as part of the loss.
        l2: Float >= 0, the factor of the sum of the squared weights, as part of the loss.
        proximal_l1: Float >= 0, takes the place of `l1` for the proximal step: a soft threshold of
            `learning_rate * proximal_l1` after each step instead of a gradient. Only with SGD.
        weight_decay: Float >= 0. Each step first multiplies the kernels by
            `1 - learning_rate * weight_decay`.
        optimizer: "sgd", without momentum, or "adam".
        batch_normalization: Whether to normalize before each ReLU. The penalties are then on the
            normalized kernels alone, not on that of the outputs.
        learning_rate: Float; a schedule where `proximal_l1` is 0.
        seed: Int. Equal seeds give equal initial kernels.

    Raises:
        ValueError: if a factor is negative, the optimizer has another name, or `proximal_l1` goes
            together with Adam or a schedule.
    """
    factors = {"l1": l1, "l2": l2, "proximal_l1": proximal_l1, "weight_decay": weight_decay}
    for name, value in factors.items():
        if not value >= 0:
            raise ValueError(f"Argument `{name}` must be >= 0. Received: {name}={value}")
    if proximal_l1 and (optimizer != "sgd" or not isinstance(learning_rate, int | float)):
        raise ValueError(
            "Argument `proximal_l1` needs SGD and a number for a learning rate. "
            f"Received: optimizer={optimizer!r}, learning_rate={learning_rate}"
        )
    penalties = {
        "kernel_regularizer": keras.regularizers.L1L2(l1, l2) if l1 or l2 else None,
        "kernel_constraint": SoftThreshold(learning_rate * proximal_l1) if proximal_l1 else None,
    }
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, kernel_initializer=initializer, **penalties)(x)
        if batch_normalization:
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    on_outputs = {} if batch_normalization else penalties
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer, **on_outputs)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=_build_optimizer(optimizer, learning_rate, weight_decay),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _build_optimizer(name, learning_rate, weight_decay):
    # With `weight_decay`, Keras's Adam is its AdamW.
    classes = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    if name not in classes:
        raise ValueError(f'Argument `optimizer` must be "sgd" or "adam". Received: {name!r}')
    # None and not 0, which would multiply each weight by one.
    optimizer = classes[name](learning_rate, weight_decay=weight_decay or None)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with both penalties and the learning rate."""
    return build_model(
        l1=hp.Float("l1", 1e-6, 1e-2, sampling="log"),
        l2=hp.Float("l2", 1e-6, 1e-1, sampling="log"),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


VARIANTS = {
    "none": {},
    "l2": {"l2": 0.01},
    "l1": {"l1": 0.003},
    "l1_l2": {"l1": 0.0015, "l2": 0.005},
    "proximal_l1": {"proximal_l1": 0.003},
    "adam": {"optimizer": "adam"},
    "adam_l2_0.0001": {"optimizer": "adam", "l2": 0.0001},
    "adam_l2_0.01": {"optimizer": "adam", "l2": 0.01},
    "adamw_0.01": {"optimizer": "adam", "weight_decay": 0.01},
    "adamw_1": {"optimizer": "adam", "weight_decay": 1.0},
    "norm": {"batch_normalization": True},
    "norm_l2": {"batch_normalization": True, "l2": 0.01},
}

EQUAL_START = [
    [name for name in VARIANTS if not name.startswith("norm")],
    ["norm", "norm_l2"],
]

NOISY_DIGITS = {
    "data": "digits",
    "samples": 1000,
    "label_noise": 0.3,
    "epochs": 30,
    "batch_size": 64,
    "measure": True,
}

SYMPTOMS = ["overfits"]

EXPERIMENTS = {
    "penalties": {
        **NOISY_DIGITS,
        "learning_rates": {
            "none": 0.0306,
            "l2": 0.0979,
            "l1": 0.0306,
            "l1_l2": 0.0979,
            "proximal_l1": 0.0306,
        },
    },
    # Ten times the best rate without a penalty, given: there the network learns wrong labels.
    "one_rate_for_all": {
        **NOISY_DIGITS,
        "epochs": 40,
        "learning_rates": {"none": 0.316, "l2": 0.316},
    },
    "adam": {  # Keras's default rate for all, since the subject is the pace of the decay.
        **NOISY_DIGITS,
        "epochs": 10,
        "measure": "measure_blank_inputs",
        "learning_rates": {
            "adam": 0.001,
            "adam_l2_0.0001": 0.001,
            "adam_l2_0.01": 0.001,
            "adamw_0.01": 0.001,
            "adamw_1": 0.001,
        },
    },
    "normalized": {
        **NOISY_DIGITS,
        "sweep": True,
        "learning_rates": {"norm": 0.0306, "norm_l2": 0.0306},
    },
}

CLAIMS = [
    {
        "text": "With 30% wrong labels, each at its own learning rate, L2 keeps the norm of the "
        "weights smaller",
        "experiment": "penalties",
        "variant": "l2",
        "against": "none",
        "metric": "weight_norm",
        "direction": "lower",
        "at_least": 1.0,
        "textbook": "A penalty keeps the weights small.",
    },
    {
        "text": "Each at its own rate, L2 narrows the gap between training and test",
        "experiment": "penalties",
        "variant": "l2",
        "against": "none",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.01,
        "textbook": "Small weights overfit less.",
    },
    {
        "text": "Each at its own rate, L2 raises test accuracy",
        "experiment": "penalties",
        "variant": "l2",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "At a rate of 0.316 for both, L2 raises test accuracy by five points or more",
        "experiment": "one_rate_for_all",
        "variant": "l2",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
    },
    {
        "text": "At that rate, L2 narrows the gap between training and test",
        "experiment": "one_rate_for_all",
        "variant": "l2",
        "against": "none",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.05,
        "textbook": "Small weights overfit less.",
    },
    {
        "text": "Each at its own rate, L1 raises test accuracy",
        "experiment": "penalties",
        "variant": "l1",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "L1 and L2 together, each at half, test as well as L2",
        "experiment": "penalties",
        "variant": "l1_l2",
        "against": "l2",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "L1 in the loss makes not one weight in a thousand exactly zero",
        "experiment": "penalties",
        "variant": "l1",
        "against": "none",
        "metric": "zero_weights",
        "direction": "equal",
        "at_least": 0.001,
        "against_textbook": "An L1 penalty makes weights exactly zero.",
    },
    {
        "text": "L1 by soft thresholds makes a quarter of the weights exactly zero",
        "experiment": "penalties",
        "variant": "proximal_l1",
        "against": "l1",
        "metric": "zero_weights",
        "direction": "higher",
        "at_least": 0.25,
        "textbook": "An L1 penalty makes weights exactly zero.",
    },
    {
        "text": "Both ways to L1 give the same test accuracy",
        "experiment": "penalties",
        "variant": "proximal_l1",
        "against": "l1",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "Without a gradient from the data, Adam shrinks weights as fast for l2 = 0.01 as "
        "for 0.0001",
        "experiment": "adam",
        "variant": "adam_l2_0.01",
        "against": "adam_l2_0.0001",
        "metric": "blank_weights",
        "direction": "equal",
        "at_least": 0.01,
    },
    {
        "text": "AdamW shrinks them more with a decay of 1 than of 0.01",
        "experiment": "adam",
        "variant": "adamw_1",
        "against": "adamw_0.01",
        "metric": "blank_weights",
        "direction": "lower",
        "at_least": 0.1,
    },
    {
        "text": "Under batch normalization, L2 makes the norm of the weights smaller",
        "experiment": "normalized",
        "variant": "norm_l2",
        "against": "norm",
        "metric": "weight_norm",
        "direction": "lower",
        "at_least": 1.0,
    },
    {
        "text": "There, each at its own rate, it changes test accuracy by less than two points",
        "experiment": "normalized",
        "variant": "norm_l2",
        "against": "norm",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
]


def measure(model, split):
    """Measure the kernels: their norm, their exact zeros, and what they cost in the loss.

    `weight_norm` is the root of the sum of squares over all kernels. `penalty` is what the
    regularizers add to the loss; no other loss in the tables contains it.
    """
    kernels = np.concatenate([k.ravel() for k in _kernels(model)]).astype("float64")
    return {
        "weight_norm": np.linalg.norm(kernels),
        "zero_weights": np.mean(kernels == 0),
        "penalty": sum(map(float, model.losses)),
    }


def _kernels(model):
    return [w.numpy() for w in model.trainable_weights if w.path.endswith("kernel")]


def measure_blank_inputs(model, split):
    """Return what is left of the weights of those inputs that are 0 in all training samples.

    The data give these weights no gradient, so that penalty and optimizer alone move them.
    `blank_weights` is the root of their sum of squares, divided by that at the start.
    """
    blank = ~split.train.x.reshape(len(split.train.x), -1).any(axis=0)
    start = keras.models.clone_model(model)  # The same seeds draw the same weights again.
    norms = [np.linalg.norm(_kernels(network)[0][blank]) for network in (model, start)]
    return {**measure(model, split), "blank_weights": norms[0] / norms[1]}


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
