"""Activations: choose a nonlinearity whose derivative survives the depth.

Problem:    A network of many layers stays at chance while a shallow one learns: the gradient of
            the first layers is smaller than that of the last ones by orders of magnitude.
Technique:  Backpropagation multiplies by the activation's derivative at every layer. The sigmoid's
            is at most 1/4; tanh's is 1 at zero; ReLU's is 1 for every positive input, and weights
            of variance 2/fan_in make up for the half that it cuts off.
Claim:      Through 8 layers the sigmoid keeps less than a third of dL/dz a layer and stays at
            chance, where tanh and ReLU learn; through 2 layers it learns, somewhat less than ReLU.
            From Glorot's weights ReLU's signal falls by .7 a layer, from He's it does not; through
            8 layers that makes no clear difference yet. Units that start dead stay dead with ReLU
            and recover with softplus. Taking 1/2 off the sigmoid, and nothing else, speeds it up.
Costs:      Next to the matrix products an activation is cheap: what ReLU saves of a whole step is
            below, in milliseconds of this machine, which differ from run to run.
Start at:   ReLU with `he_normal`. GELU or SiLU where the architecture you copy has them.
Caveat:     ReLU's units can die: dL/dz is exactly 0 for every sample, for ever. Small learning
            rates and biases at zero keep them alive. A leak leaves them a gradient, but from a bias
            of -3 too little to come back in 20 epochs. Softplus's gradient is never exactly zero,
            but it falls like exp(z): from a bias of -3 it comes back, from -20 not.
            Keras's `LeakyReLU` has slope .3 and its `PReLU` starts at 0; the papers have .01, .25.
            The learning rates come from `python -m recipes.activations --tune --learning-rates
            1e-3:0.3:5 --experiments deep deep_others deader_start`, those of shallow and dead_start
            from the same with `0.01:10:7`; the cost of a step has none.
Reference:  Glorot and Bengio (2010), Understanding the Difficulty of Training Deep Feedforward
            Neural Networks, AISTATS, section 3. Glorot, Bordes, Bengio (2011), Deep Sparse
            Rectifier Neural Networks, AISTATS, section 3. He, Zhang, Ren, Sun (2015), Delving Deep
            into Rectifiers, arXiv 1502.01852, section 2. LeCun, Bottou, Orr, Mueller (1998),
            Efficient BackProp, section 4.4.
Run:        python -m recipes.activations, with --sweep for PReLU, ELU, GELU, SiLU, and bias -20
Measured:   Supported: 8 layers reach a higher test accuracy with ReLU than with the sigmoid (+85.5
              [+83.9, +87.1] points, p < .001).
            Supported: Through 8 layers, the sigmoid keeps less of dL/dz a layer than ReLU does
              (-0.763 [-0.785, -0.742], p < .001).
            Supported: Through 8 layers, tanh keeps more of dL/dz a layer than the sigmoid (+0.682
              [+0.665, +0.698], p < .001).
            Supported: ReLU with He's weights keeps more of dL/dz a layer than with Glorot's (+0.295
              [+0.288, +0.303], p < .001).
            Supported: 8 layers reach a higher test accuracy with tanh than with the sigmoid (+85.6
              [+84.5, +86.8] points, p < .001).
            No clear difference: 8 layers of ReLU reach a higher test accuracy with He's weights
              than Glorot's (+1.3 [+0.3, +2.4] points, p = .076).
            Contradicted: 2 layers reach the same test accuracy with the sigmoid as with ReLU (-3.0
              [-5.0, -1.0] points).
            Supported: In 10 epochs, the sigmoid less 1/2 reaches a lower training loss than the
              sigmoid (-0.0999 [-0.119, -0.0809], p < .001).
            Supported: From biases of -3, softplus has a smaller share of dead units than ReLU (-1
              in every run).
            Supported: From biases of -3, softplus reaches a higher test accuracy than ReLU (+80.4
              [+78.4, +82.3] points, p < .001).
            No clear difference: From biases of -3, leaky ReLU reaches a higher test accuracy than
              ReLU (0.0 points in every run).
            Supported: From biases of -20, softplus reaches no higher test accuracy than ReLU (0.0
              points in every run).
            Supported: A training step takes longer with the sigmoid than with ReLU (+0.0922
              [+0.0715, +0.113] ms, p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import time

import keras
import numpy as np

MOMENTUM = 0.9
LEAK = 0.01  # Maas, Hannun, Ng (2013); Keras's own default is 0.3.
PRELU_START = 0.25  # He et al. (2015), section 2.1; Keras's own default is 0.
# Variance of the weights times fan_in. It is 1 for what has slope 1 in the middle, as in Glorot's
# for layers of equal width, 2/(1 + slope^2) for rectifiers, and He's 2 for their smooth relatives.
WEIGHT_SCALES = {
    "sigmoid": 1.0,
    "centred_sigmoid": 1.0,
    "tanh": 1.0,
    "relu": 2.0,
    "leaky_relu": 2 / (1 + LEAK**2),
    "prelu": 2 / (1 + PRELU_START**2),
    "softplus": 2.0,
    "elu": 2.0,
    "gelu": 2.0,
    "silu": 2.0,
}


def make_activation(name):
    """Return a new Keras layer for one of the names in `WEIGHT_SCALES`."""
    if name == "leaky_relu":
        return keras.layers.LeakyReLU(negative_slope=LEAK)
    if name == "prelu":  # One slope for each unit, learned with the weights.
        return keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(PRELU_START))
    if name == "centred_sigmoid":
        return keras.Sequential(
            [keras.layers.Activation("sigmoid"), keras.layers.Rescaling(1.0, offset=-0.5)]
        )
    if name in WEIGHT_SCALES:
        return keras.layers.Activation(name)
    raise ValueError(
        f"Argument `activation` must be one of {', '.join(WEIGHT_SCALES)}. "
        f"Received: activation={name!r}"
    )


def build_model(
    input_shape=(64,),
    classes=10,
    activation="relu",
    weight_scale=None,
    first_bias=0.0,
    hidden_layers=8,
    units=64,
    learning_rate=0.01,
    seed=0,
):
    """Build and compile a plain network with one activation throughout.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        activation: String, a key of `WEIGHT_SCALES`.
        weight_scale: Float > 0, the variance of the hidden weights times fan_in. None takes that of
            `WEIGHT_SCALES`.
        first_bias: Float, the hidden biases before training. Neutral is 0; far below, units start
            where ReLU is flat.
        hidden_layers: Int, the number of hidden layers.
        units: Int, the units of each hidden layer.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal weights up to their scale.

    Raises:
        ValueError: if `activation` is not in `WEIGHT_SCALES`, or `weight_scale` not above 0.
    """
    if weight_scale is not None and not weight_scale > 0:
        raise ValueError(
            f"Argument `weight_scale` must be > 0. Received: weight_scale={weight_scale}"
        )
    seeds = iter(np.random.SeedSequence(seed).generate_state(hidden_layers + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(hidden_layers):
        activate = make_activation(activation)
        kernel_initializer = keras.initializers.VarianceScaling(
            weight_scale or WEIGHT_SCALES[activation], "fan_in", seed=next(seeds)
        )
        x = keras.layers.Dense(
            units,
            kernel_initializer=kernel_initializer,
            bias_initializer=keras.initializers.Constant(first_bias),
        )(x)
        x = activate(x)
    kernel_initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=kernel_initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with activation, depth and learning rate.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        activation=hp.Choice("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"]),
        hidden_layers=hp.Int("hidden_layers", 1, 8),
        learning_rate=hp.Float("learning_rate", 1e-4, 1.0, sampling="log"),
    )


def signal_gradients(model, x, y):
    """Return dL/dz at the pre-activations of each hidden layer, for the loss of each sample.

    Returns:
        List of arrays `(samples, units)`, first layer first.
    """
    import tensorflow as tf  # Keras has no word of its own for the gradient of an activation.

    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    with tf.GradientTape() as tape:
        *hidden, logits = keras.Model(model.input, [layer.output for layer in dense])(x)
        loss = len(x) * model.loss(y, logits)  # Keras takes the mean over the batch.
    return [gradient.numpy() for gradient in tape.gradient(loss, hidden)]


SYMPTOMS = ["at chance"]

VARIANTS = {
    "sigmoid": {"activation": "sigmoid"},
    "centred_sigmoid": {"activation": "centred_sigmoid"},
    "tanh": {"activation": "tanh"},
    "relu": {"activation": "relu"},
    "relu_glorot": {"activation": "relu", "weight_scale": 1.0},
    "softplus": {"activation": "softplus"},
    "leaky_relu": {"activation": "leaky_relu"},
    "prelu": {"activation": "prelu"},
    "elu": {"activation": "elu"},
    "gelu": {"activation": "gelu"},
    "silu": {"activation": "silu"},
}

EQUAL_START = [["sigmoid", "centred_sigmoid", "tanh", "relu_glorot"]]

DIGITS = {"data": "digits", "samples": 1000, "batch_size": 64, "measure": True}

EXPERIMENTS = {
    "deep": {
        **DIGITS,
        "epochs": 20,
        "learning_rates": {
            "sigmoid": 0.001,
            "tanh": 0.0173,
            "relu": 0.0173,
            "relu_glorot": 0.0173,
        },
    },
    "shallow": {
        **DIGITS,
        "epochs": 10,
        "arguments": {"hidden_layers": 2},
        "learning_rates": {"sigmoid": 0.316, "centred_sigmoid": 1.0, "relu": 0.1},
    },
    "dead_start": {
        **DIGITS,
        "epochs": 20,
        "arguments": {"hidden_layers": 2, "first_bias": -3.0},
        "learning_rates": {"relu": 0.01, "leaky_relu": 0.01, "softplus": 0.316},
    },
    "step_cost": {
        **DIGITS,
        "epochs": 1,
        "measure": "measure_step",
        "learning_rates": {"relu": 0.01, "sigmoid": 0.01, "tanh": 0.01},
    },
    "deep_others": {
        **DIGITS,
        "epochs": 20,
        "sweep": True,
        "learning_rates": {
            "relu": 0.0173,
            "softplus": 0.0173,
            "leaky_relu": 0.0173,
            "prelu": 0.0173,
            "elu": 0.0173,
            "gelu": 0.0721,
            "silu": 0.0173,
        },
    },
    "deader_start": {
        **DIGITS,
        "epochs": 20,
        "arguments": {"hidden_layers": 2, "first_bias": -20.0},
        "sweep": True,
        "learning_rates": {"relu": 0.00416, "leaky_relu": 0.00416, "softplus": 0.00416},
    },
}

CLAIMS = [
    {
        "text": "8 layers reach a higher test accuracy with ReLU than with the sigmoid",
        "experiment": "deep",
        "variant": "relu",
        "against": "sigmoid",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.2,
        "textbook": "ReLU lets deep networks learn where the sigmoid does not.",
    },
    {
        "text": "Through 8 layers, the sigmoid keeps less of dL/dz a layer than ReLU does",
        "experiment": "deep",
        "variant": "sigmoid",
        "against": "relu",
        "metric": "backward_ratio",
        "direction": "lower",
        "at_least": 0.5,
        "textbook": "The sigmoid's derivative is at most 0.25; it vanishes with depth.",
    },
    {
        "text": "Through 8 layers, tanh keeps more of dL/dz a layer than the sigmoid",
        "experiment": "deep",
        "variant": "tanh",
        "against": "sigmoid",
        "metric": "backward_ratio",
        "direction": "higher",
        "at_least": 0.5,
        "textbook": "The gradient vanishes more slowly through tanh than through the sigmoid.",
    },
    {
        "text": "ReLU with He's weights keeps more of dL/dz a layer than with Glorot's",
        "experiment": "deep",
        "variant": "relu",
        "against": "relu_glorot",
        "metric": "backward_ratio",
        "direction": "higher",
        "at_least": 0.2,
        "textbook": "ReLU needs the right initialization.",
    },
    {
        "text": "8 layers reach a higher test accuracy with tanh than with the sigmoid",
        "experiment": "deep",
        "variant": "tanh",
        "against": "sigmoid",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.2,
        "textbook": "The sigmoid is unsuitable for hidden layers.",
    },
    {
        "text": "8 layers of ReLU reach a higher test accuracy with He's weights than Glorot's",
        "experiment": "deep",
        "variant": "relu",
        "against": "relu_glorot",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "ReLU needs the right initialization.",
    },
    {
        "text": "2 layers reach the same test accuracy with the sigmoid as with ReLU",
        "experiment": "shallow",
        "variant": "sigmoid",
        "against": "relu",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.03,
        "against_textbook": "The sigmoid is unsuitable for hidden layers.",
    },
    {
        "text": "In 10 epochs, the sigmoid less 1/2 reaches a lower training loss than the sigmoid",
        "experiment": "shallow",
        "variant": "centred_sigmoid",
        "against": "sigmoid",
        "metric": "train_loss",
        "direction": "lower",
        "at_least": 0.01,
        "textbook": "Activations that are not centred at zero slow down learning.",
    },
    {
        "text": "From biases of -3, softplus has a smaller share of dead units than ReLU",
        "experiment": "dead_start",
        "variant": "softplus",
        "against": "relu",
        "metric": "dead_units",
        "direction": "lower",
        "at_least": 0.5,
        "textbook": "Softplus has no dead units.",
    },
    {
        "text": "From biases of -3, softplus reaches a higher test accuracy than ReLU",
        "experiment": "dead_start",
        "variant": "softplus",
        "against": "relu",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.2,
    },
    {
        "text": "From biases of -3, leaky ReLU reaches a higher test accuracy than ReLU",
        "experiment": "dead_start",
        "variant": "leaky_relu",
        "against": "relu",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.02,
    },
    {
        "text": "From biases of -20, softplus reaches no higher test accuracy than ReLU",
        "experiment": "deader_start",
        "variant": "softplus",
        "against": "relu",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.03,
        "against_textbook": "Softplus has no dead units.",
    },
    {
        "text": "A training step takes longer with the sigmoid than with ReLU",
        "experiment": "step_cost",
        "variant": "sigmoid",
        "against": "sigmoid",
        "metric": "step_milliseconds",
        "against_metric": "relu_step_milliseconds",
        "direction": "higher",
        "at_least": 0.0,
        "textbook": "ReLU is cheaper than the sigmoid.",
    },
]


def measure(model, split):
    """Measure the signal before training, and the units that are dead after it.

    `backward_ratio` is the factor by which the root mean square of dL/dz grows from a hidden layer
    to the one before it (geometric mean), with the weights as they were drawn; nan stands for no
    signal at all. `dead_units` is the share of hidden units whose dL/dz is exactly 0 for every
    training sample: no step will move them.
    """
    start = keras.models.clone_model(model)  # The same seeds draw the same weights again.
    start.loss = model.loss
    sizes = [
        np.sqrt(np.mean(np.square(gradient, dtype="float64")))
        for gradient in signal_gradients(start, *split.train)
    ]
    with np.errstate(invalid="ignore"):
        backward_ratio = (sizes[0] / sizes[-1]) ** (1 / max(1, len(sizes) - 1))
    alive = [gradient.any(axis=0) for gradient in signal_gradients(model, *split.train)]
    return {"backward_ratio": backward_ratio, "dead_units": 1 - np.mean(alive)}


def measure_step(model, split, batch_size=256, blocks=20):
    """Time a whole training step of this network, and of the same one with ReLU, in turn.

    The shortest of several blocks of steps counts: other programs can only make a block longer.
    """
    import tensorflow as tf

    hidden = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][:-1]
    shape = {"hidden_layers": len(hidden), "units": hidden[0].units}
    same = keras.models.clone_model(model)
    same.compile_from_config(model.get_compile_config())
    with_relu = build_model(split.input_shape, split.classes, "relu", **shape)
    batch = tuple(part[:batch_size] for part in split.train)
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    steps_of_a_block = 10
    milliseconds = []
    for timed in (same, with_relu):
        timed.optimizer.build(timed.trainable_variables)
        timed.steps_per_execution = steps_of_a_block
        timed.make_train_function()
        timed.train_function(batches)  # Traces.
        milliseconds.append([])
    for _ in range(blocks):
        for timed, durations in zip((same, with_relu), milliseconds, strict=True):
            start = time.perf_counter()
            timed.train_function(batches)
            durations.append(1000 * (time.perf_counter() - start) / steps_of_a_block)
    step, relu_step = map(min, milliseconds)
    return {"step_milliseconds": step, "relu_step_milliseconds": relu_step}


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
