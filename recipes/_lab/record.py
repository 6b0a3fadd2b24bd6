"""Keeps a recipe's measured result in the repository, and writes it into the recipe's card.

`python -m recipes.dropout --record` does both. The record is the report without its curves, small
enough for version control. `Measured:` in the card is made from it and from nothing else.
"""

import json
import textwrap

from recipes._lab import wording
from recipes._lab.recipe import code_fingerprint, record_path
from recipes._lab.runs import write_text

CARD_WIDTH = 100
CARD_INDENT = " " * 12


def fingerprint(recipe_path):
    """Hash the recipe: its code, variants, experiments and claims, but not its text."""
    return code_fingerprint(recipe_path.read_text(encoding="utf-8"), without=("SYMPTOMS",))


def write(summary, recipe_path):
    """Write the record of `summary`, and the result into the card of the recipe."""
    record = {"fingerprint": fingerprint(recipe_path), **summary}
    record["experiments"] = {
        name: {**experiment, "variants": _without_curves(experiment["variants"])}
        for name, experiment in summary["experiments"].items()
    }
    write_text(record_path(recipe_path), json.dumps(record, indent=1, allow_nan=False) + "\n")
    source = recipe_path.read_text(encoding="utf-8")
    write_text(recipe_path, with_measured(source, measured(record)))


def _without_curves(variants):
    curves = ("curves", "gradient_norms", "learning_rates")
    return {
        name: {key: value for key, value in variant.items() if key not in curves}
        for name, variant in variants.items()
    }


def read(recipe_path):
    """Return the record of a recipe."""
    return json.loads(record_path(recipe_path).read_text(encoding="utf-8"))


def measured(record):
    """Return the text of the card's section `Measured:`, one paragraph a claim."""
    versions = record["versions"]
    lines = [
        f"{claim['verdict'].capitalize()}: {claim['text']} ({wording.describe_evidence(claim)})."
        for claim in record["claims"]
    ]
    lines.append(
        f"Mean difference [95% interval] over {len(record['seeds'])} paired seeds, p after Holm. "
        f"Keras {versions['keras']}, TensorFlow {versions['tensorflow']}, {record['machine']}."
    )
    return "\n".join(
        textwrap.fill(
            line,
            CARD_WIDTH,
            initial_indent=CARD_INDENT,
            subsequent_indent=CARD_INDENT + "  ",
            break_long_words=False,
        )
        for line in lines
    )


def with_measured(source, text):
    """Return the recipe's source with `text` as the last section of its card."""
    head, heading, rest = source.partition("\nMeasured:")
    _, quotes, code = rest.partition('"""')
    if not heading or not quotes:
        raise ValueError("The card's last section must be `Measured:`.")
    return f'{head}{heading}   {text.strip()}\n"""{code}'
