"""What a search costs next to Keras Tuner's own: `python -m tests.benchmarks.tuning`, four minutes.

The same trials (learning rates x seeds of the same small model) by a plain loop, by the search of
this project, and by the stock `GridSearch`. The first and the last trace a graph for every trial,
which this project's search does not. Rounds of a few trials
alternate, and a ratio compares the CPU time of the same round. Then the resident memory after many
trials, of the plain loop and of the search, each in a process of its own.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner

from recipes._lab import training
from recipes._lab.recipe import Recipe
from recipes._lab.tuning import search, workers
from recipes._lab.tuning.tuner import VariantModel

RECIPE = Path(__file__).parents[1] / "tiny_recipe.py"
RATES = search.LearningRates(1e-2, 1.0, 5)


def plan(folder, rates, seeds):
    recipe = Recipe(RECIPE)
    experiments = [recipe.experiments["digits"]]
    return search.plan(recipe, experiments, "grid", rates, seeds, Path(folder))["digits", "plain"]


def plain_loop(planned):
    recipe = Recipe(RECIPE).module
    for rate in planned.learning_rates.grid():
        for seed in planned.seeds:
            run = planned.run_of(rate, seed)
            training.start_afresh(seed)
            split = training.load(run)
            training.fit(training.build(recipe, split, run), split, run)


def this_search(planned):
    workers.execute([planned], show_progress=False)


class TracedEveryTime(VariantModel):
    """The same trials as everybody writes them: each model traces a graph of its own."""

    def fit(self, hp, model, callbacks=(), **unused):
        run = self._run(hp)
        _, curves, _ = training.fit(model, self._data(run), run, callbacks)
        return {name: values[-1] for name, values in curves.items()}


def stock_search(planned):
    tuner = keras_tuner.GridSearch(
        TracedEveryTime(planned),
        objective=keras_tuner.Objective(planned.metric, planned.direction),
        directory=planned.parent,
        project_name="stock",
    )
    with contextlib.redirect_stdout(io.StringIO()):
        tuner.search(verbose=0)
    assert len(tuner.oracle.trials) == planned.total


CONTENDERS = {"plain loop": plain_loop, "this search": this_search, "stock": stock_search}


def cpu_seconds(contender):
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(folder, RATES, seeds=2)
        start = time.process_time()
        contender(planned)
        return (time.process_time() - start) / planned.total


def compare(rounds):
    for contender in CONTENDERS.values():
        cpu_seconds(contender)  # The first of everything pays for imports.
    seconds = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        names = list(CONTENDERS)
        for name in names[number % 3 :] + names[: number % 3]:
            seconds[name].append(cpu_seconds(CONTENDERS[name]))
    print("contender      CPU seconds a trial   trials per CPU second, as a multiple of stock's")
    for name, measured in seconds.items():
        ratios = [stock / own for stock, own in zip(seconds["stock"], measured, strict=True)]
        print(
            f"{name:12} {statistics.median(measured):10.2f} {statistics.median(ratios):20.2f}"
            f"   ({min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds)"
        )


def resident_mebibytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def grow(contender, trials, results):
    keras.version()
    with tempfile.TemporaryDirectory() as folder:
        contender(plan(folder, RATES, seeds=2))
        before = resident_mebibytes()
        contender(plan(Path(folder) / "many", search.LearningRates(1e-2, 1.0, trials // 4), 4))
        results.put(resident_mebibytes() - before)


def compare_memory(trials):
    context = multiprocessing.get_context("spawn")
    for contender in (plain_loop, this_search):
        results = context.Queue()
        process = context.Process(target=grow, args=(contender, trials, results))
        process.start()
        print(f"{contender.__name__}: {results.get():+.0f} MiB over {trials} trials")
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    compare(options.rounds)
    compare_memory(options.trials)
