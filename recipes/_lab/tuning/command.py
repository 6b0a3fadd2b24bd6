"""The options of a search, and what they start."""

import argparse
import json
import math
import sys

from rich.console import Console

from recipes._lab.errors import UserError
from recipes._lab.tuning import outcome, picture, search, workers

DEFAULTS = {
    "learning_rates": search.LearningRates(1e-4, 1.0, 9),
    "tuning_seeds": 3,
    "tuner": "grid",
    "trials": None,
    "workers": None,
}
QUICK = {"learning_rates": search.LearningRates(1e-3, 1.0, 4), "tuning_seeds": 2}
INTERRUPTED = 130


def add_options(group, count):
    """Add the options of a search to an argument group; `count` reads a whole number above 0."""
    add = group.add_argument
    add("--tune", action="store_true", help="search the learning rate of every variant")
    add("--learning-rates", type=_rates, metavar="LOW:HIGH:COUNT", help="(default: 1e-4:1:9)")
    add("--tuning-seeds", type=count, metavar="N", help="trainings of each rate (default: 3)")
    add("--tuner", choices=search.TUNERS, help="(default: grid)")
    add("--trials", type=count, metavar="N", help="rates that random or bayesian may try")
    add("--workers", type=count, metavar="N", help="processes that search (default: this one)")


def complete(options):
    """Fill in the defaults of a search, and check that its options go together."""
    given = [name for name in DEFAULTS if getattr(options, name) is not None]
    if not options.tune:
        if given:
            raise UserError(f"{_flag(given[0])} is an option of --tune.")
        return
    for name in ("seeds", "jobs", "cluster", "learning_rate", "tensorboard"):
        if getattr(options, name) is not None:
            raise UserError(f"{_flag(name)} has no meaning with --tune.")
    defaults = {**DEFAULTS, **QUICK} if options.quick else DEFAULTS
    for name, value in defaults.items():
        if name not in given:
            setattr(options, name, value)
    rates = options.learning_rates
    if options.tuner == "grid":
        if options.trials:
            raise UserError(
                "--trials is for --tuner random or bayesian: a grid has as many rates as "
                "--learning-rates says."
            )
    else:
        if rates.low == rates.high:
            raise UserError(
                f"--learning-rates must be a range for --tuner {options.tuner}. Received: {rates}"
            )
        options.learning_rates = search.LearningRates(
            rates.low, rates.high, options.trials or rates.count
        )


def tune(recipe, experiments, options, notes=()):
    """Search the learning rate of every variant of `experiments`; return the exit code."""
    search.check_keras_tuner()
    parent = options.out / "tuning"
    searches = search.plan(
        recipe, experiments, options.tuner, options.learning_rates, options.tuning_seeds, parent
    )
    if workers.role() == "worker":
        return _work(list(searches.values()), options)
    workers.execute(list(searches.values()), workers=options.workers or 0, fresh=options.fresh)
    summary = outcome.summarize(recipe, experiments, searches, notes)
    outcome.write(summary, options.out)
    picture.draw(summary, options.out / "tuning.png")
    if options.json:
        print(json.dumps(summary, indent=1))
    else:
        outcome.show(summary, recipe, options.out, Console())
    return 0


def _work(searches, options):
    if options.workers:
        raise UserError("--workers is for the chief, and KERASTUNER_TUNER_ID names a worker.")
    try:
        workers.work(searches)
    except KeyboardInterrupt:
        print("Stopped. The chief hands out this worker's trial again.", file=sys.stderr)
        return INTERRUPTED
    print("The search is finished: the chief has the result.", file=sys.stderr)
    return 0


def _flag(name):
    return "--" + name.replace("_", "-")


def _rates(text):
    low, high, count = (*text.split(":"), "", "")[:3]
    try:
        rates = search.LearningRates(float(low), float(high), int(count))
    except ValueError:
        rates = None
    if (
        rates is None
        or text.count(":") != 2
        or not 0 < rates.low <= rates.high < math.inf
        or rates.count < 1
        or len(set(rates.grid())) < rates.count
    ):
        raise argparse.ArgumentTypeError(
            "must be LOW:HIGH:COUNT with 0 < LOW <= HIGH, and rates that differ in three digits. "
            f"Received: {text}"
        )
    return rates
