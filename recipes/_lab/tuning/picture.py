"""Draws a search: validation score against learning rate, one line a variant."""

import io

from recipes._lab import picture, wording
from recipes._lab.runs import write_bytes

COLUMNS = 2


def draw(summary, path):
    """Draw the outcome `summary` of a search into the PNG file `path`."""
    # Imported here and without pyplot, so that drawing needs no screen and leaves no state.
    from matplotlib.figure import Figure

    experiments = summary["experiments"]
    columns = min(COLUMNS, len(experiments))
    rows = -(-len(experiments) // columns)
    figure = Figure(figsize=(7.2 * columns, 4.6 * rows + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    title = f"{summary['title']}: the learning rate of each variant"
    title = " ".join([title, *(f"({note})" for note in summary["notes"])])
    figure.suptitle(title, fontsize=15, fontweight="bold", x=0.01, ha="left", wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one, (name, experiment) in zip(axes, experiments.items(), strict=False):
        _draw_experiment(one, name, experiment, summary)
    for unused in axes[len(experiments) :]:
        unused.set_axis_off()
    buffer = io.BytesIO()
    # No software or date in the file: the same search gives the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _draw_experiment(axes, name, experiment, summary):
    metric = experiment["metric"].removeprefix("validation_")
    colors = picture.variant_colors(summary["experiments"])[name]
    scores = [
        wording.scale(trial["score"], metric)
        for found in experiment["variants"].values()
        for rate in found["rates"]
        for trial in rate["seeds"]
        if not trial["diverged"]
    ]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    margin = 0.06 * (high - low) or 1.0
    # Intervals of few seeds are wide; the axis shows what was measured. Crosses for what diverged
    # stand at its bad end.
    bad_end = (high + margin, margin / 3) if metric == "rmse" else (low - margin, -margin / 3)
    axes.set_ylim(min(low, bad_end[0]) - margin, max(high, bad_end[0]) + margin)
    for number, (variant, found) in enumerate(experiment["variants"].items()):
        color = colors[variant]
        # Side by side, so that no interval hides another.
        shift = 1.0 + 0.03 * (number - (len(experiment["variants"]) - 1) / 2)
        _draw_variant(axes, found, metric, color, shift, bad_end)
        best = f"best {found['best']:g}" if found["best"] else "none trains"
        axes.plot([], [], "o-", color=color, label=f"{variant.replace('_', ' ')}: {best}")
    axes.plot([], [], "*", color="black", markersize=13, label="best")
    axes.plot([], [], "x", color="black", label="diverged")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    seeds = len(summary["seeds"])
    interval = f"mean and 95% interval of {seeds} seeds" if seeds > 1 else "1 seed"
    axes.set_ylabel(f"validation {picture.METRIC_LABELS[metric]}, {interval}")
    axes.set_title(f"{name}: {wording.staging(experiment)}", fontsize=9, loc="left", wrap=True)
    axes.legend(fontsize=8, frameon=False, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def _draw_variant(axes, found, metric, color, shift, bad_end):
    rates = [rate["learning_rate"] * shift for rate in found["rates"]]
    entries = list(zip(rates, found["rates"], strict=True))
    means = [wording.scale(entry["mean"], metric) for entry in found["rates"]]
    # A rate at which a seed diverged has no mean: the line has a gap there.
    axes.plot(rates, [float("nan") if m is None else m for m in means], "o-", color=color, ms=5)
    for rate, entry in entries:
        if entry["low"] is not None:
            interval = [wording.scale(entry[part], metric) for part in ("low", "high")]
            axes.plot([rate, rate], interval, color=color, linewidth=1.5, alpha=0.55)
        if entry["learning_rate"] == found["best"]:
            best = wording.scale(entry["mean"], metric)
            axes.plot(rate, best, "*", color=color, markersize=17, markeredgecolor="white")
        finite = [trial["score"] for trial in entry["seeds"] if not trial["diverged"]]
        values = [wording.scale(score, metric) for score in finite]
        axes.plot([rate] * len(values), values, ".", color=color, markersize=3, alpha=0.7)
        # The more seeds diverged, the more crosses.
        start, step = bad_end
        heights = [start + step * seed for seed in range(entry["diverged"])]
        axes.plot([rate] * len(heights), heights, "x", color=color, markersize=7)
