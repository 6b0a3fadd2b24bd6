"""Draws a report: the curves of every variant, and the paired differences that decide."""

import io
import math

from recipes._lab import wording
from recipes._lab.runs import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers. The baseline is grey everywhere.
BASELINE_COLOR = "#6e6e6e"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
VERDICT_COLORS = {
    wording.SUPPORTED: "#00704f",
    wording.NO_CLEAR_DIFFERENCE: "#8a6d00",
    wording.CONTRADICTED: "#b03000",
}
METRIC_LABELS = {"accuracy": "accuracy (%)", "rmse": "RMSE"}


def draw(summary, path):
    """Draw the report `summary` into the PNG file `path`."""
    # Imported here and without pyplot, so that drawing needs no screen and leaves no state.
    from matplotlib.figure import Figure

    experiments = summary["experiments"]
    colors_of = variant_colors(experiments)
    heights = [_row_height(experiment) for experiment in experiments.values()]
    claims_height = 0.55 + 0.3 * len(summary["claims"])
    figure = Figure(figsize=(16, sum(heights) + claims_height + 0.7), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    title = " ".join([summary["title"], *(f"({note})" for note in summary["notes"])])
    figure.suptitle(title, fontsize=15, fontweight="bold", x=0.01, ha="left", wrap=True)
    rows = figure.subfigures(
        len(heights) + 1, 1, height_ratios=[claims_height, *heights], squeeze=False
    )[:, 0]
    _write_claims(rows[0], summary)
    for row, (name, experiment) in zip(rows[1:], experiments.items(), strict=True):
        row.suptitle(f"{name}: {wording.staging(experiment)}", fontsize=10, x=0.01, ha="left")
        colors = colors_of[name]
        score = wording.main_metric(experiment)
        axes = row.subplots(1, 4, width_ratios=[1, 1, 1, 1.45])
        _draw_curves(axes[0], experiment, "loss", colors)
        _draw_curves(axes[1], experiment, score, colors)
        _draw_gradient_norms(axes[2], experiment, colors)
        _draw_differences(axes[3], experiment, f"test_{score}", colors, summary)
    save(figure, path)


def put_legends_beside(figure):
    """Move each legend to the right of its axes, where it hides no curve."""
    for axes in figure.axes:
        if axes.get_legend() is not None:
            axes.get_legend().set_loc("upper left")
            axes.get_legend().set_bbox_to_anchor((1.0, 1.0), axes.transAxes)


def save(figure, path):
    """Write a figure into a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def variant_colors(experiments):
    """Return the color of each variant in each experiment: the same one wherever it appears.

    Variants that meet in an experiment have different colors, as long as there are enough.
    """
    baselines = {experiment["baseline"] for experiment in experiments.values()}
    names = dict.fromkeys(v for e in experiments.values() for v in e["variants"])
    others = [name for name in names if name not in baselines]
    others += [name for name in names if name in baselines]
    colors = {}
    for name in others:
        meets = {
            other
            for experiment in experiments.values()
            if name in experiment["variants"] and name != experiment["baseline"]
            for other in experiment["variants"]
            if other != experiment["baseline"]  # Which is grey, whatever its color elsewhere.
        }
        met = [colors[other] for other in meets if other in colors]
        # The first of the colors that meet it least, and then of those that are used least.
        _, _, place = min(
            (met.count(color), list(colors.values()).count(color), place)
            for place, color in enumerate(COLORS)
        )
        colors[name] = COLORS[place]
    return {
        name: {**colors, experiment["baseline"]: BASELINE_COLOR}
        for name, experiment in experiments.items()
    }


def _row_height(experiment):
    return max(2.9, 1.3 + 0.42 * len(experiment["variants"]))


def _draw_curves(axes, experiment, metric, colors):
    """Draw validation curves with their 95% bands, and training curves as thin dashed lines."""
    for variant, entry in experiment["variants"].items():
        for part, style in (("train", "--"), ("validation", "-")):
            curve = entry["curves"][f"{part}_{metric}"]
            mean, low, high = (
                [_or_nan(wording.scale(value, metric)) for value in curve[name]]
                for name in ("mean", "low", "high")
            )
            epochs = range(len(mean))
            solid = part == "validation"
            axes.plot(epochs, mean, style, color=colors[variant], linewidth=1.8 if solid else 1.0)
            if solid:
                axes.fill_between(epochs, low, high, color=colors[variant], alpha=0.18, linewidth=0)
    axes.set_xlabel("epoch")
    label = METRIC_LABELS.get(metric, metric)
    axes.set_title(f"{label}: validation solid, training dashed", fontsize=9)
    axes.margins(x=0)
    _set_plain_frame(axes)


def _draw_gradient_norms(axes, experiment, colors):
    """Draw the gradient norm of each layer, from first to last: first epoch and last epoch."""
    for variant, entry in experiment["variants"].items():
        layers = list(entry["gradient_norms"])
        for epoch, style in ((0, ":"), (-1, "-")):
            of_layers = [entry["gradient_norms"][layer] for layer in layers]
            mean, low, high = (
                [_or_nan(curve[name][epoch]) for curve in of_layers]
                for name in ("mean", "low", "high")
            )
            positions = range(1, len(layers) + 1)
            axes.plot(positions, mean, style, color=colors[variant], marker="o", markersize=3)
            if epoch == -1:
                axes.fill_between(
                    positions, low, high, color=colors[variant], alpha=0.18, linewidth=0
                )
    axes.set_yscale("log")
    axes.set_xlabel("layer, first to last")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("gradient norm: last epoch solid, first dotted", fontsize=9)
    _set_plain_frame(axes)


def _draw_differences(axes, experiment, metric, colors, summary):
    """Draw each variant's paired difference from the baseline: seeds, mean and interval."""
    axes.axvline(0, color=BASELINE_COLOR, linewidth=1.5)
    variants = list(experiment["variants"])
    for row, variant in enumerate(variants):
        entry = experiment["variants"][variant]
        label = wording.format_value(entry["metrics"][metric], metric.removeprefix("test_"))
        difference = entry["differences"].get(metric)
        if difference is None:
            text = f"baseline: {label}"
            axes.annotate(text, (0, row), (6, 0), textcoords="offset points", va="center", size=9)
            continue
        values = [wording.scale(v, metric) for v in difference["values"] if v is not None]
        axes.plot(values, [row + 0.22] * len(values), ".", color=colors[variant], alpha=0.6)
        mean, low, high = (wording.scale(difference[k], metric) for k in ("mean", "low", "high"))
        if mean is None:
            continue
        if low is not None:
            axes.plot([low, high], [row, row], color=colors[variant], linewidth=3)
        axes.plot(mean, row, "o", color=colors[variant], markersize=8)
        axes.annotate(
            wording.format_difference(difference, metric),
            (mean, row),
            (0, 9),
            textcoords="offset points",
            ha="center",
            size=9,
            color=colors[variant],
        )
    labels = [
        f"{name.replace('_', ' ')}\n{_describe_rates(experiment['variants'][name])}"
        for name in variants
    ]
    axes.set_yticks(range(len(variants)), labels, fontsize=9)
    for tick, variant in zip(axes.get_yticklabels(), variants, strict=True):
        tick.set_color(colors[variant])
        tick.set_fontweight("bold")
    axes.set_ylim(len(variants) - 0.5, -0.6)
    axes.margins(x=0.25)  # Room for the labels of what lies outermost.
    unit = "points" if metric.endswith("accuracy") else "original units"
    axes.set_xlabel(f"difference from the baseline ({unit}), {wording.count_seeds(summary)}")
    axes.set_title(metric.replace("_", " "), fontsize=9)
    _set_plain_frame(axes)


def _describe_rates(entry):
    """Say which learning rates a variant used."""
    rates = [rate for rate in entry["learning_rates"]["mean"] if rate is not None]
    low, high = min(rates), max(rates)
    return f"learning rate {low:.3g}" + ("" if low == high else f" to {high:.3g}")


def _or_nan(value):
    return math.nan if value is None else value


def _set_plain_frame(axes):
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def _write_claims(row, summary):
    """Write each claim with its measured difference and its verdict."""
    if not summary["claims"]:
        return
    axes = row.subplots()
    axes.set_axis_off()
    lines = len(summary["claims"])
    axes.set_ylim(lines, -0.5)
    axes.set_xlim(0, 1)
    for line, claim in enumerate(summary["claims"]):
        color = VERDICT_COLORS[claim["verdict"]]
        axes.text(0.0, line, claim["verdict"], color=color, fontweight="bold", size=10, va="center")
        axes.text(0.15, line, claim["text"], size=10, va="center")
        evidence = wording.describe_evidence(claim)
        axes.text(1.0, line, evidence, size=10, va="center", ha="right")
