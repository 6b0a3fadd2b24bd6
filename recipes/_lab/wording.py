"""Says in words and digits what a report holds. Imports nothing heavy: the index speaks so too."""

SUPPORTED = "supported"
NO_CLEAR_DIFFERENCE = "no clear difference"
CONTRADICTED = "contradicted"
VERDICTS = (SUPPORTED, NO_CLEAR_DIFFERENCE, CONTRADICTED)


def staging(experiment):
    """Say in words what data an experiment trained on."""
    samples = f"{experiment['samples']:,}" if experiment["samples"] else "all"
    labels = f"{experiment['label_noise']:.0%} wrong" if experiment["label_noise"] else "clean"
    return (
        f"{experiment['data']}, {samples} training samples, {labels} labels, "
        f"{experiment['epochs']} epochs of batches of {experiment['batch_size']}"
    )


def describe_evidence(claim):
    """Say what was measured for a claim: "+13.2 [+11.3, +15.1] points, p < .001"."""
    p = claim["p_adjusted"]
    # A p-value of the claim says nothing more where the interval says the opposite.
    opposite = claim["verdict"] == CONTRADICTED
    if p is None or opposite or claim["difference"]["low"] == claim["difference"]["high"]:
        return describe_difference(claim)
    digits = "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")
    return f"{describe_difference(claim)}, p {digits}"


def describe_difference(claim):
    """Say how large the difference is that a claim is about: "+13.2 [+11.3, +15.1] points"."""
    difference = format_difference(claim["difference"], claim["metric"])
    unit = ""
    if _in_percent(claim["metric"]):
        unit = " points"
    elif claim["metric"].endswith("_milliseconds"):
        unit = " ms"
    value, in_every_run, _ = difference.partition(" in every run")
    return f"{value}{unit}{in_every_run}"


def count_seeds(summary):
    """Say how many seeds stand behind the report."""
    count = len(summary["seeds"])
    return f"{count} seeds, paired" if count > 1 else "1 seed: no interval, no verdict"


def main_metric(experiment):
    """Return "accuracy" or "rmse", whichever the experiment is scored by."""
    metrics = next(iter(experiment["variants"].values()))["metrics"]
    return "accuracy" if "test_accuracy" in metrics else "rmse"


def format_value(interval, metric, half_width=True):
    """Format a mean, with its half-width if asked: "94.1 ± 0.6" for accuracy in percent."""
    mean, low, high = (scale(interval[part], metric) for part in ("mean", "low", "high"))
    if mean is None:
        return "not finite"
    if low is None or not half_width:
        return _digits(mean, metric)
    return f"{_digits(mean, metric)} ± {_digits((high - low) / 2, metric)}"


def format_difference(interval, metric):
    """Format a difference with its interval: "+13.1 [+10.6, +15.6]" for accuracy in points."""
    mean, low, high = (scale(interval[part], metric) for part in ("mean", "low", "high"))
    if mean is None:
        return "not finite"
    if low is None:
        return _digits(mean, metric, sign="+")
    if low == high:
        return f"{_digits(mean, metric, sign='+' if mean else '')} in every run"
    low, high = (_digits(value, metric, sign="+") for value in (low, high))
    return f"{_digits(mean, metric, sign='+')} [{low}, {high}]"


def scale(value, metric):
    """Return accuracies and their gaps in percent and everything else as it is."""
    return value * 100 if _in_percent(metric) and value is not None else value


def _in_percent(metric):
    return metric.endswith("accuracy") or metric == "generalization_gap"


def _digits(value, metric, sign=""):
    if _in_percent(metric):
        return f"{value:{sign}.1f}"
    return f"{value:{sign}.3g}"
