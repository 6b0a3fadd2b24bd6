"""Turns finished runs into what a person reads: the table, report.json and the CSV files."""

import csv
import io
import json
import math
import os
import platform
from collections import defaultdict

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from recipes._lab import statistics
from recipes._lab.runs import versions, write_text
from recipes._lab.wording import (
    count_seeds,
    describe_evidence,
    format_difference,
    format_value,
    main_metric,
    staging,
)

REPORT = "report.json"

VERDICT_STYLES = {
    statistics.SUPPORTED: "bold green",
    statistics.NO_CLEAR_DIFFERENCE: "bold yellow",
    statistics.CONTRADICTED: "bold red",
}


def summarize(recipe, experiments, runs, results, notes=()):
    """Return the whole report as plain numbers, lists and dictionaries.

    Args:
        recipe: A `Recipe`.
        experiments: The list of `Experiment` that was run.
        runs: The list of `Run`.
        results: Dictionary from run key to result.
        notes: Sentences that a reader must know before the numbers.
    """
    by_variant = defaultdict(list)
    for run in runs:
        by_variant[run.experiment, run.variant].append(results[run.key])
    seeds = sorted({run.seed for run in runs})
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "notes": list(notes),
        "seeds": seeds,
        "versions": versions(),
        "machine": machine(),
        "experiments": {
            experiment.name: _summarize_experiment(recipe, experiment, by_variant)
            for experiment in experiments
        },
        "claims": _judge_claims(recipe.claims, experiments, by_variant),
        "seconds": {
            experiment.name: {
                variant: _mean([r["seconds"] for r in by_variant[experiment.name, variant]])
                for variant in experiment.variants
            }
            for experiment in experiments
        },
    }


def machine():
    """Describe this machine in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()}, {cores} cores"


def _summarize_experiment(recipe, experiment, by_variant):
    baseline = by_variant[experiment.name, experiment.baseline]
    variants = {}
    for variant in experiment.variants:
        results = by_variant[experiment.name, variant]
        variants[variant] = {
            "arguments": {**experiment.arguments, **recipe.variants[variant]},
            "learning_rate": experiment.learning_rates[variant],
            "parameters": results[0]["parameters"],
            "diverged": int(sum(r["metrics"]["diverged"] for r in results)),
            "metrics": {
                metric: _interval([r["metrics"][metric] for r in results])
                for metric in results[0]["metrics"]
            },
            "differences": {
                metric: _interval(_differences(results, baseline, metric, metric))
                for metric in results[0]["metrics"]
                if variant != experiment.baseline
            },
            "curves": {
                name: _curve([r["curves"][name] for r in results]) for name in results[0]["curves"]
            },
            # Layers in the model's order; means over the steps of each epoch.
            "gradient_norms": {
                layer: _curve(
                    [_epoch_means(r, r["gradient_norm_of_layer"][layer]) for r in results]
                )
                for layer in results[0]["gradient_norm_of_layer"]
            },
            "learning_rates": _curve(
                [_epoch_means(r, r["steps"]["learning_rate"]) for r in results]
            ),
        }
    return {
        "data": experiment.data,
        "samples": experiment.samples,
        "label_noise": experiment.label_noise,
        "epochs": experiment.epochs,
        "batch_size": experiment.batch_size,
        "baseline": experiment.baseline,
        "variants": variants,
    }


def _differences(results, others, metric, other_metric):
    return [
        one["metrics"][metric] - other["metrics"][other_metric]
        for one, other in zip(results, others, strict=True)
    ]


def _judge_claims(claims, experiments, by_variant):
    run = {(e.name, variant) for e in experiments for variant in e.variants}
    judged = []
    for claim in claims:
        sides = (claim.experiment, claim.variant), (claim.experiment, claim.against)
        if not run.issuperset(sides):
            continue
        differences = _differences(
            by_variant[sides[0]],
            by_variant[sides[1]],
            claim.metric,
            claim.against_metric or claim.metric,
        )
        p_value = statistics.claim_p_value(differences, claim.direction, claim.at_least)
        judged.append((claim, differences, p_value))
    adjusted = statistics.holm([p_value for _, _, p_value in judged])
    return [
        {
            "text": claim.text,
            "textbook": claim.textbook,
            "against_textbook": claim.against_textbook,
            "experiment": claim.experiment,
            "variant": claim.variant,
            "against": claim.against,
            "metric": claim.metric,
            "against_metric": claim.against_metric or claim.metric,
            "direction": claim.direction,
            "at_least": claim.at_least,
            "difference": _interval(differences),
            "p": _plain(p_value),
            "p_adjusted": _plain(adjusted_p),
            "verdict": statistics.judge(differences, claim.direction, claim.at_least, adjusted_p),
        }
        for (claim, differences, p_value), adjusted_p in zip(judged, adjusted, strict=True)
    ]


def _epoch_means(result, values):
    """Return the mean of `values`, one for each step, over each epoch."""
    epochs = np.array(result["steps"]["epoch"])
    return [_mean(np.array(values)[epochs == epoch]) for epoch in range(1, max(epochs) + 1)]


def _interval(values):
    interval = statistics.mean_interval(values)
    return {
        "mean": _plain(interval.mean),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "values": [_plain(value) for value in values],
    }


def _curve(curves):
    # A run that stopped early has a shorter curve: the mean goes as far as all runs do.
    columns = [statistics.mean_interval(values) for values in zip(*curves, strict=False)]
    return {part: [_plain(getattr(c, part)) for c in columns] for part in ("mean", "low", "high")}


def _plain(value):
    """Return a float that JSON can hold: None stands for a value that is not finite."""
    return float(value) if math.isfinite(value) else None


def _mean(values):
    return float(np.mean(values))


def write(summary, runs, results, folder):
    """Write `epochs.csv`, `steps.csv` and, last, `report.json` into `folder`."""
    write_text(folder / "epochs.csv", _epochs_table(runs, results))
    write_text(folder / "steps.csv", _steps_table(runs, results))
    write_text(folder / REPORT, _as_json(summary))


def is_written(summary, folder):
    """Return whether `report.json` in `folder` is that of `summary` already."""
    try:
        return (folder / REPORT).read_text(encoding="utf-8") == _as_json(summary)
    except (OSError, UnicodeDecodeError):
        return False


def _as_json(summary):
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def _epochs_table(runs, results):
    """One line a run and epoch. Epoch 0 is the untrained model, which has no `fit_loss`."""
    # An accuracy in one experiment can be an RMSE in another.
    names = list(dict.fromkeys(name for run in runs for name in results[run.key]["curves"]))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["experiment", "variant", "seed", "epoch", *names])
    for run in runs:
        curves = results[run.key]["curves"]
        for epoch in range(len(curves["fit_loss"])):
            values = [curves[name][epoch] if name in curves else math.nan for name in names]
            row = ["" if math.isnan(value) else value for value in values]
            writer.writerow([run.experiment, run.variant, run.seed, epoch, *row])
    return text.getvalue()


def _steps_table(runs, results):
    """One line a run and step: learning rate, and gradient norms of the whole and of each layer."""
    of_layers = [results[run.key]["gradient_norm_of_layer"] for run in runs]
    layers = list(dict.fromkeys(layer for norms in of_layers for layer in norms))
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ["experiment", "variant", "seed", "epoch", "step", "learning_rate", "gradient_norm"]
    writer.writerow([*columns, *(f"gradient_norm_{layer}" for layer in layers)])
    for run, norms in zip(runs, of_layers, strict=True):
        steps = results[run.key]["steps"]
        rows = zip(steps["epoch"], steps["learning_rate"], steps["gradient_norm"], strict=True)
        for step, (epoch, rate, norm) in enumerate(rows):
            of_step = [norms[layer][step] if layer in norms else "" for layer in layers]
            writer.writerow(
                [run.experiment, run.variant, run.seed, epoch, step, rate, norm, *of_step]
            )
    return text.getvalue()


def write_tensorboard(runs, results, folder):
    """Write every run's curves as scalars below `folder`, one log directory a run."""
    import tensorflow as tf

    for run in runs:
        path = folder / run.experiment / run.variant / f"seed{run.seed}"
        with tf.summary.create_file_writer(str(path)).as_default():
            for name, values in results[run.key]["curves"].items():
                for epoch, value in enumerate(values):
                    tf.summary.scalar(name, value, step=epoch)
            for name in ("learning_rate", "gradient_norm"):
                for step, value in enumerate(results[run.key]["steps"][name]):
                    tf.summary.scalar(f"{name}_of_step", value, step=step)


def show(summary, folder, console):
    """Print the report as tables."""
    console.print()
    console.print(Text(summary["title"], style="bold"))
    for note in summary["notes"]:
        console.print(note, style="bold red")
    for name, experiment in summary["experiments"].items():
        console.print()
        score = "accuracy in %" if main_metric(experiment) == "accuracy" else "RMSE"
        console.print(
            f"[bold]{name}[/bold]: {staging(experiment)}; {count_seeds(summary)}; mean {score}, "
            "difference from the baseline with 95% interval",
            highlight=False,
        )
        console.print(_experiment_table(name, experiment, summary))
    console.print(_claims_table(summary))
    found = ", ".join(f"{package} {version}" for package, version in summary["versions"].items())
    console.print(f"Measured with {found}; {summary['machine']}.", style="dim", highlight=False)
    console.print(
        f"Picture, report.json, epochs.csv, steps.csv: {folder}", highlight=False, soft_wrap=True
    )


def _experiment_table(name, experiment, summary):
    """One line a variant; narrow enough for a terminal of 80 columns."""
    score = main_metric(experiment)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("variant", no_wrap=True)
    for heading in ("rate", "train", "validation", "test", "test difference", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant, entry in experiment["variants"].items():
        difference = entry["differences"].get(f"test_{score}")
        table.add_row(
            variant + (f" ({entry['diverged']} diverged)" if entry["diverged"] else ""),
            f"{entry['learning_rate']:g}",
            *(
                format_value(entry["metrics"][f"{part}_{score}"], score, half_width=False)
                for part in ("train", "validation", "test")
            ),
            format_difference(difference, score) if difference else "baseline",
            f"{summary['seconds'][name][variant]:.1f}",
        )
    return table


def _claims_table(summary):
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for claim in summary["claims"]:
        table.add_row(
            Text(claim["verdict"], style=VERDICT_STYLES[claim["verdict"]]),
            f"{claim['text']}: {describe_evidence(claim)}",
        )
    return table
