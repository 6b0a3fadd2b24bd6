"""Sentences of the textbooks, each with what was measured for it."""

import shutil
import textwrap

from recipes._lab import wording


def claims(entries):
    """Return pairs of `Entry` and recorded claim, for claims that test a textbook's sentence."""
    return [
        (entry, claim)
        for entry in entries
        if entry.record
        for claim in entry.record["claims"]
        if claim.get("textbook")
    ]


def show(entries):
    """Print each sentence with what was measured, grouped by verdict."""
    found = claims(entries)
    if not found:
        print("No recorded claim tests a textbook's sentence yet.")
    width = min(shutil.get_terminal_size().columns, 110)
    for verdict in wording.VERDICTS:
        of_verdict = [(entry, claim) for entry, claim in found if claim["verdict"] == verdict]
        if of_verdict:
            print(f"{verdict.upper()}\n")
        for entry, claim in of_verdict:
            measured = f"{entry.name}: {claim['text']}: {wording.describe_evidence(claim)}."
            print(
                textwrap.fill(claim["textbook"], width, initial_indent="  ", subsequent_indent="  ")
            )
            print(textwrap.fill(measured, width, initial_indent="    ", subsequent_indent="    "))
            print()
