"""Writes the tables of README.md from the recipes' cards and records, between its markers."""

import re

from recipes._lab.collection import catalogue, textbook
from recipes._lab.errors import UserError
from recipes._lab.runs import write_text

README = catalogue.FOLDER.parent / "README.md"


def update(path=README):
    """Write the tables into README.md and say whether anything changed."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"There is no {path}: readme is for a checkout of the project.") from None
    updated = with_tables(text, catalogue.read_all())
    if updated != text:
        write_text(path, updated)
    print(f"{path} {'is up to date' if updated == text else 'has new tables'}.")


def with_tables(text, entries):
    """Return the text with each table between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    tables = {"recipes": recipes_table(entries), "textbook claims": textbook_table(entries)}
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise UserError(f"README.md must have the markers of its table `{name}`.")
        text = pattern.sub(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", text)
    return text


def recipes_table(entries):
    """Return one line a recipe: effect of its first claim, verdict, seconds, use when."""
    rows = []
    for entry in entries:
        claim = catalogue.headline(entry.record)
        measured = ("", "not measured", "")
        if claim:
            seconds = f"{catalogue.training_seconds(entry):.0f}"
            measured = (catalogue.describe_effect(claim), claim["verdict"], seconds)
        link = f"[{entry.name}](recipes/{entry.path.name})"
        rows.append([link, *measured, entry.problem])
    head = ("recipe", "effect against baseline", "verdict", "seconds", "use when")
    return _table(head, rows)


def textbook_table(entries):
    """Return one line a textbook sentence: verdict, what was measured, the recipe that does it."""
    rows = [
        [
            sentence.text,
            sentence.verdict,
            "<br>".join(textbook.describe(entry, claim) for entry, claim in sentence.evidence),
            " ".join(f"[{e.name}](recipes/{e.path.name})" for e in sentence.recipes),
        ]
        for sentence in textbook.sentences(entries)
    ]
    return _table(("textbooks say", "verdict", "tested as, and measured", "recipe"), rows)


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
