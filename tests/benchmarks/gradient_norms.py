"""What GradientNorms costs: `python -m tests.benchmarks.gradient_norms`, some minutes on two cores.

Every contender trains a model of its own, with the same weights on the same data. A round is one
epoch of each, in an order drawn anew; a ratio is a contender's time over that of plain `fit` in the
same round. The table has the median of the rounds and, in brackets, their middle half.

The first epoch, with the trace, is measured on fresh models, in rounds of its own. Processor time,
unlike wall time, leaves out what else runs on the machine.
"""

import argparse
import collections
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from callbacks import ActivationStatistics, GradientNorms, LearningRateLogger, UpdateRatios


class SecondTape(keras.callbacks.Callback):
    """The usual recipe from the web: after a step, the gradient of a batch is computed once more.

    It is not the gradient that trained the model: the weights have moved since. With
    `steps_per_execution=32` it runs after every 32nd step, and sees no other.
    """

    def __init__(self, inputs, targets):
        super().__init__()
        self.inputs, self.targets = tf.constant(inputs), tf.constant(targets)
        self.norms = []

    @tf.function
    def gradients(self):
        with tf.GradientTape() as tape:
            outputs = self.model(self.inputs, training=True)
            loss = self.model.compute_loss(y=self.targets, y_pred=outputs)
        return tape.gradient(loss, self.model.trainable_variables)

    def on_train_batch_end(self, batch, logs=None):
        self.norms.append([float(tf.norm(gradient)) for gradient in self.gradients()])


# Each makes the callbacks, given the inputs and targets of one batch.
CONTENDERS = {
    "plain fit": lambda inputs, targets: [],
    "GradientNorms": lambda inputs, targets: [GradientNorms()],
    "UpdateRatios": lambda inputs, targets: [UpdateRatios()],
    "all callbacks": lambda inputs, targets: [
        GradientNorms(per_layer=True),
        UpdateRatios(per_layer=True),
        ActivationStatistics(inputs),
        LearningRateLogger(),
    ],
    "second tape": lambda inputs, targets: [SecondTape(inputs, targets)],
}


def dense_layers(width, depth):
    hidden = [layers.Dense(width, activation="relu") for _ in range(depth)]
    return [*hidden, layers.Dense(10)]


def convolutional_layers():
    return [
        layers.Conv2D(16, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(10),
    ]


Case = collections.namedtuple("Case", "make_layers shape batch_size steps")
CASES = {
    "tiny MLP, 2x64, batch 32": Case(lambda: dense_layers(64, 2), (20,), 32, 320),
    "MLP, 3x256, batch 128": Case(lambda: dense_layers(256, 3), (784,), 128, 128),
    "CNN, 2 convolutions, batch 64": Case(convolutional_layers, (28, 28, 1), 64, 64),
}


class Contender:
    """A model in training, with the callbacks of one contender."""

    def __init__(self, case, steps_per_execution, make_callbacks):
        keras.utils.set_random_seed(0)
        generator = np.random.default_rng(0)
        samples = case.steps * case.batch_size
        self.inputs = generator.normal(size=(samples, *case.shape)).astype("float32")
        self.targets = generator.integers(0, 10, size=samples)
        self.batch_size = case.batch_size
        self.model = keras.Sequential([keras.Input(case.shape), *case.make_layers()])
        self.model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=steps_per_execution,
        )
        batch = slice(None, case.batch_size)
        self.callbacks = make_callbacks(self.inputs[batch], self.targets[batch])

    def train_an_epoch(self):
        """Returns the seconds of the wall clock and of the processors."""
        wall, processor = time.perf_counter(), time.process_time()
        self.model.fit(
            self.inputs,
            self.targets,
            batch_size=self.batch_size,
            shuffle=False,
            verbose=0,
            callbacks=self.callbacks,
        )
        return time.perf_counter() - wall, time.process_time() - processor


def measure(case, steps_per_execution, rounds, first_rounds, chosen):
    """Returns the seconds of every first epoch and of every later one: name -> (rounds, 2)."""
    generator = np.random.default_rng(0)
    first, later = {name: [] for name in chosen}, {name: [] for name in chosen}
    for _ in range(first_rounds):
        contenders = {}
        for name in generator.permutation(chosen):
            contenders[name] = Contender(case, steps_per_execution, CONTENDERS[name])
            first[name].append(contenders[name].train_an_epoch())
    for _ in range(rounds):
        for name in generator.permutation(chosen):
            later[name].append(contenders[name].train_an_epoch())
    as_arrays = [{name: np.array(of[name]) for name in chosen} for of in (first, later)]
    return tuple(as_arrays)


def spread(seconds, reference):
    low, middle, high = np.quantile(seconds / reference, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="epochs that count (default: 21)")
    parser.add_argument("--first-rounds", type=int, default=5, help="first epochs (default: 5)")
    parser.add_argument("--case", default="", help="a part of the name of the cases to run")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments = parser.parse_args()
    chosen = list(dict.fromkeys(["plain fit", *arguments.contenders]))

    print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}, {os.cpu_count()} cores;")
    print(f"{arguments.rounds} rounds, {arguments.first_rounds} of first epochs, against plain fit")
    for name, case in CASES.items():
        if arguments.case not in name:
            continue
        for steps_per_execution in (1, 32):
            first, later = measure(
                case, steps_per_execution, arguments.rounds, arguments.first_rounds, chosen
            )
            plain = later["plain fit"]
            step = np.median(plain[:, 0]) / case.steps * 1e6
            print(f"\n{name}, steps_per_execution={steps_per_execution}, {step:.0f} us a step")
            print(f"{'':15} {'wall':>18} {'processors':>18} {'first epoch, wall':>18}")
            for contender in chosen:
                columns = [
                    spread(later[contender][:, 0], plain[:, 0]),
                    spread(later[contender][:, 1], plain[:, 1]),
                    spread(first[contender][:, 0], first["plain fit"][:, 0]),
                ]
                print(f"{contender:15} " + " ".join(f"{column:>18}" for column in columns))


if __name__ == "__main__":
    main()
