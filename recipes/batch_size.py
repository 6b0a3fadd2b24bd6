"""Batch size: how many samples each step of gradient descent looks at.

Problem:    Training takes too long: many cheap steps or few dear ones? Or a larger batch, made for
            speed, reaches a worse result in as many epochs.
Technique:  The mean gradient over a batch is an unbiased estimate of that over all data. Its
            variance falls as 1 / batch size: (s^2 / B) * (N - B) / (N - 1) for batches of B drawn
            without replacement from N samples, s^2 being the variance over single samples.
Claim:      Which size is fastest depends on what is counted. To 85%, single samples need the fewest
            epochs, the full batch far fewer updates than they do, and batches of 32 less time. With
            the full batch the fewest updates raise the training loss. The variance of the gradient
            follows the formula. Given as many updates, the full batch is not told apart from
            mini-batches.
Costs:      An update on a small model costs about the same for 1 and for 64 samples; memory grows
            with the batch.
Start at:   32 to 128, with a rate searched for that size; the largest batch that still cuts the
            time, if time matters. Where memory is short, `gradient_accumulation_steps` of Keras's
            optimizers averages the gradients of several batches.
Caveat:     The best rate grows with the batch size, up to a point, so that a comparison at one rate
            is a comparison of rates. Seconds depend on the machine: on a GPU larger batches gain
            more. Times here are of calls from Python, one for each update, without evaluation. The
            rates come from `python -m recipes.batch_size --tune --experiments batch_sizes
            equal_updates --learning-rates 0.00316:1:6`: for the best validation loss of these
            runs, not for the fastest way to 85%.
Reference:  Wilson, Martinez (2003), The General Inefficiency of Batch Training for Gradient Descent
            Learning, Neural Networks 16. Keskar et al. (2016), On Large-Batch Training for Deep
            Learning, arXiv:1609.04836. Masters, Luschi (2018), Revisiting Small Batch Training for
            Deep Neural Networks, arXiv:1804.07612. Shallue et al. (2018), Measuring the Effects of
            Data Parallelism on Neural Network Training, arXiv:1811.03600.
Run:        python -m recipes.batch_size, with --sweep for as many updates of the full batch
Measured:   Supported: To 85% validation accuracy, single samples need fewer epochs than batches of
              32 (-0.822 [-1.33, -0.316], p = .032).
            Supported: To 85%, the full batch needs more epochs than batches of 32 (+17.7 [+12.2,
              +23.3], p = .004).
            Supported: To 85%, the full batch needs fewer updates than single samples: by 100 or
              more (-519 [-611, -428], p < .001).
            Supported: To 85%, single samples take more time than batches of 32 (+289 [+212, +366]
              ms, p = .002).
            No clear difference: More of the first 100 updates raise the training loss with single
              samples than with batches of 32: 20 or more (-9.6 [-17.2, -1.97], p = .050).
            Supported: Fewer do with the full batch (-28.6 [-33.8, -23.4], p < .001).
            Supported: The gradient's variance over batches of 32 is that of the formula, by 20%
              (-0.00963 [-0.0478, +0.0286], p < .001).
            Supported: So is that over batches of 8 (-0.00849 [-0.0261, +0.00916], p < .001).
            No clear difference: With 320 updates each, the full batch gives the test accuracy of
              batches of 32 (-0.4 [-1.5, +0.8] points, p = .098).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import time

import keras
import numpy as np
import tensorflow as tf

HIDDEN_UNITS = 64
HIDDEN_LAYERS = 2
SAMPLES = 512
TARGET_ACCURACY = 0.85  # On validation data: every size gets there.
MOST_UPDATES = 2000
FIRST_UPDATES = 100  # Those that are looked at for rises of the loss.
NOISE_BATCHES = 200  # A relative error of about 10% for a variance.


def build_model(input_shape=(64,), classes=10, batches_per_update=1, learning_rate=0.1, seed=0):
    """Build and compile a ReLU network for SGD. The size of the batch is an argument of `fit`.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        batches_per_update: Int, the number of batches whose gradients are averaged for an update:
            a batch that many times as large, in the memory of one. 1 averages nothing.
        learning_rate: Float or schedule, for SGD.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(
            learning_rate,
            gradient_accumulation_steps=batches_per_update if batches_per_update > 1 else None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the batch size and the learning rate.

    The tuner trains in batches of the size that `search` is given; the gradients of several
    batches are averaged here into one of a larger batch.
    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        batches_per_update=hp.Choice("batches_per_update", [1, 2, 4, 8, 16]),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def gradient_of(model, x, y):
    """Return the gradient of the mean loss over a batch, flat, shape `(parameters,)`."""
    weights = [weight.value for weight in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = model.loss(y, model(x, training=True))
    return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, weights)], axis=0)


def variance_of_batches(samples, batch_size, sample_variance):
    """Return the variance of the mean over `batch_size` of `samples`, without replacement.

    Args:
        samples: Int N >= 2.
        batch_size: Int B, from 1 to N. At N it is 0: there is one such batch.
        sample_variance: Float s^2, the variance over the samples, divided by N.
    """
    if samples < 2 or not 1 <= batch_size <= samples:
        raise ValueError(
            "Arguments `samples` and `batch_size` must hold 2 <= samples and "
            f"1 <= batch_size <= samples. Received: samples={samples}, batch_size={batch_size}"
        )
    return sample_variance / batch_size * (samples - batch_size) / (samples - 1)


SYMPTOMS = ["slow"]

VARIANTS = {
    "batch_32": {"batch_size": 32, "epochs": 20},
    "single": {"batch_size": 1, "epochs": 4},
    "batch_8": {"batch_size": 8, "epochs": 10},
    "batch_128": {"batch_size": 128, "epochs": 40},
    "full": {"batch_size": SAMPLES, "epochs": 160},
    "full_320": {"batch_size": SAMPLES, "epochs": 320},
}

EQUAL_START = [list(VARIANTS)]

# Each variant has epochs of its own, so that each comes about as far as it will.
DIGITS = {"data": "digits", "samples": SAMPLES, "epochs": 20, "batch_size": 32}
EXPERIMENTS = {
    "batch_sizes": {
        **DIGITS,
        "measure": True,
        "learning_rates": {
            "batch_32": 0.316,
            "single": 0.00999,
            "batch_8": 0.316,
            "batch_128": 0.316,
            "full": 0.316,
        },
    },
    "equal_updates": {  # 320 updates each.
        **DIGITS,
        "sweep": True,
        "learning_rates": {"batch_32": 0.316, "full_320": 0.316},
    },
}

CLAIMS = [
    {
        "text": "To 85% validation accuracy, single samples need fewer epochs than batches of 32",
        "experiment": "batch_sizes",
        "variant": "single",
        "against": "batch_32",
        "metric": "epochs_to_target",
        "direction": "lower",
        "at_least": 0.1,
        "textbook": "Speed: full batch < mini-batch < single sample.",
    },
    {
        "text": "To 85%, the full batch needs more epochs than batches of 32",
        "experiment": "batch_sizes",
        "variant": "full",
        "against": "batch_32",
        "metric": "epochs_to_target",
        "direction": "higher",
        "at_least": 1.0,
        "textbook": "Speed: full batch < mini-batch < single sample.",
    },
    {
        "text": "To 85%, the full batch needs fewer updates than single samples: by 100 or more",
        "experiment": "batch_sizes",
        "variant": "full",
        "against": "single",
        "metric": "updates_to_target",
        "direction": "lower",
        "at_least": 100.0,
        "against_textbook": "Speed: full batch < mini-batch < single sample.",
    },
    {
        "text": "To 85%, single samples take more time than batches of 32",
        "experiment": "batch_sizes",
        "variant": "single",
        "against": "batch_32",
        "metric": "to_target_milliseconds",
        "direction": "higher",
        "at_least": 0.0,
        "against_textbook": "Speed: full batch < mini-batch < single sample.",
    },
    {
        "text": "More of the first 100 updates raise the training loss with single samples than "
        "with batches of 32: 20 or more",
        "experiment": "batch_sizes",
        "variant": "single",
        "against": "batch_32",
        "metric": "rises_of_loss",
        "direction": "higher",
        "at_least": 20.0,
        "textbook": "Stability: full batch > mini-batch > single sample.",
    },
    {
        "text": "Fewer do with the full batch",
        "experiment": "batch_sizes",
        "variant": "full",
        "against": "batch_32",
        "metric": "rises_of_loss",
        "direction": "lower",
        "at_least": 1.0,
        "textbook": "Stability: full batch > mini-batch > single sample.",
    },
    {
        "text": "The gradient's variance over batches of 32 is that of the formula, by 20%",
        "experiment": "batch_sizes",
        "variant": "batch_32",
        "against": "batch_32",
        "metric": "gradient_variance",
        "against_metric": "gradient_variance_by_formula",
        "direction": "equal",
        "at_least": 0.2,
    },
    {
        "text": "So is that over batches of 8",
        "experiment": "batch_sizes",
        "variant": "batch_8",
        "against": "batch_8",
        "metric": "gradient_variance",
        "against_metric": "gradient_variance_by_formula",
        "direction": "equal",
        "at_least": 0.2,
    },
    {
        "text": "With 320 updates each, the full batch gives the test accuracy of batches of 32",
        "experiment": "equal_updates",
        "variant": "full_320",
        "against": "batch_32",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.01,
    },
]


def measure(model, split):
    """Train again from the start, look at every update, and measure the gradient's noise.

    Returns:
        Dictionary: `epochs_to_target`, `updates_to_target` and `to_target_milliseconds` until the
        validation accuracy is 85% (or after 2,000 updates, if it never is); `rises_of_loss`, how
        many of the first 100 updates raise the loss over all training data; `gradient_variance`
        at the initial weights, over the formula's for this size, and
        `gradient_variance_by_formula`, 1 for comparison: both 0 for the full batch, which has no
        noise.
    """
    batch_size = -(-len(split.train.x) // model.steps_per_execution)
    rate = float(model.optimizer.learning_rate)
    fresh = build_model(split.input_shape, split.classes, learning_rate=rate, seed=split.seed)
    noise = {"gradient_variance": 0.0, "gradient_variance_by_formula": 0.0}
    if batch_size < len(split.train.x):
        noise = {
            "gradient_variance": measured_variance(fresh, split, batch_size),
            "gradient_variance_by_formula": 1.0,
        }
    return {**race(fresh, split, batch_size), **noise}


def race(model, split, batch_size):
    """Train update by update until the validation accuracy is on target; return what it took."""
    x, y = (tf.constant(array) for array in split.train)
    validation_x, validation_y = split.validation
    generator = np.random.default_rng(split.seed)
    weights = model.trainable_variables
    model.optimizer.build(weights)

    @tf.function(reduce_retracing=True)
    def update(indices):
        with tf.GradientTape() as tape:
            loss = model.loss(tf.gather(y, indices), model(tf.gather(x, indices), training=True))
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        model.optimizer.apply(gradients, weights)

    @tf.function
    def evaluate():
        hits = tf.argmax(model(validation_x), axis=-1, output_type=tf.int32) == validation_y
        return model.loss(y, model(x)), tf.reduce_mean(tf.cast(hits, "float32"))

    start = model.get_weights()
    update(tf.zeros((batch_size,), "int64"))  # Traced before the clock starts.
    model.set_weights(start)
    losses, reached, seconds = [float(evaluate()[0])], None, 0.0
    order = np.zeros(0, "int64")
    while len(losses) <= MOST_UPDATES and (reached is None or len(losses) <= FIRST_UPDATES):
        if len(order) < batch_size:
            order = np.concatenate([order, generator.permutation(len(x))])
        batch, order = tf.constant(order[:batch_size]), order[batch_size:]
        began = time.perf_counter()
        update(batch)
        if reached is None:
            seconds += time.perf_counter() - began
        loss, accuracy = evaluate()
        losses.append(float(loss))
        if reached is None and accuracy >= TARGET_ACCURACY:
            reached = len(losses) - 1
    updates = reached or MOST_UPDATES
    return {
        "epochs_to_target": updates * batch_size / len(x),
        "updates_to_target": updates,
        "to_target_milliseconds": 1000 * seconds,
        "rises_of_loss": np.count_nonzero(np.diff(losses[: FIRST_UPDATES + 1]) > 0),
    }


def measured_variance(model, split, batch_size):
    """Return the variance of the gradient over random batches, as a multiple of the formula's.

    The formula's comes from the gradients of all samples, one at a time.
    """
    x, y = (tf.constant(array) for array in split.train)
    samples = len(x)

    @tf.function(reduce_retracing=True)
    def squared_distance(indices, mean):
        gradient = gradient_of(model, tf.gather(x, indices), tf.gather(y, indices))
        return tf.reduce_sum((gradient - mean) ** 2)

    mean = tf.function(gradient_of)(model, x, y)
    of_samples = [float(squared_distance(tf.constant([i]), mean)) for i in range(samples)]
    generator = np.random.default_rng(split.seed)
    of_batches = [
        float(squared_distance(tf.constant(generator.permutation(samples)[:batch_size]), mean))
        for _ in range(NOISE_BATCHES)
    ]
    expected = variance_of_batches(samples, batch_size, np.mean(of_samples))
    return np.mean(of_batches) / expected


def illustrate(summary):
    """Draw the validation accuracy of the same runs over epochs, updates and seconds."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import variant_colors

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    name, experiment = next(iter(summary["experiments"].items()))
    colors = variant_colors(summary["experiments"])[name]
    for variant, entry in experiment["variants"].items():
        accuracy = [100 * value for value in entry["curves"]["validation_accuracy"]["mean"]]
        epochs = np.arange(len(accuracy))
        batch_size = min(entry["arguments"]["batch_size"], experiment["samples"])
        updates = epochs * -(-experiment["samples"] // batch_size)
        seconds = epochs * summary["seconds"][name][variant] / epochs[-1]
        for axes, values in zip(panels, (epochs, updates, seconds), strict=True):
            axes.plot(values[1:], accuracy[1:], ".-", color=colors[variant], label=variant)
    for axes, label in zip(panels, ("epochs", "updates", "seconds"), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel(label)
    panels[0].set_ylabel("validation accuracy (%)")
    panels[0].legend()
    panels[2].set_title("the first epoch's tracing and all evaluations included", fontsize=9)
    figure.suptitle("The same runs, counted in three ways", fontsize=12)
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
