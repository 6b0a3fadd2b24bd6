"""Sentences of the textbooks, and how true each turned out to be."""

import shutil
import textwrap
from dataclasses import dataclass

from recipes._lab import wording

TRUE, HALF_TRUE, FALSE, NOT_SHOWN = VERDICTS = ("true", "half true", "false", "not shown")
MEANING = {
    TRUE: "every claim that tests it bears it out",
    HALF_TRUE: "it holds in one setting and not in another",
    FALSE: "no claim bears it out, and at least one says the opposite",
    NOT_SHOWN: "no clear difference either way",
}


@dataclass(frozen=True)
class Sentence:
    """One sentence, with the recorded claims that settle it.

    Attributes:
        text: The sentence.
        evidence: List of pairs of `Entry` and claim. The sentence is as true as a claim that
            names it as its `textbook`, and as false as one that names it as `against_textbook`.
    """

    text: str
    evidence: list

    @property
    def verdict(self):
        votes = {self._vote(claim) for _, claim in self.evidence}
        if votes == {1}:
            return TRUE
        if 1 in votes:
            return HALF_TRUE
        return FALSE if -1 in votes else NOT_SHOWN

    @property
    def recipes(self):
        """The recipes that the claims are from, each once."""
        return list({entry.name: entry for entry, _ in self.evidence}.values())

    def _vote(self, claim):
        sign = 1 if claim.get("textbook") == self.text else -1
        return sign * {wording.SUPPORTED: 1, wording.CONTRADICTED: -1}.get(claim["verdict"], 0)


def sentences(entries):
    """Return every `Sentence` that recorded claims settle, true ones first."""
    evidence = {}
    for entry in entries:
        for claim in entry.record["claims"] if entry.record else ():
            for key in ("textbook", "against_textbook"):
                if claim.get(key):
                    evidence.setdefault(claim[key], []).append((entry, claim))
    found = [Sentence(text, pairs) for text, pairs in evidence.items()]
    return sorted(found, key=lambda sentence: VERDICTS.index(sentence.verdict))


def describe(entry, claim):
    """Say what was measured for a sentence, in one line."""
    return f"{claim['text']}: {claim['verdict']}, {wording.describe_evidence(claim)}"


def show(entries):
    """Print each sentence with its verdict, what was measured, and the command that does it."""
    found = sentences(entries)
    if not found:
        print("No recorded claim tests a textbook's sentence yet.")
    width = min(shutil.get_terminal_size().columns, 110)
    for verdict in VERDICTS:
        of_verdict = [sentence for sentence in found if sentence.verdict == verdict]
        if of_verdict:
            print(f"{verdict.upper()}: {MEANING[verdict]}\n")
        for sentence in of_verdict:
            print(_fill(sentence.text, width, "  "))
            for entry, claim in sentence.evidence:
                print(_fill(f"{describe(entry, claim)}.", width, "    "))
            for entry in sentence.recipes:
                print(f"    python -m recipes.{entry.name}")
            print()


def _fill(text, width, indent):
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
