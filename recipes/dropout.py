"""Dropout: silence random units while training, so that no unit can count on another.

Problem:    Training accuracy goes on rising while validation accuracy falls: the network memorizes.
Technique:  Each training step sets a random fraction of a layer's outputs to zero and divides the
            rest by the fraction kept. Inference uses every unit, with nothing to rescale.
Claim:      With 30% wrong labels, dropout raises the test accuracy of a network that is wide enough
            to learn them by heart: by five points and more where both share the learning rate that
            suits dropout. Where each has its own, little is left to tell apart, because a small
            rate is a regularizer too. On clean data the number of updates decides: dropout needs
            more of them, and costs accuracy where they are few.
Costs:      Slower convergence: more updates are needed, and a training loss that stays high is not
            a fault, since it is measured with units missing. A step costs the random numbers.
Start at:   hidden_rate 0.5 in wide hidden layers, input_rate 0.2 or 0; then try 0.3. Keras's
            `rate` is the fraction dropped; the paper's p is the fraction kept.
Caveat:     No remedy for a network that is too small or trained too briefly. An average over many
            random masks predicts no better than the one pass that Keras makes.
            The learning rates come from `python -m recipes.dropout --tune --sweep
            --learning-rates 0.001:0.316:6`. Without dropout the best rate is ten times smaller
            on wrong labels, and three times larger on clean ones: a shared rate misleads.
Reference:  Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov (2014), Dropout: A Simple Way
            to Prevent Neural Networks from Overfitting, JMLR 15, sections 4, 7.3 to 7.5 and A.
Run:        python -m recipes.dropout, with --sweep for clean data, more rates, longer training
Measured:   No clear difference: With 30% wrong labels, each at its own learning rate, hidden
              dropout raises test accuracy (+2.2 [-0.3, +4.6] points, p = .176).
            No clear difference: Dropout of inputs and hidden units does so too (+1.4 [-0.1, +2.9]
              points, p = .176).
            Supported: At one learning rate for both, hidden dropout raises it by five points or
              more (+5.3 [+4.0, +6.7] points, p = .002).
            No clear difference: On 1,000 clean samples, dropout raises test accuracy (-1.0 [-3.7,
              +1.7] points, p = .381).
            Supported: On 4,000 clean samples and as many updates, dropout lowers test accuracy
              (-19.4 [-22.4, -16.4] points, p < .001).
            Supported: On 4,000 clean samples and four times the updates, a rate of 0.3 raises it
              (+4.5 [+2.0, +6.9] points, p = .035).
            Supported: One random mask predicts worse than all units together (-9.8 [-11.2, -8.4]
              points, p < .001).
            Supported: The average over 50 masks predicts as well as all units together (+0.2 [-0.5,
              +0.8] points, p = .036).
            Supported: Inference equals the same weights without dropout layers, to the last bit (0
              in every run).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import keras
import numpy as np

HIDDEN_UNITS = 128  # Wide for 1,000 samples: 25 weights for each, enough to memorize them.
HIDDEN_LAYERS = 2
MOMENTUM = 0.9  # The paper trains with 0.95 to 0.99 (appendix A.2); 0.9 is the common choice.
MONTE_CARLO_PASSES = 50  # In the paper, about as many as it takes to match one plain pass (7.5).


def build_model(
    input_shape=(64,), classes=10, input_rate=0.0, hidden_rate=0.0, learning_rate=0.1, seed=0
):
    """Build and compile a wide ReLU network with dropout before and after its hidden layers.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        input_rate: Float in [0, 1), fraction of the inputs dropped. 0 leaves them alone.
        hidden_rate: Float in [0, 1), fraction of each hidden layer dropped. 0 leaves them alone.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights at every dropout rate, because each layer
            has a seed of its own; with the global seed alone, dropout would shift the later ones.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(2 * HIDDEN_LAYERS + 2).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dropout(input_rate, seed=next(seeds))(x)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
        x = keras.layers.Dropout(hidden_rate, seed=next(seeds))(x)
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
    """Build the model that Keras Tuner asks for, with both dropout rates and the learning rate.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        input_rate=hp.Float("input_rate", 0.0, 0.4, step=0.1),
        hidden_rate=hp.Float("hidden_rate", 0.0, 0.8, step=0.1),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def predict_with_masks(model, x, passes=MONTE_CARLO_PASSES):
    """Return class probabilities under `passes` random masks, shape `(passes, samples, classes)`.

    Their mean over the first axis is Monte Carlo dropout: the average of an ensemble of thinned
    networks that share their weights.
    """
    logits = model(
        np.repeat(x[np.newaxis], passes, axis=0).reshape(-1, *x.shape[1:]), training=True
    )
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits)).reshape(passes, len(x), -1)


VARIANTS = {
    "none": {"input_rate": 0.0, "hidden_rate": 0.0},
    "hidden": {"input_rate": 0.0, "hidden_rate": 0.5},
    "input_and_hidden": {"input_rate": 0.2, "hidden_rate": 0.5},
    "hidden_0.1": {"input_rate": 0.0, "hidden_rate": 0.1},
    "hidden_0.3": {"input_rate": 0.0, "hidden_rate": 0.3},
    "hidden_0.7": {"input_rate": 0.0, "hidden_rate": 0.7},
}

EQUAL_START = [list(VARIANTS)]

SYMPTOMS = ["overfits"]

EXPERIMENTS = {
    "noisy_digits": {
        "data": "digits",
        "samples": 1000,
        "label_noise": 0.3,
        "epochs": 30,
        "batch_size": 64,
        "measure": True,
        "learning_rates": {"none": 0.00316, "hidden": 0.0316, "input_and_hidden": 0.0316},
    },
    "one_rate_for_all": {  # The comparison to beware of: hidden dropout's best rate for both.
        "data": "digits",
        "samples": 1000,
        "label_noise": 0.3,
        "epochs": 30,
        "batch_size": 64,
        "measure": True,
        "learning_rates": {"none": 0.0316, "hidden": 0.0316},
    },
    "mnist1d_1000": {  # 960 updates.
        "data": "mnist1d",
        "samples": 1000,
        "epochs": 60,
        "batch_size": 64,
        "sweep": True,
        "learning_rates": {"none": 0.0999, "hidden": 0.0316},
    },
    "mnist1d_4000": {  # 945 updates.
        "data": "mnist1d",
        "samples": 4000,
        "epochs": 15,
        "batch_size": 64,
        "sweep": True,
        "learning_rates": {"none": 0.0999, "hidden": 0.0316},
    },
    "mnist1d_4000_long": {  # 3,780 updates.
        "data": "mnist1d",
        "samples": 4000,
        "epochs": 60,
        "batch_size": 64,
        "sweep": True,
        "learning_rates": {"none": 0.0316, "hidden_0.3": 0.0316, "hidden": 0.0316},
    },
    "rate_sweep": {
        "data": "digits",
        "samples": 1000,
        "label_noise": 0.3,
        "epochs": 30,
        "batch_size": 64,
        "measure": True,
        "sweep": True,
        "learning_rates": {
            "none": 0.00316,
            "hidden_0.1": 0.01,
            "hidden_0.3": 0.01,
            "hidden": 0.0316,
            "hidden_0.7": 0.0316,
        },
    },
}

CLAIMS = [
    {
        "text": "With 30% wrong labels, each at its own learning rate, hidden dropout raises "
        "test accuracy",
        "experiment": "noisy_digits",
        "variant": "hidden",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Dropout improves generalization.",
    },
    {
        "text": "Dropout of inputs and hidden units does so too",
        "experiment": "noisy_digits",
        "variant": "input_and_hidden",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Drop half of the hidden units and a fifth of the inputs.",
    },
    {
        "text": "At one learning rate for both, hidden dropout raises it by five points or more",
        "experiment": "one_rate_for_all",
        "variant": "hidden",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
    },
    {
        "text": "On 1,000 clean samples, dropout raises test accuracy",
        "experiment": "mnist1d_1000",
        "variant": "hidden",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Dropout improves generalization.",
    },
    {
        "text": "On 4,000 clean samples and as many updates, dropout lowers test accuracy",
        "experiment": "mnist1d_4000",
        "variant": "hidden",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
        "against_textbook": "Dropout improves generalization.",
    },
    {
        "text": "On 4,000 clean samples and four times the updates, a rate of 0.3 raises it",
        "experiment": "mnist1d_4000_long",
        "variant": "hidden_0.3",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Dropout improves generalization.",
    },
    {
        "text": "One random mask predicts worse than all units together",
        "experiment": "noisy_digits",
        "variant": "hidden",
        "against": "hidden",
        "metric": "one_mask_accuracy",
        "against_metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.02,
    },
    {
        "text": "The average over 50 masks predicts as well as all units together",
        "experiment": "noisy_digits",
        "variant": "hidden",
        "against": "hidden",
        "metric": "monte_carlo_accuracy",
        "against_metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.01,
        "textbook": "With all units, dropout predicts like the average of its masked networks.",
    },
    {
        "text": "Inference equals the same weights without dropout layers, to the last bit",
        "experiment": "noisy_digits",
        "variant": "hidden",
        "against": "none",
        "metric": "inference_difference",
        "direction": "equal",
        "at_least": 0.0,
        "against_textbook": "At test time the weights have to be multiplied by the rate.",
    },
]


def measure(model, split):
    """Compare the ways to predict with a network that was trained with dropout, on test data.

    Keras's own pass uses all units ("weight scaling" in the paper). `inference_difference` is the
    largest difference between its logits and those of a network without dropout that was given
    the same weights: 0 means that nothing has to be rescaled.
    """
    x, y = split.test
    probabilities = predict_with_masks(model, x)
    mean_probabilities = probabilities.mean(axis=0)
    plain = build_model(split.input_shape, split.classes)
    plain.set_weights(model.get_weights())
    difference = plain(x, training=False) - model(x, training=False)
    return {
        "one_mask_accuracy": np.mean(probabilities.argmax(-1) == y),
        "monte_carlo_accuracy": np.mean(mean_probabilities.argmax(-1) == y),
        "monte_carlo_loss": -np.mean(np.log(mean_probabilities[np.arange(len(y)), y])),
        "inference_difference": np.max(np.abs(difference)),
    }


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
