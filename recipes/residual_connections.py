"""Residual connections: let each layer add to its input, so that depth cannot block the signal.

Problem:    A deeper network does worse than a shallower one, on the training data too: it is not
            overfitting, it cannot be optimized.
Technique:  A block returns its input plus a learned correction, x + f(x), instead of f(x) alone.
            The gradient reaches every block along the sum unchanged, whatever f does to it.
Claim:      Without connections, 64 layers train worse than 4, although He's weights keep the size
            of the gradient: all samples have come to look alike. With connections, and each
            correction divided by the root of the depth, samples stay apart and 64 layers reach
            what 4 do. Without that division the signal grows by the root of 2 at every block.
Costs:      One addition a block and no weight. Input and output of a block need the same shape;
            elsewhere a linear map stands in for the connection.
Start at:   For images, two or three layers a block with batch normalization. Elsewhere, blocks that
            start small: branch_scale 1/sqrt(depth), or each block's last layer at zero.
Caveat:     Depth has to be worth something: on data this small, 4 layers are enough, and 64 with
            connections only catch up with them. With 4 layers, no clear difference is seen.
            The learning rates come from `python -m recipes.residual_connections --tune
            --learning-rates 1e-3:1e-1:5`, those with connections from the same with `--variants
            residual_4 residual_16 residual_64` and `0.01:1:5`, and that of full_size_16 with
            `--experiments full_size` and `1e-5:0.1:9`.
Reference:  He, Zhang, Ren, Sun (2015), Deep Residual Learning for Image Recognition, arXiv
            1512.03385, sections 3 and 4.2; the same (2016), Identity Mappings in Deep Residual
            Networks, arXiv 1603.05027, section 2. Zhang, Dauphin, Ma (2019), Fixup Initialization,
            arXiv 1901.09321, section 2, for the growth and for blocks that start small.
Run:        python -m recipes.residual_connections, with --sweep for blocks of full size
Measured:   Supported: With 64 layers, connections raise test accuracy (+74.0 [+62.9, +85.0] points,
              p < .001).
            Supported: 64 layers make two samples more alike without connections than with them
              (+0.266 [+0.186, +0.346], p = .004).
            Supported: Without connections, 64 layers reach a higher training loss than 4 (+1.77
              [+1.38, +2.16], p = .002).
            Supported: With 16 layers, connections raise test accuracy (+4.9 [+3.4, +6.4] points, p
              = .004).
            No clear difference: With 4 layers, connections change test accuracy by less than two
              points (+2.6 [-0.1, +5.3] points, p = 1.000).
            Supported: With connections, 64 layers reach the test accuracy of 4 (+0.3 [-1.2, +1.7]
              points, p = .045).
            Supported: 16 blocks reach a lower test accuracy at full size than divided by
              sqrt(depth) (-15.4 [-19.0, -11.7] points, p = .002).
            No clear difference: With connections, 64 layers reach a higher test accuracy than 4
              (+0.3 [-1.2, +1.7] points, p = 1.000).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import math

import keras
import numpy as np

UNITS = 64
MOMENTUM = 0.9


def build_model(
    input_shape=(64,),
    classes=10,
    depth=16,
    residual=True,
    branch_scale=None,
    learning_rate=0.01,
    seed=0,
):
    """Build and compile a classifier of `depth` blocks, each a ReLU and a layer of 64 units.

    A linear layer brings the inputs to 64 units. Each block then makes of x, `(batch, 64)`,
    `x + branch_scale * dense(relu(x))`, and without connections `dense(relu(x))`. The weights, and
    how they start, are the same.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        depth: Int >= 1, the number of blocks.
        residual: Bool, whether each block's input is added to its output.
        branch_scale: Float, the factor of each block's own part where `residual` is true. None
            takes 1 / sqrt(depth); the paper has 1 and batch normalization.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights with and without connections.

    Raises:
        ValueError: if `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"Argument `depth` must be >= 1. Received: depth={depth}")
    if branch_scale is None:
        branch_scale = 1 / math.sqrt(depth)
    seeds = iter(np.random.SeedSequence(seed).generate_state(depth + 2).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    initializer = keras.initializers.GlorotNormal(seed=next(seeds))
    x = keras.layers.Dense(UNITS, kernel_initializer=initializer)(x)
    for _ in range(depth):
        branch = keras.layers.ReLU()(x)
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        branch = keras.layers.Dense(UNITS, kernel_initializer=initializer)(branch)
        if residual:
            x = keras.layers.Add()([x, keras.layers.Rescaling(branch_scale)(branch)])
        else:
            x = branch
    x = keras.layers.ReLU()(x)
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
    """Build the model that Keras Tuner asks for, with depth, connections and learning rate.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        depth=hp.Int("depth", 1, 32, sampling="log"),
        residual=hp.Boolean("residual", default=True),
        learning_rate=hp.Float("learning_rate", 1e-4, 1.0, sampling="log"),
    )


def signals(model, x, y):
    """Return what goes into the first block and comes out of each one, and the gradients there.

    Returns:
        Two lists of `depth + 1` arrays `(samples, 64)`: the values x, and dL/dx for the loss of
        each sample.
    """
    import tensorflow as tf  # Keras has no word of its own for the gradient of an activation.

    # What a ReLU is given is what the block before it has returned.
    ends = [layer.input for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    with tf.GradientTape() as tape:
        *values, logits = keras.Model(model.input, [*ends, model.output])(x)
        loss = len(x) * model.loss(y, logits)  # Keras takes the mean over the batch.
    gradients = tape.gradient(loss, values)
    return [value.numpy() for value in values], [gradient.numpy() for gradient in gradients]


SYMPTOMS = ["at chance"]

VARIANTS = {
    "plain_4": {"depth": 4, "residual": False},
    "residual_4": {"depth": 4, "residual": True},
    "plain_16": {"depth": 16, "residual": False},
    "residual_16": {"depth": 16, "residual": True},
    "full_size_16": {"depth": 16, "residual": True, "branch_scale": 1.0},
    "plain_64": {"depth": 64, "residual": False},
    "residual_64": {"depth": 64, "residual": True},
}

EQUAL_START = [
    ["plain_4", "residual_4"],
    ["plain_16", "residual_16", "full_size_16"],
    ["plain_64", "residual_64"],
]

DIGITS = {"data": "digits", "samples": 1000, "epochs": 15, "batch_size": 64, "measure": True}

EXPERIMENTS = {
    "depth": {
        **DIGITS,
        "learning_rates": {
            "plain_4": 0.0316,
            "residual_4": 0.1,
            "plain_64": 0.00316,
            "residual_64": 0.1,
        },
    },
    "16_layers": {
        **DIGITS,
        "sweep": True,
        "learning_rates": {"plain_16": 0.01, "residual_16": 0.1, "full_size_16": 0.001},
    },
}

CLAIMS = [
    {
        "text": "With 64 layers, connections raise test accuracy",
        "experiment": "depth",
        "variant": "residual_64",
        "against": "plain_64",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.1,
        "textbook": "Residual connections make deep networks trainable.",
    },
    {
        "text": "64 layers make two samples more alike without connections than with them",
        "experiment": "depth",
        "variant": "plain_64",
        "against": "residual_64",
        "metric": "cosine_of_samples",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "Without connections, 64 layers reach a higher training loss than 4",
        "experiment": "depth",
        "variant": "plain_64",
        "against": "plain_4",
        "metric": "train_loss",
        "direction": "higher",
        "at_least": 0.1,
        "textbook": "Deeper plain networks train worse.",
    },
    {
        "text": "With 16 layers, connections raise test accuracy",
        "experiment": "16_layers",
        "variant": "residual_16",
        "against": "plain_16",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Residual connections make deep networks trainable.",
    },
    {
        "text": "With 4 layers, connections change test accuracy by less than two points",
        "experiment": "depth",
        "variant": "residual_4",
        "against": "plain_4",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "With connections, 64 layers reach the test accuracy of 4",
        "experiment": "depth",
        "variant": "residual_64",
        "against": "residual_4",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "16 blocks reach a lower test accuracy at full size than divided by sqrt(depth)",
        "experiment": "16_layers",
        "variant": "full_size_16",
        "against": "residual_16",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.02,
    },
    {
        "text": "With connections, 64 layers reach a higher test accuracy than 4",
        "experiment": "depth",
        "variant": "residual_64",
        "against": "residual_4",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "With residual connections, deeper is better.",
    },
]


def measure(model, split):
    """Measure the signal before training, for the weights as they were drawn.

    `first_to_last` is the root mean square of dL/dx where the first block begins, divided by that
    where the last one ends: 1 is neither vanishing nor exploding. `cosine_of_samples` is the mean
    cosine between what the last block returns for one sample and for another: at 1 the network
    cannot tell them apart.
    """
    start = keras.models.clone_model(model)  # The same seeds draw the same weights again.
    start.loss = model.loss
    outputs, gradients = signals(start, *split.train)
    first, *_, last = (np.sqrt(np.mean(np.square(g, dtype="float64"))) for g in gradients)
    directions = outputs[-1].astype("float64")
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    samples = len(directions)
    sum_of_all_pairs = np.square(directions.sum(axis=0)).sum() - samples
    return {
        "first_to_last": first / last,
        "cosine_of_samples": sum_of_all_pairs / (samples * (samples - 1)),
    }


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
