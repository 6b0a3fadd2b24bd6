"""Input whitening: give the inputs mean 0, variance 1, and no correlation with one another.

Problem:    Training crawls: one learning rate is too large for some directions of the inputs and
            too small for others.
Technique:  Subtract the mean and divide by the standard deviation of each input (standardizing);
            whitening also rotates and rescales until the inputs' covariance is the identity.
Claim:      With whitened inputs, a linear regression is solved by one step of gradient descent. A
            network starts faster with standardized inputs than with raw ones; whitened ones show no
            clear gain on top. With fewer samples than inputs, whitening lowers test accuracy to
            near chance, and an epsilon gives most of it back.
Costs:      An eigendecomposition of the covariance, cubic in the number of inputs, and a matrix
            product for each sample ever after.
Start at:   Standardized inputs. Whitening for inputs that are few and correlated; with an epsilon
            of 0.1 or more where samples are not many times the inputs.
Caveat:     Mean and matrix come from the training part alone and belong to the model: every later
            input needs the same ones. Exact whitening gives directions that hold only noise the
            same variance as all others. With no more samples than inputs it leaves every two
            training samples equally far apart. The learning rates of the networks come from
            `python -m recipes.input_whitening --tune --experiments many_samples few_samples
            --learning-rates 0.01:10:7`, those of the linear model from theory.
Reference:  LeCun, Bottou, Orr, Müller (1998), Efficient BackProp, section 4.3. The harm: Wadia,
            Duckworth, Schoenholz, Dyer, Sohl-Dickstein (2021), Whitening and Second Order
            Optimization Both Make Information in the Dataset Unusable During Training, and Can
            Reduce or Prevent Generalization, ICML, arXiv:2008.07545.
Run:        python -m recipes.input_whitening, with --sweep for 100 steps of the linear model
Measured:   Supported: After 60 steps, standardized inputs give a higher test accuracy than raw ones
              (+4.0 [+1.1, +6.8] points, p = .036).
            Supported: One step on whitened inputs reaches the least-squares solution (-3.93e-07
              [-1.39e-06, +6.02e-07], p < .001).
            Supported: One step on standardized inputs leaves the error on training data higher
              (+32.4 [+24.4, +40.5], p = .001).
            No clear difference: After 60 steps, whitened inputs give a higher one than standardized
              ones (-1.9 [-4.8, +1.0] points, p = .148).
            Supported: With 500 samples of 784 inputs, whitening lowers test accuracy (-69.0 [-71.2,
              -66.8] points, p < .001).
            Supported: With 500 samples of 784 inputs, an epsilon of 0.1 raises it again (+50.2
              [+47.9, +52.4] points, p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import dataclasses

import keras
import numpy as np

HIDDEN_UNITS = 64
# A direction whose variance is below this share of the largest is constant, up to rounding.
CONSTANT = 1e-10


def build_model(input_shape=(64,), classes=None, hidden_layers=2, learning_rate=0.1, seed=0):
    """Build and compile a ReLU network, or with `hidden_layers=0` a linear model.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs, which are logits of shape `(batch, classes)`. None is
            for regression: one output, trained on the mean squared error.
        hidden_layers: Int >= 0.
        learning_rate: Float or schedule, for plain SGD, which feels the inputs' scale most.
        seed: Int. Equal seeds give equal initial weights whatever the inputs.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(hidden_layers + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(hidden_layers):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes or 1, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    if classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        loss = keras.losses.MeanSquaredError()
    model.compile(
        keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"] if classes else None
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for: tune it once for each way to scale the inputs."""
    return build_model(
        classes=10,
        hidden_layers=hp.Int("hidden_layers", 0, 3, default=2),
        learning_rate=hp.Float("learning_rate", 1e-4, 1.0, sampling="log"),
    )


def fit_scaling(x, inputs, epsilon=0.0):
    """Find what gives the training inputs `x` mean 0 and variance 1: `(x - mean) @ matrix`.

    With the covariance `C = U diag(v) U^T`, whose `v` are variances along the columns of `U`:

    ```
    standardized: matrix = diag(1 / sqrt(diag(C)))
    pca:          matrix = U diag(1 / sqrt(v))
    zca:          matrix = U diag(1 / sqrt(v)) U^T
    ```

    Both of the last whiten. PCA gives the directions in falling order of variance; ZCA turns them
    back, so that an image still looks like one. Directions in which `x` is constant become 0.

    Args:
        x: Array of shape `(samples, features)`.
        inputs: "standardized", "pca" or "zca".
        epsilon: Float >= 0. This many times the mean variance is added to every variance before
            the division. 0 whitens exactly; the larger, the nearer to only subtracting the mean.

    Returns:
        Mean of shape `(features,)` and matrix of shape `(features, features)`.

    Raises:
        ValueError: if `inputs` or `epsilon` is not allowed.
    """
    if inputs not in ("standardized", "pca", "zca"):
        raise ValueError(
            f'Argument `inputs` must be "standardized", "pca" or "zca". Received: inputs={inputs!r}'
        )
    if not epsilon >= 0:
        raise ValueError(f"Argument `epsilon` must be >= 0. Received: epsilon={epsilon}")
    mean = x.mean(axis=0, dtype="float64")
    covariance = np.cov(x.astype("float64"), rowvar=False, bias=True)
    if inputs == "standardized":
        variances, directions = np.diag(covariance), np.eye(len(mean))
    else:
        variances, directions = np.linalg.eigh(covariance)
        variances, directions = variances[::-1], directions[:, ::-1]
    varies = variances > CONSTANT * variances.max()
    divisors = np.sqrt(np.where(varies, variances + epsilon * variances.mean(), np.inf))
    matrix = directions / divisors
    return mean, matrix @ directions.T if inputs == "zca" else matrix


def prepare(split, inputs="raw", epsilon=0.0):
    """Scale all parts of `split` with the mean and matrix of its training part."""
    if inputs == "raw":
        return split
    mean, matrix = fit_scaling(_flat(split.train.x), inputs, epsilon)
    parts = {
        name: part._replace(x=((_flat(part.x) - mean) @ matrix).astype("float32"))
        for name in ("train", "validation", "test")
        for part in [getattr(split, name)]
    }
    return dataclasses.replace(split, **parts)


def _flat(x):
    return x.reshape(len(x), -1)


SYMPTOMS = ["slow", "wrong data"]

VARIANTS = {
    "raw": {"inputs": "raw"},
    "standardized": {"inputs": "standardized"},
    "pca": {"inputs": "pca"},
    "zca": {"inputs": "zca"},
    "zca_0.1": {"inputs": "zca", "epsilon": 0.1},
}

EQUAL_START = [list(VARIANTS)]

EXPERIMENTS = {
    # Gradient descent on all samples at once. Theory gives the rates: 1/2 because the squared
    # error's second derivative is 2, and for standardized inputs about the largest that is stable.
    "one_step": {
        "data": "diabetes",
        "epochs": 1,
        "batch_size": 242,
        "measure": True,
        "arguments": {"hidden_layers": 0},
        "learning_rates": {"standardized": 0.2, "pca": 0.5},
    },
    "many_samples": {
        "data": "digits",
        "samples": 1000,
        "epochs": 3,
        "batch_size": 50,
        "learning_rates": {"raw": 0.316, "standardized": 0.316, "pca": 1.0},
    },
    "few_samples": {
        "data": "mnist5k",
        "samples": 500,
        "epochs": 10,
        "batch_size": 50,
        "learning_rates": {"standardized": 0.316, "zca": 1.0, "zca_0.1": 1.0},
    },
    "100_steps": {
        "data": "diabetes",
        "epochs": 100,
        "batch_size": 242,
        "measure": True,
        "sweep": True,
        "arguments": {"hidden_layers": 0},
        "learning_rates": {"standardized": 0.2, "pca": 0.5, "zca": 0.5},
    },
}

CLAIMS = [
    {
        "text": "After 60 steps, standardized inputs give a higher test accuracy than raw ones",
        "experiment": "many_samples",
        "variant": "standardized",
        "against": "raw",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.02,
        "textbook": "Standardized inputs make training faster.",
    },
    {
        "text": "One step on whitened inputs reaches the least-squares solution",
        "experiment": "one_step",
        "variant": "pca",
        "against": "pca",
        "metric": "train_rmse",
        "against_metric": "least_squares_train_rmse",
        "direction": "equal",
        "at_least": 0.01,
    },
    {
        "text": "One step on standardized inputs leaves the error on training data higher",
        "experiment": "one_step",
        "variant": "standardized",
        "against": "pca",
        "metric": "train_rmse",
        "direction": "higher",
        "at_least": 1.0,
    },
    {
        "text": "After 60 steps, whitened inputs give a higher one than standardized ones",
        "experiment": "many_samples",
        "variant": "pca",
        "against": "standardized",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Whitened inputs make training faster.",
    },
    {
        "text": "With 500 samples of 784 inputs, whitening lowers test accuracy",
        "experiment": "few_samples",
        "variant": "zca",
        "against": "standardized",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.02,
        "against_textbook": "Whitened inputs are always better.",
    },
    {
        "text": "With 500 samples of 784 inputs, an epsilon of 0.1 raises it again",
        "experiment": "few_samples",
        "variant": "zca_0.1",
        "against": "zca",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.02,
    },
]


def measure(model, split):
    """Return the RMSE of the least-squares solution, which no linear model can beat in training."""
    x, y = split.train
    columns = np.column_stack([_flat(x).astype("float64"), np.ones(len(x))])
    solution, *_ = np.linalg.lstsq(columns, y, rcond=None)
    error = np.sqrt(np.mean((columns @ solution - y) ** 2))
    return {"least_squares_train_rmse": error * split.target_scale}


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
