"""The search: fair trials, resumed after any kill, and never a wrong or silent result."""

import csv
import json
import math
import os
import re
import signal
import socket
import time
from dataclasses import replace

import keras
import keras_tuner
import numpy as np
import pytest
from keras_tuner.src.engine.trial import TrialStatus

import callbacks
import data
from recipes import dropout
from recipes._lab import command_line, runs, training
from recipes._lab.errors import SearchFailed, UserError
from recipes._lab.recipe import Recipe
from recipes._lab.tuning import oracle as oracles
from recipes._lab.tuning import outcome, search, tuner, workers
from recipes._lab.tuning.search import FinishedTrial, LearningRates
from tests.conftest import PROJECT, start_python

FRAGILE = PROJECT / "tests" / "fragile_recipe.py"
RATES = LearningRates(0.01, 1.0, 3)
OPTIONS = ["--tune", "--learning-rates", "1e-2:1:3", "--tuning-seeds", "2"]


@pytest.fixture(scope="module")
def recipe():
    return Recipe(FRAGILE)


def plan(recipe, folder, kind="grid", rates=RATES, seeds=2, experiment="classes", **changes):
    """Return the search of the variant "plain"."""
    experiments = [replace(recipe.experiments[experiment], **changes)]
    return search.plan(recipe, experiments, kind, rates, seeds, folder)[
        experiments[0].name, "plain"
    ]


def tune(out, *options):
    """Run the command in this process, on the variant "plain" where nothing else is said."""
    variants = [] if "--variants" in options else ["--variants", "plain"]
    return command_line.main(FRAGILE, [*OPTIONS, "--out", str(out), *variants, *options])


def tables(out):
    return [(out / name).read_bytes() for name in ("tuning.json", "tuning.csv", "tuning.png")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that nothing interrupted, in this process."""
    out = tmp_path_factory.mktemp("finished")
    assert tune(out) == 0
    return out


# A trainer that costs nothing: it speaks to the Oracle as a Tuner does.


def made_up_metrics(trial):
    """Return what a trial with these values measures: best at 0.1, a little noise from the seed."""
    rate, seed = trial.hyperparameters.get("learning_rate"), trial.hyperparameters.get("seed")
    accuracy = 0.9 - 0.1 * abs(math.log10(rate) + 1) + 0.001 * (seed % 7)
    return {
        "validation_accuracy@1": accuracy / 2,
        "validation_accuracy@2": accuracy,
        "diverged@2": 0.0,
    }


def finish(queue, trial):
    queue.update_trial(trial.trial_id, made_up_metrics(trial))
    trial.status = TrialStatus.COMPLETED
    queue.end_trial(trial)


def drive(queue, worker="tuner0"):
    while True:
        trial = queue.create_trial(worker)
        if trial.status != TrialStatus.RUNNING:
            return trial.status
        finish(queue, trial)


def open_queue(*searches):
    return oracles.OracleQueue([oracles.SearchOracle(one) for one in searches])


def stored(one):
    """Return the bytes of all files of a search."""
    return {
        str(path.relative_to(one.folder)): path.read_bytes()
        for path in one.folder.rglob("*")
        if path.is_file()
    }


# What is searched.


def test_default_grid_is_half_decades_in_three_digits():
    half_decades = (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1, 3.16e-1, 1.0)
    assert LearningRates(1e-4, 1.0, 9).grid() == half_decades


def test_search_uses_each_rate_with_each_seed_and_no_seed_of_a_report(recipe, tmp_path):
    one = plan(recipe, tmp_path)
    queue = open_queue(one)
    drive(queue)
    trials = search.read_trials(one)
    pairs = [(trials[index].learning_rate, trials[index].seed) for index in range(one.total)]
    assert pairs == [(rate, seed) for rate in (0.01, 0.1, 1.0) for seed in (1000, 1001)]


def test_seed_zero_is_a_seed(recipe, tmp_path):
    queue = open_queue(replace(plan(recipe, tmp_path), seeds=(0, 1)))
    trials = [queue.create_trial(worker) for worker in "abc"]
    assert [trial.hyperparameters.get("seed") for trial in trials] == [0, 1, 0]


def test_whatever_could_change_a_score_changes_the_folder(recipe, tmp_path, monkeypatch):
    one = plan(recipe, tmp_path)
    folder, version = one.folder, search.metadata.version
    monkeypatch.setattr(search.metadata, "version", lambda name: f"{version(name)}.1")
    assert plan(recipe, tmp_path).folder != folder
    monkeypatch.undo()
    others = [
        plan(recipe, tmp_path, rates=LearningRates(0.01, 1.0, 4)),
        plan(recipe, tmp_path, rates=LearningRates(0.02, 1.0, 3)),
        plan(recipe, tmp_path, seeds=3),
        plan(recipe, tmp_path, kind="random"),
        plan(recipe, tmp_path, kind="bayesian"),
        plan(recipe, tmp_path, epochs=3),
        plan(recipe, tmp_path, data="digits"),
        plan(recipe, tmp_path, samples=50),
        plan(recipe, tmp_path, label_noise=0.1),
        plan(recipe, tmp_path, batch_size=7),
        replace(one, run=replace(one.run, fingerprint="other code")),
        replace(one, run=replace(one.run, arguments={"diverges_below": 0.5})),
    ]
    assert len({other.folder for other in [one, *others]}) == 1 + len(others)
    assert plan(recipe, tmp_path).folder == one.folder
    # Storing the rate that was found, or the name of the experiment, changes nothing.
    assert plan(recipe, tmp_path, learning_rates={"plain": 0.5}).folder == one.folder
    assert plan(recipe, tmp_path, name="other", measure=True).folder == one.folder


def test_another_grid_trains_anew_and_going_back_finds_the_old_search(recipe, tmp_path):
    one, other = plan(recipe, tmp_path), plan(recipe, tmp_path, rates=LearningRates(0.1, 1.0, 2))
    drive(open_queue(one))
    before = stored(one)
    assert open_queue(other).finished == 0
    drive(open_queue(other))
    assert open_queue(one).finished == one.total
    assert stored(one) == before


# The trials.


def test_search_never_reads_the_test_part(recipe, tmp_path, monkeypatch):
    parts, load = [], training.load
    measure = training.Evaluation.measure
    monkeypatch.setattr(training, "load", lambda run: replace(load(run), test=None))
    monkeypatch.setattr(
        training.Evaluation, "measure", lambda self, part: parts.append(part) or measure(self, part)
    )
    workers.execute([plan(recipe, tmp_path, rates=LearningRates(0.1, 0.1, 1), seeds=1)])
    assert set(parts) == {"train", "validation"}


def test_score_is_what_the_bench_measures_after_the_last_epoch(recipe, finished):
    one = plan(recipe, finished / "tuning")
    trials = search.read_trials(one)
    for trial in (trials[1], trials[4]):
        result = training.train(one.run_of(trial.learning_rate, trial.seed))
        assert trial.score == result["metrics"]["validation_accuracy"]
        assert not trial.diverged


def test_score_is_that_of_the_model_as_fit_leaves_it(tmp_path):
    """Here with the moving average of its weights, which Keras puts in place after the last epoch.

    The same goes for a best epoch that a callback restores.
    """
    state = Recipe(PROJECT / "tests" / "state_recipe.py")
    one = plan(state, tmp_path, rates=LearningRates(0.1, 0.1, 1), seeds=1, experiment="digits")
    workers.execute([one])
    (trial,) = search.read_trials(one).values()
    result = training.train(one.run_of(0.1, trial.seed))
    assert trial.score == result["metrics"]["validation_accuracy"]
    assert trial.score != result["curves"]["validation_accuracy"][-1]


def test_trial_keeps_the_history_of_its_metrics(recipe, finished):
    one = plan(recipe, finished / "tuning")
    trial = oracles.SearchOracle(one).get_trial(one.trial_id(3))
    history = [step.mean() for step in trial.metrics.get_history("validation_accuracy")]
    curves = training.train(one.run_of(0.1, 1001))["curves"]
    assert history == curves["validation_accuracy"][1:]
    assert [step.mean() for step in trial.metrics.get_history("loss")] == curves["fit_loss"][1:]
    assert trial.best_step == len(history) == 2


def test_dtype_policy_is_that_of_the_caller_in_every_trial(recipe, tmp_path, monkeypatch):
    policies = []
    build = tuner.VariantModel.build

    def spy(self, hp):
        model = build(self, hp)
        policies.append(model.layers[-1].dtype_policy.name)
        return model

    monkeypatch.setattr(tuner.VariantModel, "build", spy)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        workers.execute([plan(recipe, tmp_path, rates=LearningRates(0.1, 0.1, 1))])
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert policies == ["mixed_float16"] * 2


def test_what_callbacks_log_reaches_the_record_of_each_trial(recipe, tmp_path):
    one = plan(recipe, tmp_path, rates=LearningRates(0.1, 1.0, 2), seeds=1)
    ours = [
        callbacks.LearningRateLogger(),
        callbacks.GradientNorms(),
        callbacks.UpdateRatios(),
        callbacks.ActivationStatistics(training.load(one.run_of(0.1, 1000)).train.x[:8]),
    ]
    workers.execute([one], callbacks=ours)
    oracle = oracles.SearchOracle(one)
    for index, rate in enumerate((0.1, 1.0)):
        metrics = oracle.get_trial(one.trial_id(index)).metrics
        for key in ("learning_rate", "gradient_norm"):
            assert [step.step for step in metrics.get_history(key)] == [1, 2]
        assert metrics.get_last_value("learning_rate") == pytest.approx(rate)
        assert metrics.get_last_value("gradient_norm") > 0


def test_score_is_the_last_epoch_even_where_an_earlier_one_was_better(recipe, tmp_path):
    queue = open_queue(plan(recipe, tmp_path))
    trial = queue.create_trial("tuner0")
    metrics = {"validation_accuracy@1": 0.9, "validation_accuracy@2": 0.5, "diverged@2": 0.0}
    queue.update_trial(trial.trial_id, metrics)
    queue.end_trial(trial)
    assert queue.oracles[0].finished[0].score == 0.5


# Divergence.


@pytest.mark.parametrize("tuner_kind", ["grid", pytest.param("bayesian", marks=pytest.mark.slow)])
def test_rates_that_diverge_are_marked_and_never_the_best(tmp_path, capsys, tuner_kind):
    variants = ["small_rates_diverge", "one_seed_diverges", "all_diverge"]
    kind = ["--tuner", tuner_kind, "--learning-rates", "0.02:1:2"]
    if tuner_kind == "bayesian":
        kind += ["--trials", "4", "--tuning-seeds", "1"]
        variants = variants[:1]
    assert tune(tmp_path, "--variants", *variants, *kind) == 0
    found = json.loads((tmp_path / "tuning.json").read_text())["experiments"]["classes"]["variants"]
    rates = found["small_rates_diverge"]["rates"]
    for rate in rates:
        assert rate["diverged"] == (len(rate["seeds"]) if rate["learning_rate"] < 0.05 else 0)
        assert all(math.isfinite(seed["score"]) for seed in rate["seeds"])
    assert sum(rate["diverged"] for rate in rates) > 0
    assert found["small_rates_diverge"]["best"] >= 0.05
    if tuner_kind == "grid":
        assert found["one_seed_diverges"]["best"] is None
        assert [rate["diverged"] for rate in found["one_seed_diverges"]["rates"]] == [1, 1]
        output = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert "all_diverge: Every trial diverged, so there is no best rate" in output
        assert "one_seed_diverges: At every rate some seed diverged" in output
        assert '"all_diverge": 0.25, # No rate found: this one is as it was.' in output


def test_regression_is_scored_by_rmse_and_a_huge_one_has_diverged(recipe, tmp_path):
    one = plan(recipe, tmp_path, rates=LearningRates(0.1, 1.0, 2), seeds=1, experiment="numbers")
    workers.execute([one])
    trials = search.read_trials(one)
    assert (one.metric, one.direction) == ("validation_rmse", "min")
    assert [trials[index].diverged for index in (0, 1)] == [False, True]
    scale = data.load("diabetes", seed=1000, samples=50).target_scale
    assert 0 < trials[0].score < 2 * scale
    assert trials[1].score == 10 * scale
    assert outcome.best_rate({t.learning_rate: [t] for t in trials.values()}, "min") == 0.1


# What is the best rate.


def trials_of(scores, diverged=()):
    """Return trials by rate from a dictionary from rate to scores."""
    return {
        rate: [
            FinishedTrial(rate, seed, score, (rate, seed) in diverged)
            for seed, score in enumerate(values)
        ]
        for rate, values in scores.items()
    }


def test_best_rate_has_the_best_mean_and_is_the_smaller_of_equals():
    by_rate = trials_of({0.1: [0.5, 0.7], 0.3: [0.7, 0.7], 1.0: [0.6, 0.8]})
    assert outcome.best_rate(by_rate, "max") == 0.3
    assert outcome.best_rate(by_rate, "min") == 0.1
    assert outcome.best_rate(trials_of({0.1: [0.9, 0.9]}, {(0.1, 1)}), "max") is None
    with_a_loss = trials_of({0.1: [0.5, 0.5], 1.0: [0.99, 0.99]}, {(1.0, 0)})
    assert outcome.best_rate(with_a_loss, "max") == 0.1


def test_warnings_name_the_edge_and_the_share_that_diverged():
    def warn(scores, diverged=()):
        by_rate = trials_of(scores, diverged)
        return outcome._warnings(by_rate, outcome.best_rate(by_rate, "max"))

    assert warn({0.1: [0.5], 0.3: [0.6], 1.0: [0.5]}) == []
    assert "smallest" in warn({0.1: [0.7], 0.3: [0.6], 1.0: [0.5]})[0]
    assert "largest" in warn({0.1: [0.5], 0.3: [0.6], 1.0: [0.7]})[0]
    assert warn({0.1: [0.5]}) == []
    half = warn({0.1: [0.5], 0.2: [0.6], 0.3: [0], 1.0: [0]}, {(0.3, 0), (1.0, 0)})
    assert half == []
    most = warn(
        {0.1: [0.5], 0.2: [0.6], 0.3: [0], 1.0: [0], 2.0: [0]}, {(0.3, 0), (1.0, 0), (2.0, 0)}
    )
    assert most[0].startswith("3 of 5 trials diverged")


def test_a_rate_within_noise_of_the_best_is_marked():
    by_rate = trials_of({0.1: [0.60, 0.61, 0.62], 0.3: [0.70, 0.71, 0.72], 1.0: [0.69, 0.72, 0.70]})
    marks = [outcome._mark(rate, 0.3, by_rate) for rate in by_rate]
    assert marks == [None, outcome.BEST, outcome.NOISE]


def test_printed_lines_are_the_dictionary_to_store(recipe):
    found = {"variants": {"plain": {"best": 0.1}, "all_diverge": {"best": None}}}
    text = outcome.lines_for_recipe(recipe.experiments["classes"], found)
    assert eval("{" + text + "}")["learning_rates"] == {
        "plain": 0.1,
        "small_rates_diverge": 0.25,
        "one_seed_diverges": 0.25,
        "all_diverge": 0.25,
    }


# The command.


def test_outcome_is_written_as_json_csv_and_picture(finished):
    lines = list(csv.DictReader((finished / "tuning.csv").read_text().splitlines()))
    assert len(lines) == 6 and {line["seed"] for line in lines} == {"1000", "1001"}
    found = json.loads((finished / "tuning.json").read_text())["experiments"]["classes"]
    by_rate = {}
    for line in lines:
        by_rate.setdefault(float(line["learning_rate"]), []).append(float(line["score"]))
    means = {rate: np.mean(scores) for rate, scores in by_rate.items()}
    assert found["variants"]["plain"]["best"] == max(means, key=means.get)
    assert (finished / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_second_command_trains_nothing_and_prints_the_same(finished, capsys, monkeypatch):
    before = tables(finished)
    monkeypatch.setattr(workers, "train", None)
    assert tune(finished) == 0
    assert tables(finished) == before
    output = capsys.readouterr()
    assert '"plain": 1.0,' in output.out and "largest one tried" in output.out
    assert output.err == ""


def test_fresh_search_forgets_what_is_finished(recipe, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        workers, "train", lambda queue, *_: trained.append(queue.finished) or drive(queue)
    )
    one = plan(recipe, tmp_path)
    workers.execute([one])
    workers.execute([one])
    workers.execute([one], fresh=True)
    assert trained == [0, 0]
    assert one.is_finished()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--learning-rates", "1:0.1:3"], "LOW:HIGH:COUNT"),
        (["--learning-rates", "0.1:1"], "LOW:HIGH:COUNT"),
        (["--learning-rates", "0:1:3"], "LOW:HIGH:COUNT"),
        (["--learning-rates", "0.1:0.1:2"], "LOW:HIGH:COUNT"),
        (["--learning-rates", "0.1:inf:2"], "LOW:HIGH:COUNT"),
        (["--tuner", "magic"], "magic"),
        (["--trials", "5"], "--trials is for"),
        (["--workers", "0"], "at least 1"),
        (["--tuner", "random", "--learning-rates", "0.1:0.1:1"], "must be a range"),
        (["--learning-rate", "0.1"], "--learning-rate has no meaning with --tune"),
        (["--seeds", "3"], "--seeds has no meaning with --tune"),
    ],
)
def test_bad_options_end_in_one_sentence(tmp_path, capsys, options, words):
    assert tune(tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_options_of_a_search_need_tune(tmp_path, capsys):
    assert command_line.main(FRAGILE, ["--workers", "2", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "--workers is an option of --tune.\n"


def test_keras_tuner_of_an_unchecked_version_is_refused(tmp_path, capsys, monkeypatch):
    version = search.metadata.version
    monkeypatch.setattr(
        search.metadata, "version", lambda name: "1.5.0" if name == "keras-tuner" else version(name)
    )
    assert tune(tmp_path) == 2
    error = capsys.readouterr().err
    assert "1.5.0" in error and "keras-tuner==1.4.8" in error and error.count("\n") == 1


def test_installed_keras_tuner_is_a_checked_one():
    assert keras_tuner.__version__ in search.CHECKED_KERAS_TUNER


# Kills. A child process is forked at every write, and ends there as `kill -9` ends it.


def killed_at(point, one):
    """Search in a child process that is killed at write `point`; return whether it came so far.

    Every write has three points: with a part of the temporary file written, before it takes the
    file's name, and after.
    """
    child = os.fork()
    if child:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        pytest.fail("the killed search hangs")
    passed = 0

    def die_here():
        nonlocal passed
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    class DyingOs:
        def __getattr__(self, name):
            return getattr(os, name)

        def fdopen(self, descriptor, mode):
            file = os.fdopen(descriptor, mode, buffering=0)
            write = file.write

            class Part:
                def __enter__(self):
                    return self

                def __exit__(self, *details):
                    file.close()

                def write(self, content):
                    write(content[: len(content) // 2])
                    die_here()
                    write(content[len(content) // 2 :])

                flush = file.flush
                fileno = file.fileno

            return Part()

        def replace(self, source, target):
            die_here()
            os.replace(source, target)
            die_here()

    runs.os = DyingOs()
    try:
        drive(open_queue(one))
    finally:
        os._exit(0)


def test_killed_at_any_write_the_search_ends_as_if_it_never_was(recipe, tmp_path):
    rates = LearningRates(0.1, 1.0, 2)
    reference = plan(recipe, tmp_path / "whole", rates=rates)
    drive(open_queue(reference))
    expected = stored(reference)
    point = 0
    while True:
        one = plan(recipe, tmp_path / str(point), rates=rates)
        if not killed_at(point, one):
            break
        kept = len(search.read_trials(one))
        queue = open_queue(one)
        assert queue.finished == kept
        drive(queue)
        assert search.read_trials(one) == search.read_trials(reference)
        files = {name: content for name, content in stored(one).items() if "/." not in f"/{name}"}
        assert files == expected
        point += 1
    # Four trials of trial.json and oracle.json, once tuner0.json; three points each.
    assert point == 3 * (4 * 2 + 1)


@pytest.mark.parametrize("kind", ["random", "bayesian"])
def test_killed_between_trials_a_search_goes_on_with_the_same_rates(recipe, tmp_path, kind):
    rates = LearningRates(0.01, 1.0, 5)
    reference = plan(recipe, tmp_path / "whole", kind, rates)
    drive(open_queue(reference))
    one = plan(recipe, tmp_path / "killed", kind, rates)
    # Killed again and again: each process finishes three trials.
    while open_queue(one).finished < one.total:
        queue = open_queue(one)
        for _ in range(3):
            trial = queue.create_trial("tuner0")
            if trial.status == TrialStatus.RUNNING:
                finish(queue, trial)
        queue.create_trial("tuner0")
    assert search.read_trials(one) == search.read_trials(reference)
    assert len({trial.learning_rate for trial in search.read_trials(one).values()}) == 5


def test_damaged_oracle_file_costs_nothing(recipe, tmp_path, capsys):
    one = plan(recipe, tmp_path)
    drive(open_queue(one))
    before = stored(one)
    for content in (b"", b'{"ongoing', b"\xff\xfe"):
        (one.folder / "oracle.json").write_bytes(content)
        (one.folder / f"trial_{one.trial_id(0)}" / "trial.json").unlink()
        queue = open_queue(one)
        assert queue.finished == one.total - 1
        drive(queue)
        assert stored(one) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"COMPLETED"', '"RUNNING"'),
        lambda text: text.replace('"score": 0.', '"score": 1.'),
        lambda text: text.replace('"seed": 1000}', '"seed": 1001}'),
        lambda text: text.replace("validation_accuracy", "other"),
    ],
)
def test_damaged_trial_is_reported_and_trained_again(recipe, tmp_path, capsys, damage):
    one = plan(recipe, tmp_path)
    drive(open_queue(one))
    before = stored(one)
    path = one.trial_file(2)
    assert one.is_finished()
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    assert not one.is_finished()
    queue = open_queue(one)
    assert capsys.readouterr().err == f"{path} is damaged; training it again.\n"
    assert queue.finished == one.total - 1
    drive(queue)
    assert stored(one) == before


def test_interrupted_search_says_how_to_go_on(finished, tmp_path, capsys, monkeypatch):
    fit, calls = tuner.VariantModel.fit, []

    def interrupted(self, *arguments, **options):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(self, *arguments, **options)

    monkeypatch.setattr(tuner.VariantModel, "fit", interrupted)
    assert tune(tmp_path) == 130
    assert "3 of 6" in capsys.readouterr().err
    assert tune(tmp_path) == 0
    assert len(calls) == 4 + 3
    assert tables(tmp_path) == tables(finished)


# Several workers, as the Oracle sees them.


def test_workers_in_any_order_give_the_same_trials(recipe, tmp_path):
    reference = plan(recipe, tmp_path / "one", "bayesian", LearningRates(0.01, 1.0, 4))
    drive(open_queue(reference))
    one = replace(reference, parent=tmp_path / "three")
    queue = open_queue(one)
    out = {}
    while queue.finished < queue.total:
        for name in ("a", "b", "c"):
            trial = queue.create_trial(name)
            if trial.status == TrialStatus.RUNNING:
                out[name] = trial
        finish(queue, out.popitem()[1])  # The one that was handed out last ends first.
    assert search.read_trials(one) == search.read_trials(reference)


def test_worker_that_comes_back_under_its_name_gets_its_trial_again(recipe, tmp_path):
    queue = open_queue(plan(recipe, tmp_path), plan(recipe, tmp_path, epochs=3))
    for name in "abcdefg":
        last = queue.create_trial(name)
    assert last.hyperparameters.get("search") == queue.oracles[1].search.name
    assert queue.create_trial("g") is last
    assert queue.create_trial("c").trial_id == queue.oracles[0].search.trial_id(2)
    # Also where a search before it has a trial again.
    queue.oracles[0]._handed_out.clear()
    assert queue.create_trial("g") is last


def test_trial_of_a_lost_worker_goes_to_another_one_and_counts_once(recipe, tmp_path, monkeypatch):
    one = plan(recipe, tmp_path)
    queue = open_queue(one)
    lost = queue.create_trial("lost")
    # The others wait: the trial may yet come.
    assert drive(queue, "other") == TrialStatus.IDLE
    monkeypatch.setattr(oracles, "LATE_SECONDS", 0)
    monkeypatch.setattr(oracles, "LATE_FACTOR", 0)
    assert drive(queue, "other") == TrialStatus.STOPPED
    before = stored(one)
    finish(queue, lost)
    assert stored(one) == before
    assert queue.create_trial("lost").status == TrialStatus.STOPPED
    assert not queue.tuner_ids


def test_restarted_chief_ignores_what_it_did_not_hand_out(recipe, tmp_path):
    one = plan(recipe, tmp_path)
    trial = open_queue(one).create_trial("worker-1")
    restarted = open_queue(one)
    finish(restarted, trial)
    assert restarted.finished == 0
    # Nor does the end of a trial count whose metrics went to the chief before.
    assert restarted.create_trial("worker-2").trial_id == trial.trial_id
    restarted.end_trial(trial)
    assert restarted.finished == 0
    drive(restarted, "worker-2")
    assert restarted.finished == one.total


def test_chief_without_workers_gives_up_with_a_sentence(recipe, tmp_path, monkeypatch):
    environment = zip(workers.CHIEF_VARIABLES, ("chief", "127.0.0.1", "0"), strict=True)
    for name, value in environment:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(SearchFailed, match=r"No worker has called .* 0 of 6 trials are finished"):
        workers.execute([plan(recipe, tmp_path)])


def test_worker_without_a_chief_gives_up_with_a_sentence(recipe, tmp_path, monkeypatch, capsys):
    environment = zip(workers.CHIEF_VARIABLES, ("worker", "127.0.0.1", "9"), strict=True)
    for name, value in environment:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.5)
    assert tune(tmp_path) == 1
    error = capsys.readouterr().err
    assert "The chief at 127.0.0.1:9 does not answer" in error and error.count("\n") == 1


def test_worker_that_dies_at_once_every_time_ends_the_search(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_work_for_parent", zip)  # Takes any arguments, and ends.
    with pytest.raises(SearchFailed, match=r"worker-1 died 3 times in a row \(exit code 0\)"):
        workers.execute([plan(recipe, tmp_path)], workers=1)


def test_worker_with_other_arguments_than_its_chief_says_so(recipe, tmp_path):
    queue = open_queue(plan(recipe, tmp_path))
    with pytest.raises(UserError, match="a worker needs the chief's arguments"):
        tuner.SearchTuner(queue, [plan(recipe, tmp_path, epochs=3)], tmp_path).search()


@pytest.mark.parametrize("given", [0, 1, 2])
def test_two_of_the_three_variables_are_refused(given, monkeypatch):
    values = dict(zip(workers.CHIEF_VARIABLES, ("chief", "127.0.0.1", "8000"), strict=True))
    for name in workers.CHIEF_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for number, (name, value) in enumerate(values.items()):
        if number != given:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"Missing: {workers.CHIEF_VARIABLES[given]}"):
        workers.role()


# Keras Tuner's own classes.


def test_stock_tuner_opens_the_finished_search(recipe, finished):
    one = plan(recipe, finished / "tuning")
    stock = keras_tuner.RandomSearch(
        tuner.VariantModel(one),
        objective=keras_tuner.Objective(one.metric, one.direction),
        max_trials=one.total,
        directory=one.parent,
        project_name=one.name,
    )
    assert stock.remaining_trials == 0
    best = max(search.read_trials(one).values(), key=lambda trial: trial.score)
    assert stock.get_best_hyperparameters()[0].get("learning_rate") == best.learning_rate
    assert stock.oracle.get_best_trials(1)[0].score == best.score
    stock.results_summary()


def test_stock_random_search_runs_on_the_model_of_a_variant(recipe, tmp_path):
    one = plan(recipe, tmp_path, "random")
    stock = keras_tuner.RandomSearch(
        tuner.VariantModel(one),
        objective=keras_tuner.Objective(one.metric, one.direction),
        max_trials=1,
        directory=tmp_path,
        project_name="stock",
    )
    stock.search(verbose=0)
    (trial,) = stock.oracle.trials.values()
    assert trial.status == TrialStatus.COMPLETED and 0 < trial.score < 1


@pytest.mark.parametrize(
    "name",
    [
        "RandomSearch",
        pytest.param("BayesianOptimization", marks=pytest.mark.slow),
        pytest.param("Hyperband", marks=pytest.mark.slow),
    ],
)
def test_stock_tuners_take_the_tunable_model_of_dropout(name, tmp_path):
    split = data.load("digits", samples=60)
    x = split.train.x.reshape(60, 64)
    limit = {"max_epochs": 1} if name == "Hyperband" else {"max_trials": 1}
    stock = getattr(keras_tuner, name)(
        dropout.tunable_model, objective="val_loss", directory=tmp_path, **limit
    )
    stock.search(x, split.train.y, epochs=1, validation_data=(x, split.train.y), verbose=0)
    trials = stock.oracle.trials.values()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    values = stock.get_best_hyperparameters()[0].values
    assert {"learning_rate", "hidden_rate", "input_rate"} <= set(values)


# Real processes, really killed.


def test_killed_in_the_middle_of_a_trial_the_search_goes_on(finished, tmp_path, monkeypatch):
    order = tmp_path / "order"
    order.write_text("0.1 1001")  # The fourth of six trials.
    monkeypatch.setenv("FRAGILE_RECIPE", str(order))
    out = tmp_path / "out"
    process = start_python(FRAGILE, *OPTIONS, "--variants", "plain", "--out", out)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert len(list(out.rglob("trial.json"))) == 3
    assert tune(out) == 0
    assert tables(out) == tables(finished)


@pytest.mark.slow
def test_two_workers_one_of_them_killed_give_the_same_table(finished, tmp_path, monkeypatch):
    order = tmp_path / "order"
    order.write_text("0.1 1001")
    monkeypatch.setenv("FRAGILE_RECIPE", str(order))
    starts, start = [], workers.Chief._start
    monkeypatch.setattr(
        workers.Chief,
        "_start",
        lambda self, name, address: starts.append(name) or start(self, name, address),
    )
    assert tune(tmp_path / "out", "--workers", "2") == 0
    assert not order.exists()
    assert len(starts) == 3 and set(starts) == {"worker-1", "worker-2"}
    assert tables(tmp_path / "out") == tables(finished)


@pytest.mark.slow
def test_killed_chief_started_again_and_workers_of_other_machines(finished, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [FRAGILE, *OPTIONS, "--variants", "plain", "--out", tmp_path / "out"]

    def start(name, *options):
        variables = zip(workers.CHIEF_VARIABLES, (name, "127.0.0.1", port), strict=True)
        with monkeypatch.context() as environment:
            for variable, value in variables:
                environment.setenv(variable, value)
            return start_python(*command, *options)

    by_hand = start("some-other-machine")
    chief = start("chief", "--workers", "1")
    trials = lambda: list((tmp_path / "out").rglob("trial.json"))  # noqa: E731
    deadline = time.monotonic() + 240
    while len(trials()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    chief.kill()
    chief.communicate()
    assert 2 <= len(trials()) < 6
    chief = start("chief", "--workers", "1")
    assert chief.wait(timeout=240) == 0
    assert by_hand.wait(timeout=60) == 0
    assert "The search is finished" in by_hand.communicate()[1]
    assert tables(tmp_path / "out") == tables(finished)
