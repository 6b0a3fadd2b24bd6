"""Turns finished trials into learning rates: the best of each variant, its warnings, the tables."""

import csv
import io
import json

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from recipes._lab import report, statistics, wording
from recipes._lab.runs import versions, write_text
from recipes._lab.tuning.search import read_trials

BEST, NOISE = "best", "within noise"
MARKS = {BEST: "*", NOISE: "~", None: " "}


def summarize(recipe, experiments, searches, notes=()):
    """Return the outcome of all searches as plain numbers, lists and dictionaries.

    Args:
        recipe: A `Recipe`.
        experiments: List of `Experiment`.
        searches: Dictionary from (experiment, variant) to a `Search` whose trials are finished.
        notes: What a reader must know before the numbers.
    """
    first = next(iter(searches.values()))
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "notes": list(notes),
        "tuner": first.tuner,
        "learning_rates": str(first.learning_rates),
        "seeds": list(first.seeds),
        "versions": versions(),
        "machine": report.machine(),
        "experiments": {
            experiment.name: {
                "data": experiment.data,
                "samples": experiment.samples,
                "label_noise": experiment.label_noise,
                "epochs": experiment.epochs,
                "batch_size": experiment.batch_size,
                "baseline": experiment.baseline,
                "metric": searches[experiment.name, experiment.baseline].metric,
                "variants": {
                    variant: _summarize_search(searches[experiment.name, variant])
                    for variant in experiment.variants
                },
            }
            for experiment in experiments
        },
    }


def _summarize_search(search):
    trials = read_trials(search)
    by_rate = {}
    for index in sorted(trials):
        by_rate.setdefault(trials[index].learning_rate, []).append(trials[index])
    by_rate = dict(sorted(by_rate.items()))
    best = best_rate(by_rate, search.direction)
    return {
        "folder": search.name,
        "best": best,
        "warnings": _warnings(by_rate, best),
        "rates": [
            {
                "learning_rate": rate,
                "mark": _mark(rate, best, by_rate),
                "diverged": sum(trial.diverged for trial in tried),
                **_interval(tried),
                "seeds": [
                    {"seed": trial.seed, "score": trial.score, "diverged": trial.diverged}
                    for trial in tried
                ],
            }
            for rate, tried in by_rate.items()
        ],
    }


def best_rate(by_rate, direction):
    """Return the learning rate with the best mean score over seeds, the smaller one of equals.

    A rate at which any seed diverged is never the best. None where that leaves no rate.

    Args:
        by_rate: Dictionary from learning rate to a list of `FinishedTrial`.
        direction: "max" or "min".
    """
    sign = 1 if direction == "max" else -1
    means = {
        rate: sign * statistics.mean_interval([trial.score for trial in trials]).mean
        for rate, trials in by_rate.items()
        if not any(trial.diverged for trial in trials)
    }
    return min(means, key=lambda rate: (-means[rate], rate), default=None)


def _mark(rate, best, by_rate):
    """Say whether a rate is the best, or not told apart from it: paired by seed, at 95%."""
    if rate == best:
        return BEST
    if best is None or any(trial.diverged for trial in by_rate[rate]):
        return None
    pairs = zip(by_rate[rate], by_rate[best], strict=True)
    difference = statistics.mean_interval([one.score - other.score for one, other in pairs])
    return NOISE if difference.low <= 0 <= difference.high else None


def _interval(trials):
    """Return mean and interval over seeds; None where one diverged and a mean says nothing."""
    if any(trial.diverged for trial in trials):
        return {"mean": None, "low": None, "high": None}
    interval = statistics.mean_interval([trial.score for trial in trials])
    return {
        part: value if np.isfinite(value) else None
        for part, value in zip(("mean", "low", "high"), interval, strict=False)
    }


def _warnings(by_rate, best):
    trials = [trial for tried in by_rate.values() for trial in tried]
    diverged = sum(trial.diverged for trial in trials)
    rates = list(by_rate)
    if best is None:
        count = "Every trial" if diverged == len(trials) else "At every rate some seed"
        return [f"{count} diverged, so there is no best rate: search smaller ones."]
    warnings = []
    if 2 * diverged > len(trials):
        warnings.append(
            f"{diverged} of {len(trials)} trials diverged: search smaller rates, or look for the "
            "reason."
        )
    if len(rates) > 1 and best in (rates[0], rates[-1]):
        lower = best == rates[0]
        warnings.append(
            f"The best rate, {best:g}, is the {'smallest' if lower else 'largest'} one tried: the "
            f"optimum may lie {'below' if lower else 'above'} it. Search a wider range."
        )
    return warnings


def write(summary, folder):
    """Write `tuning.json`, and `tuning.csv` with one line a trial, into `folder`."""
    write_text(folder / "tuning.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["experiment", "variant", "learning_rate", "seed", "score", "diverged"])
    for name, experiment in summary["experiments"].items():
        for variant, found in experiment["variants"].items():
            for rate in found["rates"]:
                for trial in rate["seeds"]:
                    writer.writerow(
                        [
                            name,
                            variant,
                            rate["learning_rate"],
                            trial["seed"],
                            trial["score"],
                            int(trial["diverged"]),
                        ]
                    )
    write_text(folder / "tuning.csv", text.getvalue())


def show(summary, recipe, folder, console):
    """Print the tables, the warnings, and the lines that belong into the recipe."""
    console.print()
    console.print(Text(f"{summary['title']}: the learning rate of each variant", style="bold"))
    for note in summary["notes"]:
        console.print(note, style="bold red")
    for name, experiment in summary["experiments"].items():
        console.print()
        console.print(_heading(name, experiment, summary), highlight=False)
        console.print(_table(experiment, summary))
        for variant, found in experiment["variants"].items():
            for warning in found["warnings"]:
                console.print(f"{variant}: {warning}", style="bold yellow", highlight=False)
    console.print()
    console.print(
        f"{MARKS[BEST]} best mean; {MARKS[NOISE]} not told apart from it at 95%, paired by seed.",
        style="dim",
        highlight=False,
    )
    console.print(f"Picture, tuning.json, tuning.csv: {folder}", highlight=False, soft_wrap=True)
    console.print()
    console.print(f"Put into EXPERIMENTS of {recipe.path.name}:", highlight=False)
    for name, experiment in recipe.experiments.items():
        if name in summary["experiments"]:
            lines = lines_for_recipe(experiment, summary["experiments"][name])
            console.print(f"\n{name}\n{lines}", highlight=False, soft_wrap=True, markup=False)


def lines_for_recipe(experiment, found):
    """Return the lines that hold an experiment's learning rates in the recipe's file.

    Variants that were not searched, or have no best rate, keep the rate that they have.
    """
    best = {variant: entry["best"] for variant, entry in found["variants"].items()}
    rates = {
        variant: best.get(variant) or rate for variant, rate in experiment.learning_rates.items()
    }
    lines = [
        f'            "{variant}": {rate!r},'
        + ("" if best.get(variant, rate) else "  # No rate found: this one is as it was.")
        for variant, rate in rates.items()
    ]
    return "\n".join(['        "learning_rates": {', *lines, "        },"])


def _heading(name, experiment, summary):
    unit = "%" if experiment["metric"].endswith("accuracy") else "RMSE"
    seeds = len(summary["seeds"])
    of_seeds = f"{seeds} seeds" if seeds > 1 else "1 seed: no interval"
    return f"{name}: {wording.staging(experiment)}; validation {unit}, {of_seeds}"


def _table(experiment, summary):
    metric = experiment["metric"].removeprefix("validation_")
    seeds = len(summary["seeds"])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("learning rate", justify="right")
    cells = {}
    for variant, found in experiment["variants"].items():
        table.add_column(variant.replace("_", " "), justify="right")
        for rate in found["rates"]:
            cells[variant, rate["learning_rate"]] = _cell(rate, metric, seeds)
    for rate in sorted({rate for _, rate in cells}):
        row = [cells.get((variant, rate), "") for variant in experiment["variants"]]
        table.add_row(f"{rate:g}", *row)
    return table


def _cell(rate, metric, seeds):
    if rate["diverged"]:
        of_seeds = f"{rate['diverged']} of {seeds} " if rate["diverged"] < seeds else ""
        return Text(f"{of_seeds}diverged  ", style="red")
    style = "bold green" if rate["mark"] == BEST else ""
    text = wording.format_value(rate, metric).replace(" ± ", "±")
    return Text(f"{text} {MARKS[rate['mark']]}", style=style)
