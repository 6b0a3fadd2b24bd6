"""What every schedule promises, whichever recipe it is in; its formula again, in plain Python."""

import inspect
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import cyclic_learning_rate, learning_rate_decay, one_cycle, warmup
from recipes.cyclic_learning_rate import CyclicLearningRate
from recipes.one_cycle import OneCycle, OneCycleMomentum, SGDWithMomentumSchedule
from recipes.warmup import InverseSquareRootDecay, WarmUp
from tests.conftest import run_python

ExponentialDecay = keras.optimizers.schedules.ExponentialDecay
CosineDecay = keras.optimizers.schedules.CosineDecay
RECIPES = [warmup, cyclic_learning_rate, one_cycle, learning_rate_decay]


def constant(rate):
    return lambda step: rate


def exponential(rate, steps, factor):
    return lambda step: rate * factor ** (step / steps)


def cosine(rate, steps):
    return lambda step: rate * (1 + math.cos(math.pi * min(step / steps, 1))) / 2


def warm(rate, steps, initial=0.0):
    return lambda step: (
        rate(step) if step >= steps else initial + (rate(steps) - initial) * step / steps
    )


def vaswani(width, steps):
    return lambda step: width**-0.5 * min((step + 1) ** -0.5, (step + 1) * steps**-1.5)


def smith(base, maximum, size, halving=False, gamma=1.0):
    def rate(step):
        cycle = math.floor(1 + step / (2 * size))
        x = abs(step / size - 2 * cycle + 1)
        height = max(0, 1 - x) * (0.5 ** (cycle - 1) if halving else 1)
        return gamma**step * (base(step) + (maximum(step) - base(step)) * height)

    return rate


def pytorch(total, rise, start, middle, end):
    """The phases of PyTorch's OneCycleLR, with `anneal_strategy="cos"`."""

    def anneal(start, end, part):
        return end + (start - end) / 2 * (math.cos(math.pi * part) + 1)

    def value(step):
        first_end, second_end = float(rise * total) - 1, total - 1
        step = min(step, second_end)
        if step <= first_end:
            return anneal(start, middle, step / first_end)
        return anneal(middle, end, (step - first_end) / (second_end - first_end))

    return value


MILLIONS = 10_000_000
CASES = {  # name: (schedule, formula, steps at which something happens)
    "warmup": (WarmUp(0.3, 7), warm(constant(0.3), 7), [7]),
    "warmup_from_a_rate": (WarmUp(0.8, 7, 0.1), warm(constant(0.8), 7, 0.1), [7]),
    "warmup_down": (WarmUp(0.1, 5, 0.4), warm(constant(0.1), 5, 0.4), [5]),
    "no_warmup_cosine": (WarmUp(CosineDecay(0.3, 20), 0), cosine(0.3, 20), [20]),
    "warmup_cosine": (WarmUp(CosineDecay(0.3, 100), 30), warm(cosine(0.3, 100), 30), [30, 100]),
    "warmup_cycles_decay": (
        WarmUp(CyclicLearningRate(0.01, ExponentialDecay(0.3, 50, 0.5), 10), 15, 0.02),
        warm(smith(constant(0.01), exponential(0.3, 50, 0.5), 10), 15, 0.02),
        [10, 15, 20, 30],
    ),
    "warmup_long": (
        WarmUp(0.3, MILLIONS, 0.1),
        warm(constant(0.3), MILLIONS, 0.1),
        [MILLIONS],
    ),
    "inverse_square_root": (
        InverseSquareRootDecay((512 * 4000) ** -0.5, 4000),
        vaswani(512, 4000),
        [3999],
    ),
    "only_falling": (InverseSquareRootDecay(0.3, 1), lambda step: 0.3 * (step + 1) ** -0.5, [1]),
    "triangular": (
        CyclicLearningRate(0.001, 0.006, 2000),
        smith(constant(0.001), constant(0.006), 2000),
        [2000, 4000, 6000],
    ),
    "smallest_cycle": (
        CyclicLearningRate(0.1, 0.3, 1),
        smith(constant(0.1), constant(0.3), 1),
        [1, 2, 3],
    ),
    "triangular2": (
        CyclicLearningRate(0.001, 0.3, 500_000, "triangular2"),
        smith(constant(0.001), constant(0.3), 500_000, halving=True),
        [500_000, 1_000_000, 1_500_000],
    ),
    "exp_range": (
        CyclicLearningRate(0.001, 0.3, 2000, "exp_range", 0.9999997),
        smith(constant(0.001), constant(0.3), 2000, gamma=0.9999997),
        [2000, 4000],
    ),
    "cycles_of_cosine": (
        CyclicLearningRate(ExponentialDecay(0.1, 9, 0.9), CosineDecay(0.5, 64), 8),
        smith(exponential(0.1, 9, 0.9), cosine(0.5, 64), 8),
        [8, 16, 64],
    ),
    "one_cycle": (
        OneCycle(0.3, 1000),
        pytorch(1000, 0.3, 0.3 / 25, 0.3, 0.3 / 25 / 1e4),
        [299, 999],
    ),
    "one_cycle_between_steps": (  # The top is at 1.4.
        OneCycle(0.3, 8),
        pytorch(8, 0.3, 0.3 / 25, 0.3, 0.3 / 25 / 1e4),
        [1, 7],
    ),
    "one_cycle_long": (
        OneCycle(2.0, MILLIONS, 0.1, 10, 100),
        pytorch(MILLIONS, 0.1, 0.2, 2.0, 0.002),
        [999_999, MILLIONS - 1],
    ),
    "one_cycle_momentum": (
        OneCycleMomentum(100),
        pytorch(100, 0.3, 0.95, 0.85, 0.95),
        [29, 99],
    ),
}
each_schedule = pytest.mark.parametrize("name", CASES)


def steps_of(name):
    """Both ends, both sides of everything that happens, and far beyond."""
    boundaries = [0, *CASES[name][2], MILLIONS, MILLIONS + 777]
    return sorted({max(0, b + side) for b in boundaries for side in (-1, 0, 1)} | {3, 1234})


def lost(name):
    """What float32 may lose: Keras takes its cosine from 1 + cos, which is almost 0 at the end."""
    return 2e-8 if "cosine" in name else 1e-12


@each_schedule
def test_schedule_follows_its_formula(name):
    schedule, formula, _ = CASES[name]
    for step in steps_of(name):
        rate = schedule(step)
        assert rate.dtype == "float32" and rate.shape == ()
        assert float(rate) == pytest.approx(formula(step), rel=2e-6, abs=lost(name)), step


@each_schedule
def test_step_may_be_of_any_type(name):
    schedule = CASES[name][0]
    for step in (0, 5, 4001):
        expected = float(schedule(step))
        for same in (
            float(step),
            np.int64(step),
            np.float32(step),
            tf.constant(step, tf.int32),
            tf.constant(step, tf.int64),
            tf.constant(step, tf.float32),
            keras.Variable(step, dtype="int64"),
        ):
            assert float(schedule(same)) == pytest.approx(expected, rel=1e-6)


EXACT = {  # name: {step: rate}
    "warmup": {0: 0.0, 7: 0.3, 8: 0.3, MILLIONS: 0.3},
    "warmup_from_a_rate": {0: 0.1, 7: 0.8, MILLIONS: 0.8},
    "warmup_down": {0: 0.4, 5: 0.1, 6: 0.1},
    "warmup_long": {0: 0.1, MILLIONS: 0.3, MILLIONS + 1: 0.3},
    "inverse_square_root": {3999: (512 * 4000) ** -0.5},
    "only_falling": {0: 0.3},
    "triangular": {0: 0.001, 2000: 0.006, 4000: 0.001, 6000: 0.006, MILLIONS: 0.001},
    "smallest_cycle": {0: 0.1, 1: 0.3, 2: 0.1, MILLIONS: 0.1, MILLIONS + 1: 0.3},
    "triangular2": {0: 0.001, 500_000: 0.3, 1_000_000: 0.001, MILLIONS: 0.001},
    "one_cycle": {0: 0.3 / 25, 299: 0.3, 999: 0.3 / 25e4, MILLIONS: 0.3 / 25e4},
    "one_cycle_long": {0: 0.2, 999_999: 2.0, MILLIONS - 1: 0.002, MILLIONS: 0.002},
    "one_cycle_momentum": {0: 0.95, 29: 0.85, 99: 0.95, MILLIONS: 0.95},
}


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_graph_and_xla_give_what_eager_mode_gives(how):
    """Within rounding everywhere, and to the last bit where the rate is one that was asked for."""

    def rates(steps):
        return tf.stack([schedule(steps) for schedule, _, _ in CASES.values()])

    compiled = rates if how == "eager" else tf.function(rates, jit_compile=how == "xla")
    steps = sorted({step for name in CASES for step in steps_of(name)})
    found = np.array(compiled(tf.constant(steps, tf.int64)))
    for name, row in zip(CASES, found, strict=True):
        for step, rate in zip(steps, row, strict=True):
            expected = pytest.approx(CASES[name][1](step), rel=2e-6, abs=lost(name))
            assert rate == expected, (name, step)
        for step, exact in EXACT.get(name, {}).items():
            assert row[steps.index(step)] == np.float32(exact), (name, step)
    scalar = compiled(tf.constant(steps[7], tf.int64))
    np.testing.assert_allclose(scalar, found[:, 7], rtol=1e-6, atol=1e-9)


@each_schedule
def test_config_is_complete_and_plain(name):
    schedule = CASES[name][0]
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    again = keras.optimizers.schedules.deserialize(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    parameters = list(inspect.signature(type(schedule).__init__).parameters)[1:]
    assert list(schedule.get_config()) == parameters
    assert type(schedule).from_config(schedule.get_config()).get_config() == schedule.get_config()
    for step in (0, 6, 1003):
        assert float(again(step)) == float(schedule(step))


def tiny_model(learning_rate, momentum=0.9):
    """Two inputs, one output, weights that are always the same."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    optimizer = SGDWithMomentumSchedule(learning_rate, momentum)
    model.compile(optimizer=optimizer, loss="mse")
    return model


X = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
Y = X @ np.array([[0.5], [-1.0]], "float32") + 0.3


def fit(model, epochs, **how):
    """Train `epochs` of three steps each; return the weights."""
    model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, **how)
    return np.concatenate([w.numpy().ravel() for w in model.weights])


CONSTANT = {
    "warmup_of_no_steps": lambda rate: WarmUp(rate, 0),
    "warmup_from_its_own_rate": lambda rate: WarmUp(rate, 7, rate),
    "cycles_without_height": lambda rate: CyclicLearningRate(rate, rate, 5),
    "halving_nothing": lambda rate: CyclicLearningRate(rate, rate, 3, "triangular2"),
    "gamma_of_one": lambda rate: CyclicLearningRate(rate, rate, 3, "exp_range", 1.0),
    "divisors_of_one": lambda rate: OneCycle(rate, 9, 0.3, 1, 1),
}


@pytest.mark.parametrize("rate", [0.1, 0.07, 1 / 3])
def test_constant_schedules_are_the_float_to_the_last_bit(rate):
    for name, schedule in CONSTANT.items():
        assert (np.array(schedule(rate)(tf.range(30))) == np.float32(rate)).all(), name
    momentum = OneCycleMomentum(9, max_momentum=rate, min_momentum=rate)
    assert (np.array(momentum(tf.range(30))) == np.float32(rate)).all()


def test_constant_schedules_train_exactly_like_a_float():
    expected = fit(tiny_model(0.07), 3)
    composed = WarmUp(CyclicLearningRate(0.07, 0.07, 2), 4, 0.07)
    steady = OneCycleMomentum(9, max_momentum=0.9, min_momentum=0.9)
    np.testing.assert_array_equal(fit(tiny_model(composed, steady), 3), expected)


def moving_model():
    rate = WarmUp(CyclicLearningRate(0.01, ExponentialDecay(0.1, 9, 0.5), 3), 5, 0.001)
    return tiny_model(rate, OneCycleMomentum(18))


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise Killed


def test_backup_and_restore_goes_on_at_the_right_step(tmp_path):
    backup = str(tmp_path / "backup")
    expected = fit(moving_model(), 4)
    model = moving_model()
    with pytest.raises(Killed):
        fit(model, 4, callbacks=[keras.callbacks.BackupAndRestore(backup), Kill()])
    resumed = moving_model()
    weights = fit(resumed, 4, callbacks=[keras.callbacks.BackupAndRestore(backup)])
    assert int(resumed.optimizer.iterations) == 12
    np.testing.assert_array_equal(weights, expected)


FRESH_PROCESS = """
import json, sys
import keras, numpy as np
folder = sys.argv[1]
try:
    keras.models.load_model(f"{folder}/model.keras")
except TypeError as error:
    print("recipes." in str(error), "WarmUp" in str(error) or "SGDWith" in str(error))
import recipes.cyclic_learning_rate, recipes.one_cycle, recipes.warmup
model = keras.models.load_model(f"{folder}/model.keras")
print(int(model.optimizer.iterations))
x, y = np.load(f"{folder}/x.npy"), np.load(f"{folder}/y.npy")
model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
print(json.dumps(np.concatenate([w.numpy().ravel() for w in model.weights]).tolist()))
schedules = json.load(open(f"{folder}/schedules.json"))
rates = {name: float(keras.optimizers.schedules.deserialize(config)(1003))
         for name, config in schedules.items()}
print(json.dumps(rates))
"""


def test_saved_model_loads_in_a_fresh_process_and_goes_on_at_the_right_step(tmp_path):
    model = moving_model()
    fit(model, 2)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    schedules = {
        name: keras.optimizers.schedules.serialize(schedule)
        for name, (schedule, _, _) in CASES.items()
    }
    (tmp_path / "schedules.json").write_text(json.dumps(schedules))
    code, output, errors = run_python("-c", FRESH_PROCESS, tmp_path)
    assert code == 0, errors
    named, iterations, weights, rates = output.splitlines()
    assert named == "True True", "The error does not name the module to import."
    assert int(iterations) == 6
    np.testing.assert_array_equal(np.float32(json.loads(weights)), fit(model, 2))
    for name, rate in json.loads(rates).items():
        assert rate == float(CASES[name][0](1003)), name


@pytest.mark.parametrize("name", ["count_steps", "draw_schedules"])
def test_helpers_are_the_same_in_every_file(name):
    sources = {inspect.getsource(getattr(recipe, name)) for recipe in RECIPES}
    assert len(sources) == 1


@pytest.mark.parametrize(
    ("samples", "batch_size", "epochs", "steps"),
    [
        (1000, 64, 1, 16),
        (1024, 64, 10, 160),
        (1025, 64, 10, 170),
        (1, 64, 3, 3),
        (1000, 64, 0.5, 8),
        (1000, 64, 0, 0),
        (1_281_167, 256, 90, 450_450),
    ],
)
def test_steps_count_the_smaller_last_batch(samples, batch_size, epochs, steps):
    assert warmup.count_steps(samples, batch_size, epochs) == steps


def test_fit_makes_as_many_steps_as_counted():
    model = tiny_model(0.01)
    model.fit(X, Y, batch_size=5, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == warmup.count_steps(len(X), 5, 2) == 6


@pytest.mark.parametrize("arguments", [(0, 64, 1), (10, 0, 1), (10, 64, -1)])
def test_nonsense_counts_are_refused(arguments):
    with pytest.raises(ValueError, match=r"Received: samples=\d+, batch_size=\d+, epochs=-?\d"):
        warmup.count_steps(*arguments)


def test_picture_shows_the_rate_of_every_step():
    schedules = {"cycles": CyclicLearningRate(0.1, 0.2, 3), "constant": 0.15}
    figure = warmup.draw_schedules(schedules, 13)
    cycles, steady = figure.axes[0].lines
    np.testing.assert_array_equal(cycles.get_xdata(), np.arange(13))
    expected = [0.1, 0.1 + 0.1 / 3, 0.1 + 0.2 / 3, 0.2, 0.1 + 0.2 / 3, 0.1 + 0.1 / 3] * 2 + [0.1]
    np.testing.assert_allclose(cycles.get_ydata(), expected, rtol=1e-6)
    assert set(steady.get_ydata()) == {0.15}
    assert cycles.get_label() == "cycles"


def test_picture_of_a_long_schedule_has_both_ends():
    line = warmup.draw_schedules({"constant": 0.1}, 5000).axes[0].lines[0]
    steps = line.get_xdata()
    assert len(steps) == 1000 and steps[0] == 0 and steps[-1] == 4999
