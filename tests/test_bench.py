"""The bench: fair runs, a cache to be trusted, and a command line that shows no traceback."""

import dataclasses
import json
import math
import os
import signal
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

import data
from callbacks import GradientNorms, LearningRateLogger
from recipes import dropout
from recipes._lab import bench, command_line, picture, report, training
from recipes._lab.recipe import Recipe, code_fingerprint, parse_card
from recipes._lab.runs import DamagedRun, RunFolder, write_text
from tests.conftest import PROJECT, run_python, start_python

TINY = PROJECT / "tests" / "tiny_recipe.py"


@pytest.fixture(scope="module")
def tiny():
    return Recipe(TINY)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The tiny recipe, run without interruption in this process."""
    out = tmp_path_factory.mktemp("finished")
    assert command_line.main(TINY, ["--seeds", "2", "--jobs", "1", "--out", str(out)]) == 0
    return out


def read_report(out):
    report = json.loads((out / "report.json").read_text())
    report.pop("seconds")  # The only figures that no two runs share.
    return report


def run_files(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}


# What makes a comparison fair.


def test_variants_of_dropout_start_from_equal_weights():
    models = [dropout.build_model(**arguments, seed=3) for arguments in dropout.VARIANTS.values()]
    first = models[0].get_weights()
    for model in models[1:]:
        for one, other in zip(first, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    other_seed = dropout.build_model(seed=4).get_weights()
    assert not np.array_equal(first[0], other_seed[0])
    # The hidden kernel and the output kernel of one model are drawn independently.
    assert abs(np.corrcoef(first[2][:, :10].ravel(), first[4].ravel())[0, 1]) < 0.1


def test_batches_are_the_same_for_all_variants_and_cover_each_epoch_once(tiny):
    runs = bench.plan(tiny, [tiny.experiments["digits"]], seeds=2)
    split = data.load("digits", seed=0, samples=60, label_noise=0.1)
    seen = {}
    for run in runs:
        batches = list(training.training_batches(split.train, run).as_numpy_iterator())
        seen[run.variant, run.seed] = np.concatenate([x for x, _ in batches])
        assert [len(x) for x, _ in batches] == [25, 25, 10] * run.epochs
    np.testing.assert_array_equal(seen["plain", 0], seen["wide", 0])
    assert not np.array_equal(seen["plain", 0], seen["plain", 1])
    for epoch in np.split(seen["plain", 0], 2):
        rows = np.sort(epoch.reshape(60, -1), axis=0)
        np.testing.assert_array_equal(rows, np.sort(split.train.x.reshape(60, -1), axis=0))
    assert not np.array_equal(*np.split(seen["plain", 0], 2))


def test_model_trains_on_the_batches_in_that_order(tiny):
    """One step of plain gradient descent, taken by hand on the first batch."""
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    split = data.load("digits", seed=0, samples=60, label_noise=0.1)
    inputs = keras.Input((8, 8))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    model.compile(
        keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    kernel, bias = model.get_weights()
    batches = training.training_batches(split.train, run)
    model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)

    rows = training.batch_order(60, run.epochs, run.seed)[0, :25]
    x, y = split.train.x[rows].reshape(25, 64).astype("float64"), split.train.y[rows]
    logits = x @ kernel + bias
    errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(10)[y]
    np.testing.assert_allclose(model.get_weights()[0], kernel - 0.5 * x.T @ errors / 25, atol=1e-6)


def test_experiment_may_name_the_function_that_measures(tiny):
    of_digits, of_table = (
        training.train(bench.plan(tiny, [tiny.experiments[name]], seeds=1)[0])["metrics"]
        for name in ("digits", "table")
    )
    assert of_digits["test_rows"] == 397 and "columns" not in of_digits
    assert of_table["columns"] == 13 and "test_rows" not in of_table
    assert of_table["told_epochs"] == tiny.experiments["table"].epochs


def test_training_step_is_traced_once(tiny):
    """TensorFlow traces twice what creates a variable, which takes as long as the training."""
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    split = training.load(run)

    def build_with_slots(**arguments):
        model = tiny.module.build_model(**arguments)
        model.compile(keras.optimizers.Adam(), model.loss)
        model.train_step = lambda data: traced.append(1) or type(model).train_step(model, data)
        return model

    traced = []
    model = training.build(SimpleNamespace(build_model=build_with_slots), split, run)
    training.fit(model, split, run, callbacks=[GradientNorms(), LearningRateLogger()])
    assert len(traced) == 1


def train_alone(run):
    """Train with a graph of its own."""
    training._last_traced = None
    return training.train(run)


def digits_of(result):
    return {key: value for key, value in result.items() if key != "seconds"}


OTHER_START = {"learning_rate": 0.003, "arguments": {"initializer": "he_normal"}}


@pytest.mark.parametrize("change", [OTHER_START, {"arguments": {"width": 9}}])
def test_runs_that_share_a_graph_give_the_digits_of_a_graph_of_their_own(change):
    """Dropout, batch normalization and Adam keep state of every kind: all of it starts afresh."""
    state = Recipe(PROJECT / "tests" / "state_recipe.py")
    first, second = bench.plan(state, [state.experiments["digits"]], seeds=2)
    second = dataclasses.replace(second, **change)
    expected = train_alone(second)
    train_alone(first)
    shared = training._last_traced
    assert digits_of(training.train(second)) == digits_of(expected)
    assert (training._last_traced is shared) == ("width" not in change.get("arguments", {}))
    assert digits_of(training.train(second)) == digits_of(expected)  # The same once more.


def test_graphs_that_differ_are_not_shared():
    def compiled(seed=0, rate=0.1, units=2, trainable=True, **settings):
        keras.backend.clear_session()  # The names of layers begin anew, as in every run.
        initializer = keras.initializers.GlorotUniform(seed=seed)
        layer = keras.layers.Dense(units, kernel_initializer=initializer, trainable=trainable)
        model = keras.Sequential([keras.Input((3,)), layer])
        model.compile(**{"optimizer": keras.optimizers.SGD(rate), "loss": "mse", **settings})
        return training._graph(model)

    schedule = keras.optimizers.schedules.ExponentialDecay
    assert compiled() == compiled(seed=1, rate=0.2)
    for other in (
        compiled(units=3),
        compiled(trainable=False),
        compiled(loss="mae"),
        compiled(jit_compile=True),
        compiled(optimizer=keras.optimizers.SGD(0.1, momentum=0.9)),
        compiled(rate=schedule(0.1, 10, 0.5)),
    ):
        assert other != compiled()
    assert compiled(rate=schedule(0.1, 10, 0.5)) != compiled(rate=schedule(0.2, 10, 0.5))


def test_variant_may_have_settings_of_its_own(tiny):
    tiny = Recipe(TINY)
    tiny.variants = {**tiny.variants, "wide": {"width": 9, "epochs": 5, "batch_size": 7}}
    experiment = tiny.experiments["digits"]
    plain, wide = bench.plan(tiny, [experiment], seeds=1)
    assert (plain.epochs, plain.batch_size) == (experiment.epochs, experiment.batch_size)
    assert (wide.epochs, wide.batch_size, wide.arguments) == (5, 7, {"width": 9})
    quick = dataclasses.replace(experiment, overrides={"epochs": 1})
    assert [run.epochs for run in bench.plan(tiny, [quick], seeds=1)] == [1, 1]


def test_recipe_may_bring_callbacks_and_ask_for_the_number_of_steps(monkeypatch):
    state = Recipe(PROJECT / "tests" / "state_recipe.py")
    run = bench.plan(state, [state.experiments["digits"]], seeds=1)[0]
    run = dataclasses.replace(run, epochs=6, arguments={**run.arguments, "patience": 0})
    result = training.train(run)
    losses = result["curves"]["validation_loss"][1:]
    rises = [i for i in range(1, len(losses)) if losses[i] >= min(losses[:i])]
    assert result["metrics"]["epochs"] == len(losses) == (rises[0] + 1 if rises else 6)
    assert state.module.asked == (6 * 4, 4)  # 60 samples in batches of 16.


def test_loss_that_the_last_update_makes_infinite_has_diverged(tiny):
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    run = dataclasses.replace(run, epochs=1, batch_size=60)
    for rate, diverged in ((0.1, 0.0), (3e38, 1.0)):
        result = training.train(dataclasses.replace(run, learning_rate=rate))
        assert math.isfinite(result["curves"]["fit_loss"][1])
        assert result["metrics"]["diverged"] == diverged


def test_rate_zero_trains_exactly_like_a_network_without_dropout_layers():
    x, y = data.load("digits", samples=100).train
    plain = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten()])
    for _ in range(dropout.HIDDEN_LAYERS):
        plain.add(keras.layers.Dense(dropout.HIDDEN_UNITS, "relu"))
    plain.add(keras.layers.Dense(10))
    with_layers = dropout.build_model(input_shape=(8, 8), input_rate=0.0, hidden_rate=0.0)
    plain.set_weights(with_layers.get_weights())
    plain.compile(
        keras.optimizers.SGD(0.1, momentum=dropout.MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for model in (plain, with_layers):
        model.fit(x, y, batch_size=50, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(plain.get_weights(), with_layers.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_seeds_of_the_report_start_at_zero_and_pair_all_variants(tiny):
    runs = bench.plan(tiny, [tiny.experiments["digits"]], seeds=2)
    assert [(run.seed, run.variant) for run in runs] == [
        (0, "plain"),
        (1, "plain"),
        (0, "wide"),
        (1, "wide"),
    ]


def test_metrics_leave_out_penalties_and_dropout():
    split = data.load("digits", samples=100)
    inputs = keras.Input((8, 8))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
    outputs = keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1.0))(x)
    model = keras.Model(inputs, outputs)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kernel, bias = model.get_weights()
    logits = split.test.x.reshape(-1, 64).astype("float64") @ kernel + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    measured = training.Evaluation(model, split).measure("test")
    rows = np.arange(len(logits))
    expected = -np.log(probabilities[rows, split.test.y]).mean()
    np.testing.assert_allclose(measured["test_loss"], expected, rtol=1e-5)
    assert measured["test_accuracy"] == np.mean(probabilities.argmax(1) == split.test.y)


def test_regression_is_measured_in_original_units():
    split = data.load("diabetes")
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)])
    model.compile(loss=keras.losses.MeanSquaredError())
    residuals = model(split.test.x).numpy()[:, 0] * split.target_scale
    residuals -= split.test.y * split.target_scale
    measured = training.Evaluation(model, split).measure("test")
    np.testing.assert_allclose(measured["test_rmse"], np.sqrt(np.mean(residuals**2)), rtol=1e-5)


def test_one_output_counts_as_two_classes():
    split = data.load("breast_cancer")
    for activation, from_logits in ((None, True), ("sigmoid", False)):
        model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(1, activation)])
        model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=from_logits))
        kernel, bias = model.get_weights()
        expected = np.mean((split.test.x @ kernel + bias > 0)[:, 0] == split.test.y)
        accuracy = training.Evaluation(model, split).measure("test")["test_accuracy"]
        np.testing.assert_allclose(accuracy, expected, atol=1e-9)


def test_one_hot_labels_are_measured_like_integers():
    integers = data.load("digits", samples=100)
    one_hot = dataclasses.replace(
        integers, train=data.Part(integers.train.x, np.eye(10, dtype="float32")[integers.train.y])
    )
    model = keras.Sequential(
        [keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    expected = training.Evaluation(model, integers).measure("train")
    model.compile(loss=keras.losses.CategoricalCrossentropy())
    assert training.Evaluation(model, one_hot).measure("train") == pytest.approx(expected, rel=1e-5)


# Dropout, exactly.


def test_masks_keep_the_mean_and_have_the_variance_of_the_formula():
    """Keras divides by 1 - p while training: mean 1, variance p / (1 - p) for an input of ones."""
    for rate in (0.2, 0.5):
        ones = np.ones((200, 500), "float32")
        dropped = keras.layers.Dropout(rate, seed=0)(ones, training=True).numpy()
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / (1 - rate))}
        np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)
        np.testing.assert_allclose(dropped.var(), rate / (1 - rate), atol=0.02)


def test_average_over_masks_of_one_softmax_layer_is_weight_scaling():
    """The normalized geometric mean over all masks equals one pass with all units, exactly."""
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=4), generator.normal(size=(4, 3))
    masks = np.array([[bit >> i & 1 for i in range(4)] for bit in range(16)])
    logits = (masks * x / 0.5) @ kernel
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    geometric = np.exp(log_probabilities.mean(0))
    scaled = np.exp(x @ kernel)
    np.testing.assert_allclose(geometric / geometric.sum(), scaled / scaled.sum(), rtol=1e-12)


def test_predict_with_masks_draws_another_mask_for_each_pass():
    model = dropout.build_model(hidden_rate=0.5)
    x = np.random.default_rng(0).random((3, 64), "float32")
    probabilities = dropout.predict_with_masks(model, x, passes=4)
    assert probabilities.shape == (4, 3, 10)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 0.01
    # Without dropout the passes differ by rounding alone.
    same = dropout.predict_with_masks(dropout.build_model(), x, passes=4)
    np.testing.assert_allclose(np.ptp(same, axis=0), 0, atol=1e-6)


# The cache.


def test_fingerprint_ignores_text_and_data_but_not_code():
    source = '"""Doc."""\nCLAIMS = [1]\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n'
    same = 'CLAIMS = []\nVARIANTS = {}\n\n\ndef f(x):\n    """Other."""\n    return (x + 1)\n'
    assert code_fingerprint(source) == code_fingerprint(same)
    assert code_fingerprint(source) != code_fingerprint(source.replace("+ 1", "+ 2"))
    assert code_fingerprint(source, without=()) != code_fingerprint(same, without=())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"epochs": 3},
        {"learning_rate": 0.2},
        {"arguments": {"width": 5}},
        {"data": "wine"},
        {"samples": 61},
        {"label_noise": 0.2},
        {"batch_size": 26},
        {"fingerprint": "other code"},
        {"measure": False},
    ],
)
def test_key_changes_with_all_that_a_result_depends_on(tiny, change):
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    changed = type(run)(**{**run.__dict__, **change})
    assert changed.key != run.key


def test_key_changes_with_a_package_version(tiny, monkeypatch):
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    before = run.key
    monkeypatch.setattr("recipes._lab.runs.versions", lambda: {"keras": "0"})
    assert run.key != before


def test_key_stays_when_the_file_moves(tiny):
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    assert type(run)(**{**run.__dict__, "recipe_path": "/elsewhere.py"}).key == run.key


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
def test_truncated_run_file_is_damaged(tiny, tmp_path, keep):
    folder = RunFolder(tmp_path)
    run = bench.plan(tiny, [tiny.experiments["digits"]], seeds=1)[0]
    assert folder.read(run) is None
    folder.write(run, {"metrics": {"test_accuracy": 0.5}})
    assert folder.read(run) == {"metrics": {"test_accuracy": 0.5}}
    text = folder.path(run).read_text()
    folder.path(run).write_text(text[:keep])
    with pytest.raises(DamagedRun):
        folder.read(run)
    folder.path(run).write_text(text.replace("0.5", "0.6"))
    with pytest.raises(DamagedRun):
        folder.read(run)


def test_writing_fails_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_second_call_trains_nothing_and_damage_is_trained_again(finished, capsys, monkeypatch):
    report, files = read_report(finished), run_files(finished)
    arguments = ["--seeds", "2", "--jobs", "1", "--out", str(finished)]
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", lambda run: pytest.fail(f"trained {run.describe()}"))
        patch.setattr(picture, "draw", lambda *_: pytest.fail("drew the same picture again"))
        assert command_line.main(TINY, arguments) == 0
    assert run_files(finished) == files
    (finished / "tiny_recipe.png").unlink()
    assert command_line.main(TINY, arguments) == 0
    assert (finished / "tiny_recipe.png").exists()
    victim = finished / "runs" / sorted(files)[0]
    victim.write_text(victim.read_text()[:100])
    capsys.readouterr()
    assert command_line.main(TINY, arguments) == 0
    assert f"{victim} is damaged" in capsys.readouterr().err
    changed = {name for name, time in run_files(finished).items() if time != files[name]}
    assert changed == {victim.name}
    assert read_report(finished) == report


def test_fresh_trains_again_and_gives_the_same_digits(finished):
    report, files = read_report(finished), run_files(finished)
    arguments = ["--seeds", "2", "--jobs", "1", "--fresh", "--out", str(finished)]
    assert command_line.main(TINY, arguments) == 0
    assert all(time != files[name] for name, time in run_files(finished).items())
    assert read_report(finished) == report


@pytest.mark.slow
def test_killed_in_the_middle_goes_on_where_it_stopped(finished, tmp_path):
    """kill -9 of the whole process group; then the same command, with two workers."""
    arguments = [TINY, "--seeds", "2", "--out", tmp_path]
    process = start_python(*arguments, "--jobs", "1")
    deadline = time.monotonic() + 120
    while not run_files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = run_files(tmp_path)
    assert 1 <= len(kept) < 4
    code, output, errors = run_python(*arguments, "--jobs", "2")
    assert code == 0, errors
    assert errors == ""
    assert "Eight units do better than four" in output
    after = run_files(tmp_path)
    assert len(after) == 4
    assert {name: after[name] for name in kept} == kept
    assert read_report(tmp_path) == read_report(finished)


def test_control_c_keeps_what_is_finished(tmp_path):
    process = start_python(TINY, "--seeds", "50", "--jobs", "2", "--out", tmp_path)
    deadline = time.monotonic() + 120
    while not run_files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{len(run_files(tmp_path))} of 100 runs are finished and kept." in errors
    assert "The same command goes on" in errors
    assert "Traceback" not in errors


# The command line.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0"], "Argument --seeds: must be a whole number of at least 1. Received: 0"),
        (["--seeds", "two"], "Argument --seeds: must be a whole number of at least 1."),
        (["--epochs", "-1"], "Argument --epochs: must be a whole number of at least 1."),
        (["--jobs", "0"], "Argument --jobs: must be a whole number of at least 1. Received: 0"),
        (["--learning-rate", "nan"], "Argument --learning-rate: must be a number above 0."),
        (["--learning-rate", "-0.1"], "Argument --learning-rate: must be a number above 0."),
        (["--learning-rate", "0"], "Argument --learning-rate: must be a number above 0."),
        (["--data", "nothing"], "--data must be one of digits,"),
        (["--data", "diabetes"], "--data must be one of digits,"),
        (["--variants", "nothing"], "--variants must be one of plain, wide. Received: nothing"),
        (["--experiments", "x"], "--experiments must be one of digits, table. Received: x"),
        (["--out", "/proc/nothing"], "--out must be a folder that can be written."),
        (["--tensorboard", "/proc/x"], "--tensorboard must be a folder that can be written."),
        (["--what"], "Unrecognized arguments: --what"),
        (["--seeds"], "Argument --seeds: expected one argument"),
    ],
)
def test_bad_arguments_get_one_sentence_and_exit_code_2(
    arguments, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(TINY, arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(sentence)
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err


def test_help_shows_the_card(capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(PROJECT / "recipes" / "dropout.py", ["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "Srivastava" in text and "--learning-rate" in text


def test_options_reach_the_runs(tmp_path, capsys):
    arguments = ["--seeds", "1", "--epochs", "1", "--variants", "wide", "--learning-rate", "0.5"]
    arguments += ["--jobs", "1", "--json", "--out", str(tmp_path / "out"), "--data", "wine"]
    arguments += ["--tensorboard", str(tmp_path / "board")]
    assert command_line.main(TINY, arguments) == 0
    report = json.loads(capsys.readouterr().out)
    experiment = report["experiments"]["wine"]
    assert report["notes"] == [
        "One learning rate for all variants: this compares learning rates as well."
    ]
    assert list(experiment["variants"]) == ["plain", "wide"]  # The baseline stays.
    assert experiment["variants"]["wide"]["learning_rate"] == 0.5
    assert (experiment["epochs"], experiment["data"]) == (1, "wine")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(list((tmp_path / "board").rglob("events.*"))) == 2


def test_quick_is_marked_and_small(tmp_path, capsys):
    arguments = ["--quick", "--jobs", "1", "--out", str(tmp_path), "--experiments", "table"]
    assert command_line.main(TINY, arguments) == 0
    assert "QUICK: a smoke run" in capsys.readouterr().out
    report = read_report(tmp_path)
    assert report["seeds"] == [0]
    assert "QUICK" in report["notes"][0]


ILLUSTRATED = """
def illustrate(summary):
    from matplotlib.figure import Figure

    return Figure() if "drawn" in summary["experiments"] else None
"""


def test_picture_of_its_own_goes_when_a_recipe_has_nothing_to_draw(tmp_path):
    """With `--experiments`, what it would draw may not have been run."""
    recipe, picture_file = tmp_path / "illustrated.py", tmp_path / "illustrated-illustration.png"
    recipe.write_text(ILLUSTRATED)
    bench._illustrate(str(recipe), {"experiments": {"drawn": {}}}, picture_file)
    assert picture_file.read_bytes().startswith(b"\x89PNG")
    bench._illustrate(str(recipe), {"experiments": {"other": {}}}, picture_file)
    assert not picture_file.exists()


def test_legends_of_a_recipes_own_picture_hide_no_curve():
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes in figure.subplots(1, 2):
        axes.plot([0, 1], [1, 0], label="a curve from corner to corner")
        axes.legend()
    picture.put_legends_beside(figure)
    figure.draw_without_rendering()
    left, right = figure.axes
    for axes in (left, right):
        legend = axes.get_legend().get_window_extent()
        assert axes.bbox.x1 <= legend.x0 and legend.x1 <= figure.bbox.x1
    assert left.get_legend().get_window_extent().x1 <= right.bbox.x0


def test_variants_that_meet_have_different_colors():
    names = [f"variant_{number}" for number in range(9)]
    others = [f"other_{number}" for number in range(7)]
    experiments = {
        "first": {"baseline": "none", "variants": dict.fromkeys(["none", *names[:7]])},
        "second": {"baseline": "none", "variants": dict.fromkeys(["none", *names[5:]])},
        # Grey here, and so free to be any of their colors elsewhere.
        "third": {"baseline": names[0], "variants": dict.fromkeys([names[0], *others])},
    }
    colors = picture.variant_colors(experiments)
    for name, experiment in experiments.items():
        of_variants = [colors[name][variant] for variant in experiment["variants"]]
        assert len(set(of_variants)) == len(of_variants)
        assert colors[name][experiment["baseline"]] == picture.BASELINE_COLOR
    assert all(colors["first"][name] == colors["second"][name] for name in names)


def test_csv_leaves_empty_what_a_run_does_not_measure():
    runs = [SimpleNamespace(key=key, experiment=key, variant="plain", seed=0) for key in ("a", "b")]
    curves = [
        {"fit_loss": [math.nan, 2.0], "train_accuracy": [0.1, 0.5]},
        {"fit_loss": [math.nan, 3.0], "train_rmse": [9.0, 8.0]},
    ]
    results = {run.key: {"curves": of_run} for run, of_run in zip(runs, curves, strict=True)}
    assert report._epochs_table(runs, results).splitlines() == [
        "experiment,variant,seed,epoch,fit_loss,train_accuracy,train_rmse",
        "a,plain,0,0,,0.1,",
        "a,plain,0,1,2.0,0.5,",
        "b,plain,0,0,,,9.0",
        "b,plain,0,1,3.0,,8.0",
    ]


def test_csv_holds_every_epoch_of_every_run(finished):
    lines = (finished / "epochs.csv").read_text().splitlines()
    assert lines[0].startswith("experiment,variant,seed,epoch,fit_loss,train_loss")
    assert len(lines) == 1 + 4 * 3  # Four runs, the untrained model and two epochs.
    report = read_report(finished)
    header = lines[0].split(",")
    last = dict(zip(header, lines[3].split(","), strict=True))
    measured = report["experiments"]["digits"]["variants"]["plain"]["metrics"]
    assert float(last["validation_accuracy"]) == measured["validation_accuracy"]["values"][0]


def test_report_says_what_its_numbers_belong_to(finished):
    report = read_report(finished)
    experiment = report["experiments"]["digits"]
    assert report["versions"]["keras"] == keras.version()
    assert (experiment["samples"], experiment["label_noise"]) == (60, 0.1)
    assert report["machine"]
    assert experiment["variants"]["plain"]["metrics"]["test_rows"]["mean"] == 397
    png = (finished / "tiny_recipe.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_card_is_split_into_its_sections():
    title, card = parse_card("Title: more.\n\nProblem:  One\n    two.\nClaim: Three.\n")
    assert title == "Title: more"
    assert card == {"Problem": "One\ntwo.", "Claim": "Three."}


def test_copied_recipe_works_with_keras_alone(tmp_path):
    """In an empty folder, where the rest of the project cannot be imported."""
    copy = tmp_path / "dropout.py"
    copy.write_text((PROJECT / "recipes" / "dropout.py").read_text())
    program = """
import sys
class OutOfReach:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("recipes", "data", "callbacks", "matplotlib", "keras_tuner"):
            raise ImportError(name)
sys.meta_path.insert(0, OutOfReach())
sys.path.insert(0, "")
import dropout, numpy as np
model = dropout.build_model((8,), 3, hidden_rate=0.5)
history = model.fit(np.ones((6, 8)), np.zeros(6), verbose=0)
print(sorted(history.history))
"""
    code, output, errors = run_python("-I", "-c", program, cwd=tmp_path)
    assert code == 0, errors
    assert output.strip() == "['accuracy', 'loss']"
