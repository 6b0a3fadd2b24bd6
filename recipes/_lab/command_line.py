"""The command line of a recipe, the same for all: arguments, their checks, and what they start."""

import argparse
import json
import sys
from dataclasses import replace

from rich.console import Console

import data
from recipes._lab import bench, picture, record, report
from recipes._lab.arguments import FAILED, INTERRUPTED, USER_ERROR, Parser, count, folder, rate
from recipes._lab.errors import SearchFailed, UserError
from recipes._lab.recipe import Recipe, choose
from recipes._lab.runs import RunFolder, check_writable
from recipes._lab.tuning import command as tuning

QUICK = {"epochs": 2, "samples": 200}
QUICK_SEEDS = 1
QUICK_NOTE = "QUICK: a smoke run. Its numbers say that the program works, nothing more."


def main(path, arguments=None):
    """Run the recipe in the file `path`; return the exit code."""
    try:
        recipe = Recipe(path)
        with bench.processes_for_all():
            return _run(recipe, _parse(recipe, arguments))
    except (UserError, data.DataError) as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except SearchFailed as failure:
        print(failure, file=sys.stderr)
        return FAILED
    except bench.Interrupted as interruption:
        print(
            f"Interrupted: {interruption.finished} of {interruption.total} runs are finished and "
            "kept. The same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED


def _run(recipe, options):
    experiments = _choose_experiments(recipe, options)
    check_writable("--out", options.out)
    if options.tune:
        notes = [QUICK_NOTE] if options.quick else []
        return tuning.tune(recipe, experiments, options, notes)
    if options.tensorboard:
        check_writable("--tensorboard", options.tensorboard)
    runs = bench.plan(recipe, experiments, options.seeds)
    results = bench.execute(
        runs,
        RunFolder(options.out / "runs"),
        jobs=options.jobs,
        cluster=options.cluster,
        fresh=options.fresh,
    )
    summary = report.summarize(recipe, experiments, runs, results, notes=_notes(options, recipe))
    png = options.out / f"{recipe.name}.png"
    # The slowest part of a second call. The report is written last: it says that all is there.
    if not (png.exists() and report.is_written(summary, options.out)):
        picture.draw(summary, png)
        bench.illustrate(recipe, summary, options.out, options.jobs)
        report.write(summary, runs, results, options.out)
    if options.record:
        record.write(summary, recipe.path)
    if options.tensorboard:
        report.write_tensorboard(runs, results, options.tensorboard)
    if options.json:
        print(json.dumps(summary, indent=1))
    else:
        report.show(summary, options.out, Console())
    return 0


def _choose_experiments(recipe, options):
    experiments = list(recipe.experiments.values())
    if options.experiments:
        names = choose("--experiments", options.experiments, list(recipe.experiments))
        experiments = [recipe.experiments[name] for name in names]
    elif not options.sweep:
        experiments = [experiment for experiment in experiments if not experiment.sweep]
    if options.data:
        first = experiments[0]
        task = data.DATASETS[first.data].task
        fitting = [name for name in data.names() if data.DATASETS[name].task == task]
        choose("--data", [options.data], fitting)
        # A data set that no experiment has takes the place of the first one's, with its staging.
        samples = first.samples and min(first.samples, data.DATASETS[options.data].train)
        experiments = [e for e in experiments if e.data == options.data] or [
            replace(first, name=options.data, data=options.data, samples=samples)
        ]
    if options.variants:
        known = list(dict.fromkeys(v for e in experiments for v in e.variants))
        choose("--variants", options.variants, known)
    return [_override(experiment, options) for experiment in experiments]


def _override(experiment, options):
    rates = experiment.learning_rates
    if options.variants:
        # The baseline stays: without it there is nothing to compare with.
        rates = {v: r for v, r in rates.items() if v in (experiment.baseline, *options.variants)}
    if options.learning_rate is not None:
        rates = dict.fromkeys(rates, options.learning_rate)
    overrides = {"epochs": options.epochs} if options.epochs else {}
    if options.quick:
        every = data.DATASETS[experiment.data].train
        overrides["epochs"] = options.epochs or min(QUICK["epochs"], experiment.epochs)
        overrides["samples"] = min(QUICK["samples"], experiment.samples or every, every)
    return replace(experiment, learning_rates=rates, overrides=overrides, **overrides)


def _notes(options, recipe):
    """Say what a reader of the report must know before its numbers."""
    notes = []
    if options.quick:
        notes.append(QUICK_NOTE)
    if options.learning_rate is not None:
        notes.append("One learning rate for all variants: this compares learning rates as well.")
    elif options.data and all(e.data != options.data for e in recipe.experiments.values()):
        notes.append(f"The learning rates were found on other data than {options.data}.")
    return notes


def _parse(recipe, arguments):
    parser = Parser(
        prog=f"python -m recipes.{recipe.name}",
        description=recipe.module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seeds", type=count, metavar="N", help="paired repeats (default: 5)")
    add("--epochs", type=count, metavar="N", help="instead of each experiment's own number")
    add("--experiments", nargs="+", metavar="NAME", help=", ".join(recipe.experiments))
    add("--sweep", action="store_true", help="also run the experiments that take longer")
    add("--data", metavar="NAME", help="run on this data set")
    add("--variants", nargs="+", metavar="NAME", help=", ".join(recipe.variants))
    add("--learning-rate", type=rate, metavar="RATE", help="one rate for all variants")
    add("--jobs", type=count, metavar="N", help="processes side by side (default: all cores)")
    add("--cluster", metavar="ADDRESS", help="train on the workers of this Dask scheduler")
    add("--out", type=folder, metavar="DIR", help=f"results (default: runs/{recipe.name})")
    add("--fresh", action="store_true", help="train again what is finished")
    add("--quick", action="store_true", help="a smoke run of seconds; its numbers mean nothing")
    add("--json", action="store_true", help="print the report as JSON")
    add("--tensorboard", type=folder, metavar="DIR", help="also write the curves for TensorBoard")
    # For who maintains the recipes: a whole run becomes the result in the recipe's card.
    add("--record", action="store_true", help=argparse.SUPPRESS)
    tuning.add_options(parser.add_argument_group("learning-rate search"), count)
    options = parser.parse_args(arguments)
    given = {name for name, value in vars(options).items() if value not in (None, False)}
    if options.record and given - {"record", "jobs", "out", "fresh", "json"}:
        raise UserError("--record takes the recipe as it is: give it no other options than --out.")
    options.sweep = options.sweep or options.record  # A card speaks of all experiments.
    tuning.complete(options)
    if options.seeds is None:
        options.seeds = QUICK_SEEDS if options.quick else 5
    if options.jobs is None:
        options.jobs = bench.default_jobs()
    if options.out is None:
        options.out = folder("runs") / recipe.name
    return options
