"""Prints the index: which recipes answer a symptom, and what was measured for each."""

import shutil
import sys
import textwrap

from recipes._lab import wording
from recipes._lab.collection import catalogue

COLORS = {  # Of the terminal's own palette, so that they suit it.
    wording.SUPPORTED: 32,
    wording.NO_CLEAR_DIFFERENCE: 33,
    wording.CONTRADICTED: 31,
}
BOLD, DIM = 1, 2
WIDEST = 110


def show(entries, symptom=None):
    """Print `entries` below the first of their symptoms, or those that have `symptom`."""
    if symptom:
        groups = {symptom: [entry for entry in entries if symptom in entry.symptoms]}
    else:
        groups = {
            name: [entry for entry in entries if entry.symptoms[:1] == [name]]
            for name in catalogue.SYMPTOMS
        }
        groups["other"] = [e for e in entries if not set(e.symptoms[:1]) <= set(groups)]
        groups["other"] += [entry for entry in entries if not entry.symptoms]
    width = min(shutil.get_terminal_size().columns, WIDEST)
    indent = max(len(entry.name) for entry in entries) + 4
    for name, group in groups.items():
        if not group and not symptom:
            continue
        print(_style(name.upper(), BOLD), _style(catalogue.SYMPTOMS.get(name, ""), DIM))
        for entry in group:
            _show_entry(entry, indent, width)
        if not group:
            print("  No recipe answers this yet.")
        print()
    print(
        "The claim is a recipe's first; seconds are of training, on one core.\n"
        "python -m recipes.NAME runs a recipe; python -m recipes --help shows what else there is."
    )


def _show_entry(entry, indent, width):
    head = f"  {entry.name}".ljust(indent)
    lines = textwrap.wrap(entry.summary + ".", width - indent)
    print(_style(head, BOLD) + f"\n{' ' * indent}".join(lines))
    claim = catalogue.headline(entry.record)
    if claim is None:
        print(" " * indent + _style("not measured", DIM))
        return
    text = f"{claim['verdict']}: {catalogue.describe_effect(claim)}"
    text += f"; {catalogue.training_seconds(entry):.0f} s"
    lines = textwrap.wrap(text, width - indent)
    lines[0] = lines[0].replace(
        claim["verdict"], _style(claim["verdict"], COLORS[claim["verdict"]])
    )
    print("\n".join(" " * indent + line for line in lines))


def _style(text, code):
    return f"\x1b[{code}m{text}\x1b[0m" if text and sys.stdout.isatty() else text
