"""Batch normalization: give every unit mean 0 and variance 1 over the batch, then rescale it.

Problem:    Training starts slowly, works at one learning rate only, or not at all with sigmoids.
Technique:  Before each activation, every unit is normalized with its mean and variance over the
            batch, then multiplied by gamma and shifted by beta, which are learned. Inference uses
            moving averages of the batches' means and variances instead.
Claim:      A sigmoid network starts faster, and still trains at a learning rate that ruins it
            without the layer. At inference the layer must stay, or be folded into the weights
            before it. Even in batches of two the network learns with the layer, and not without it.
            What gamma and beta add is not seen in 51 steps.
Costs:      Two moments a unit and step; predictions depend on the rest of the batch in training.
Start at:   Dense or Conv without bias, BatchNormalization, activation; ten times the learning rate;
            batches of 16 or more; momentum 0.9 up to a few hundred steps, Keras's 0.99 above.
Caveat:     Keras's default momentum of 0.99 leaves 0.99^n of the initial moving statistics after n
            steps: 60% after 50, 1% after 459. A network that trains well then evaluates badly. All
            this was measured on a sigmoid network, which has the most to gain. The learning rates,
            but where the rate is the subject, come from `python -m recipes.batch_normalization
            --tune --experiments 51_steps --learning-rates 0.03:30:7`, where momentum_0.99 takes
            that of the weights it shares, and from the same with batches_of_2 and `0.001:0.3:6`.
Reference:  Ioffe, Szegedy (2015), Batch Normalization: Accelerating Deep Network Training by
            Reducing Internal Covariate Shift, arXiv:1502.03167, sections 3.1 to 3.3 and 4.1.
            Small batches: Wu, He (2018), Group Normalization, arXiv:1803.08494, section 1.
Run:        python -m recipes.batch_normalization, with --sweep for smaller learning rates
Measured:   Supported: After 51 steps, each at its best rate, normalization raises test accuracy
              (+83.2 [+82.1, +84.2] points, p < .001).
            Supported: At a learning rate of 10, normalization raises test accuracy (+83.7 [+79.8,
              +87.6] points, p < .001).
            No clear difference: Without gamma and beta, test accuracy after 51 steps is lower (-0.2
              [-0.7, +0.3] points, p = .338).
            Contradicted: With batches of 2, each at its best rate, normalization lowers test
              accuracy (+73.2 [+70.3, +76.2] points).
            Supported: After 51 steps, a momentum of 0.99 spoils inference with the same weights
              (-79.0 [-85.8, -72.2] points, p < .001).
            Supported: Removing the layers at inference lowers test accuracy (-74.4 [-80.3, -68.4]
              points, p < .001).
            Supported: Batch statistics of test batches sorted by class lower test accuracy (-54.3
              [-57.6, -50.9] points, p < .001).
            No clear difference: Batch statistics of mixed test batches predict as well as moving
              statistics (+0.4 [-1.4, +2.1] points, p = .057).
            Supported: The folded network gives the same logits, up to rounding (+2.44e-05
              [+1.9e-05, +2.98e-05], p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import keras
import numpy as np

HIDDEN_UNITS = 100  # Three layers of 100 sigmoid units: the network of the paper's section 4.1.
HIDDEN_LAYERS = 3
BATCH_SIZE = 60  # The paper's, in the same place.
MOVING_MOMENTUM = 0.9  # After the 51 steps of the shortest experiment 0.5% of the start is left.


def build_model(
    input_shape=(64,),
    classes=10,
    batch_normalization=False,
    gamma_and_beta=True,
    moving_momentum=MOVING_MOMENTUM,
    learning_rate=1.0,
    seed=0,
):
    """Build and compile a sigmoid network with or without batch normalization.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        batch_normalization: Whether to normalize before each activation. The layer before has no
            bias then, because subtracting the mean would cancel it.
        gamma_and_beta: Whether the normalized values are scaled and shifted by learned weights.
        moving_momentum: Float in [0, 1), the share of the moving statistics that a step keeps. It
            changes nothing in training, only what inference normalizes with.
        learning_rate: Float or schedule, for plain SGD.
        seed: Int. Equal seeds give equal initial kernels, with and without normalization.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        x = keras.layers.Dense(
            HIDDEN_UNITS, use_bias=not batch_normalization, kernel_initializer=initializer
        )(x)
        if batch_normalization:
            x = keras.layers.BatchNormalization(
                momentum=moving_momentum, center=gamma_and_beta, scale=gamma_and_beta
            )(x)
        x = keras.layers.Activation("sigmoid")(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the technique and the learning rate."""
    return build_model(
        batch_normalization=hp.Boolean("batch_normalization", default=True),
        moving_momentum=hp.Choice("moving_momentum", [0.9, 0.99]),
        learning_rate=hp.Float("learning_rate", 1e-2, 30.0, sampling="log"),
    )


def fold(model):
    """Return a copy of `model` that predicts the same without batch normalization.

    At inference the layer multiplies each unit by a constant and adds another, so both can move
    into the weights of the layer before:

    ```
    scale  = gamma / sqrt(moving_variance + epsilon)
    kernel = kernel * scale
    bias   = (bias - moving_mean) * scale + beta
    ```

    Args:
        model: A Sequential or functional model, trained. Each batch normalization in it has to
            follow a Dense or Conv layer without activation, and to be alone in reading its output.
            Models nested in it are copied as they are.

    Returns:
        A functional model for inference, not compiled.

    Raises:
        ValueError: if a batch normalization does not stand where it can be folded.
    """
    folded = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = _foldable_layer_before(layer, model)
            folded[before.name] = _folded_weights(before, layer)

    def copy_layer(layer):
        config = layer.get_config()
        return type(layer).from_config(
            {**config, "use_bias": True} if layer.name in folded else config
        )

    def call_layer(layer, x, *args, **kwargs):
        skipped = isinstance(layer, keras.layers.BatchNormalization)
        return x if skipped else layer(x, *args, **kwargs)

    # As a functional model, because `clone_model` takes no `call_function` for a Sequential one.
    inputs, outputs = (t[0] if len(t) == 1 else t for t in (model.inputs, model.outputs))
    functional = keras.Model(inputs, outputs)
    copy = keras.models.clone_model(functional, clone_function=copy_layer, call_function=call_layer)
    for layer in model.layers:
        # Input layers get another name in the copy, and have no weights.
        if layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
            weights = folded.get(layer.name) or layer.get_weights()
            copy.get_layer(layer.name).set_weights(weights)
    return copy


def _foldable_layer_before(normalization, model):
    foldable = keras.layers.Dense | keras.layers.Conv1D | keras.layers.Conv2D | keras.layers.Conv3D
    tensor = normalization.input
    read = [*keras.tree.flatten([layer.input for layer in model.layers]), *model.outputs]
    alone = sum(other is tensor for other in read) == 1
    last_axis = normalization.axis in (-1, len(tensor.shape) - 1)
    for layer in model.layers:
        if layer.output is tensor and isinstance(layer, foldable):
            if alone and last_axis and layer.activation is keras.activations.linear:
                return layer
    raise ValueError(
        "Batch normalization can be folded where it alone reads a Dense or Conv layer that has no "
        f"activation, over the last axis. Received: layer {normalization.name!r}"
    )


def _folded_weights(layer, normalization):
    """Return kernel and bias of `layer` with `normalization` in them."""
    kernel, *bias = layer.get_weights()
    mean = keras.ops.convert_to_numpy(normalization.moving_mean).astype("float64")
    variance = keras.ops.convert_to_numpy(normalization.moving_variance).astype("float64")
    scale = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        scale *= keras.ops.convert_to_numpy(normalization.gamma)
    beta = keras.ops.convert_to_numpy(normalization.beta) if normalization.center else 0.0
    bias = bias[0] if bias else 0.0
    return [kernel * scale, (bias - mean) * scale + beta]


SYMPTOMS = ["slow", "unstable"]

VARIANTS = {
    "none": {"batch_normalization": False},
    "normalized": {"batch_normalization": True},
    "no_gamma_beta": {"batch_normalization": True, "gamma_and_beta": False},
    "momentum_0.99": {"batch_normalization": True, "moving_momentum": 0.99},
}

# These differ in no weight; "none" has biases where the others have gamma and beta.
EQUAL_START = [["normalized", "momentum_0.99"]]

EXPERIMENTS = {
    "51_steps": {
        "data": "digits",
        "samples": 1000,
        "epochs": 3,
        "batch_size": 60,
        "learning_rates": {
            "none": 0.0949,
            "normalized": 0.3,
            "no_gamma_beta": 0.3,
            "momentum_0.99": 0.3,
        },
    },
    # In the experiments named after a rate, the rate is the subject: the same for both.
    "rate_10": {
        "data": "digits",
        "samples": 1000,
        "epochs": 24,
        "batch_size": 60,
        "measure": True,
        "learning_rates": {"none": 10.0, "normalized": 10.0},
    },
    # 1,000 steps: enough for a momentum of 0.99, which averages over more of the tiny batches.
    "batches_of_2": {
        "data": "digits",
        "samples": 1000,
        "epochs": 2,
        "batch_size": 2,
        "learning_rates": {"none": 0.001, "momentum_0.99": 0.00979},
    },
    "rate_1": {
        "data": "digits",
        "samples": 1000,
        "epochs": 24,
        "batch_size": 60,
        "sweep": True,
        "learning_rates": {"none": 1.0, "normalized": 1.0},
    },
    "rate_0.1": {
        "data": "digits",
        "samples": 1000,
        "epochs": 24,
        "batch_size": 60,
        "sweep": True,
        "learning_rates": {"none": 0.1, "normalized": 0.1},
    },
}

CLAIMS = [
    {
        "text": "After 51 steps, each at its best rate, normalization raises test accuracy",
        "experiment": "51_steps",
        "variant": "normalized",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
        "textbook": "Batch normalization makes training start faster.",
    },
    {
        "text": "At a learning rate of 10, normalization raises test accuracy",
        "experiment": "rate_10",
        "variant": "normalized",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.2,
        "textbook": "Batch normalization allows higher learning rates.",
    },
    {
        "text": "Without gamma and beta, test accuracy after 51 steps is lower",
        "experiment": "51_steps",
        "variant": "no_gamma_beta",
        "against": "normalized",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
        "textbook": "Gamma and beta give back what normalization takes away.",
    },
    {
        "text": "With batches of 2, each at its best rate, normalization lowers test accuracy",
        "experiment": "batches_of_2",
        "variant": "momentum_0.99",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "After 51 steps, a momentum of 0.99 spoils inference with the same weights",
        "experiment": "51_steps",
        "variant": "momentum_0.99",
        "against": "normalized",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.05,
    },
    {
        "text": "Removing the layers at inference lowers test accuracy",
        "experiment": "rate_10",
        "variant": "normalized",
        "against": "normalized",
        "metric": "removed_accuracy",
        "against_metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.2,
        "against_textbook": "Batch normalization is removed at test time.",
    },
    {
        "text": "Batch statistics of test batches sorted by class lower test accuracy",
        "experiment": "rate_10",
        "variant": "normalized",
        "against": "normalized",
        "metric": "sorted_batch_accuracy",
        "against_metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.2,
    },
    {
        "text": "Batch statistics of mixed test batches predict as well as moving statistics",
        "experiment": "rate_10",
        "variant": "normalized",
        "against": "normalized",
        "metric": "mixed_batch_accuracy",
        "against_metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "The folded network gives the same logits, up to rounding",
        "experiment": "rate_10",
        "variant": "normalized",
        "against": "none",
        "metric": "folded_difference",
        "direction": "equal",
        "at_least": 1e-4,
    },
]


def measure(model, split):
    """Compare the ways to evaluate a network with batch normalization, on test data.

    `test_accuracy` uses the moving statistics. Here are the accuracies with the statistics of test
    batches of 60, in random order and sorted by class; that of the network with its normalization
    layers taken out; and the largest difference between the logits of `fold(model)` and its own.
    """
    x, y = split.test
    mixed = np.random.default_rng(0).permutation(len(y))
    by_class = np.argsort(y, kind="stable")
    removed = build_model(split.input_shape, split.classes)
    for layer, trained in zip(_dense_layers(removed), _dense_layers(model), strict=True):
        layer.kernel.assign(trained.kernel)
        if trained.use_bias:
            layer.bias.assign(trained.bias)
    return {
        "mixed_batch_accuracy": batch_statistics_accuracy(model, x[mixed], y[mixed]),
        "sorted_batch_accuracy": batch_statistics_accuracy(model, x[by_class], y[by_class]),
        "removed_accuracy": np.mean(np.argmax(removed(x), axis=-1) == y),
        "folded_difference": np.max(np.abs(fold(model)(x) - model(x))),
    }


def _dense_layers(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]


def batch_statistics_accuracy(model, x, y, batch_size=BATCH_SIZE):
    """Return the accuracy where every batch, in the order given, is normalized with itself."""
    weights = model.get_weights()
    batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    predicted = [np.argmax(model(x[batch], training=True), axis=-1) for batch in batches]
    model.set_weights(weights)  # A pass in training mode has moved the moving statistics.
    return np.mean(np.concatenate(predicted) == y)


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
