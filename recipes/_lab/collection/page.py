"""Writes one HTML page about all recipes, from their records and the runs at hand.

The page holds all that it shows: it needs no network, and no program but a browser.
"""

import base64
import io
import json
import re
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from recipes._lab import wording
from recipes._lab.collection import catalogue, notebook, textbook
from recipes._lab.errors import UserError
from recipes._lab.recipe import CARD_SECTIONS
from recipes._lab.runs import check_writable, write_text

TEMPLATE = Path(__file__).with_name("page.html")
PICTURE_WIDTH = 1400  # Pixels: enough to read, and small enough for a page with all of them.
PICTURE_COLORS = 128
SYMBOLS = {wording.SUPPORTED: "✓", wording.NO_CLEAR_DIFFERENCE: "≈", wording.CONTRADICTED: "✗"}


def write(runs, path):
    """Write the page into the file `path`, with what the folder `runs` holds."""
    check_writable("--out", path.parent)
    if path.is_dir():
        raise UserError(f"--out must be a file. Received: {path}")
    entries = catalogue.read_all()
    local = {entry.name: read_run(runs / entry.name) for entry in entries}
    pictures = {entry.name: read_pictures(runs / entry.name, entry.name) for entry in entries}
    write_text(path, render(entries, local, pictures))
    found = sum(report is not None for report in local.values())
    print(f"Written: {path}. It has {len(entries)} recipes; {found} of them have runs in {runs}.")


def read_run(folder):
    """Return the report of a recipe that ran here, or None."""
    path = folder / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run the recipe again.") from error


def read_pictures(folder, name):
    """Return the pictures of a recipe that ran here, each as the address of an image."""
    pictures = []
    for path in (folder / f"{name}.png", folder / f"{name}-illustration.png"):
        if path.exists():
            image = Image.open(path).convert("RGB")
            image.thumbnail((PICTURE_WIDTH, image.height), Image.Resampling.LANCZOS)
            content = io.BytesIO()
            image.quantize(PICTURE_COLORS).save(content, "PNG", optimize=True)
            encoded = base64.b64encode(content.getvalue()).decode()
            pictures.append((f"data:image/png;base64,{encoded}", image.size))
    return pictures


def render(entries, local, pictures):
    """Return the page as text.

    Args:
        entries: List of `Entry`.
        local: Dictionary from name to the report of a run at hand, or None.
        pictures: Dictionary from name to a list of pairs of image address and size in pixels.
    """
    shown = [Shown(entry, local[entry.name], pictures[entry.name]) for entry in entries]
    counts = {
        symptom: sum(symptom in entry.symptoms for entry in entries)
        for symptom in catalogue.SYMPTOMS
    }
    sentences = _textbook(entries)
    parts = {"claims": "claims", "textbooks": "textbook claims", "recipes": "recipes"}
    texts = {symptom: catalogue.SYMPTOMS[symptom] for symptom in counts if counts[symptom]}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        introduction=_introduction(shown),
        filters="\n".join(
            [_filter("", "all", len(entries)), *(_filter(s, s, counts[s]) for s in texts)]
        ),
        shown=f"{len(entries)} recipes.",
        claims="\n".join(row for recipe in shown for row in recipe.claim_rows()),
        textbook=sentences,
        parts="\n".join(
            f'<a href="#{part}">{label}</a>'
            for part, label in parts.items()
            if part != "textbooks" or sentences
        ),
        articles="\n".join(recipe.article() for recipe in shown),
        symptoms=json.dumps(texts).replace("<", "\\u003c"),
    )


def _introduction(shown):
    claims = [claim for recipe in shown for claim in recipe.claims]
    measured = sum(recipe.report is not None for recipe in shown)
    return escape(
        f"Each recipe trains a baseline and one technique on the same seeds, and says whether the "
        f"technique did what is claimed for it. {measured} of {len(shown)} recipes are measured, "
        f"with {len(claims)} claims: {catalogue.count_verdicts(claims) or 'none yet'}."
    )


def _filter(value, label, count):
    checked = "" if value else " checked"
    return (
        f'<label><input type="radio" name="symptom" value="{escape(value)}"{checked}>'
        f"<span>{escape(label)} ({count})</span></label>"
    )


def _textbook(entries):
    rows = []
    for sentence in textbook.sentences(entries):
        symptoms = sorted({symptom for entry in sentence.recipes for symptom in entry.symptoms})
        measured = "<br>".join(
            escape(textbook.describe(entry, claim)) for entry, claim in sentence.evidence
        )
        links = " ".join(f'<a href="#{e.name}">{e.name}</a>' for e in sentence.recipes)
        rows.append(
            f'<tr data-symptoms="{escape(", ".join(symptoms))}">'
            f"<td>{escape(sentence.text)}</td><td>{escape(sentence.verdict)}</td>"
            f"<td>{measured}</td><td>{links}</td></tr>"
        )
    if not rows:
        return ""
    return "\n".join(
        [
            '<h2 id="textbooks">What textbooks say</h2>\n<table>\n<thead><tr>'
            '<th scope="col">textbooks say</th><th scope="col">verdict</th>'
            '<th scope="col">tested as, and measured</th><th scope="col">recipe</th>'
            "</tr></thead>\n<tbody>",
            *rows,
            "</tbody>\n</table>",
        ]
    )


def _with_code(text):
    """Return text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _verdict(claim):
    verdict = claim["verdict"]
    kind = verdict.replace(" ", "-")
    return f'<span class="verdict {kind}">{SYMBOLS[verdict]} {verdict}</span>'


class Shown:
    """A recipe on the page: as recorded, or as run here where there is no record."""

    def __init__(self, entry, local, pictures):
        self.entry = entry
        self.report = entry.record or local
        self.claims = self.report["claims"] if self.report else []
        self.local = local
        self.pictures = pictures
        self.symptoms = escape(", ".join(entry.symptoms))

    def claim_rows(self):
        """Return the recipe's lines of the table of claims."""
        link = f'<a href="#{self.entry.name}">{self.entry.name}</a>'
        opening = f'<tr data-symptoms="{self.symptoms}"><td>{link}</td>'
        if not self.claims:
            return [f'{opening}<td class="quiet">not measured</td><td></td><td></td></tr>']
        here = {claim["text"]: claim for claim in (self.local or {}).get("claims", [])}
        ranges = self._ranges()
        return [
            f"{opening}<td>{_verdict(claim)}</td><td>{escape(claim['text'])}</td>"
            f'<td class="number">{_interval(claim, ranges[claim["metric"]])}'
            f"{escape(wording.describe_evidence(claim))}"
            f"{self._measured_here(claim, here.get(claim['text']))}</td></tr>"
            for claim in self.claims
        ]

    def _measured_here(self, recorded, claim):
        if claim is None or self.report is self.local:
            return ""
        evidence = wording.describe_evidence(claim)
        if (claim["verdict"], evidence) == (
            recorded["verdict"],
            wording.describe_evidence(recorded),
        ):
            text = "here: the same"
        else:
            text = f"here: {claim['verdict']}, {evidence}"
        text += "; a smoke run" if self.local["notes"] else ""
        return f'<br><span class="quiet">{escape(text)}</span>'

    def _ranges(self):
        """Return the largest value of each metric's intervals: their common scale."""
        ranges = {}
        for claim in self.claims:
            ends = [claim["difference"][part] or 0.0 for part in ("mean", "low", "high")]
            largest = max(map(abs, ends))
            ranges[claim["metric"]] = max(ranges.get(claim["metric"], 0.0), largest)
        return ranges

    def article(self):
        """Return the recipe's card, pictures and command."""
        entry = self.entry
        sections = {
            name: _with_code(" ".join(entry.card[name].split()))
            for name in CARD_SECTIONS
            if entry.card.get(name) and name not in ("Measured", "Run")
        }
        card = "\n".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in sections.items())
        measured = "".join(
            f"<li>{escape(text)}</li>"
            for text in notebook.paragraphs(entry.card.get("Measured", ""))
        )
        figures = "\n".join(
            f'<figure tabindex="0"><img src="{address}" width="{size[0]}" height="{size[1]}" '
            f'loading="lazy" alt="{escape(entry.name)}: curves, gradient norms and paired '
            f'differences of every variant; the table of claims says what they show."></figure>'
            for address, size in self.pictures
        )
        return f"""<article id="{entry.name}" data-symptoms="{self.symptoms}">
<h3>{escape(entry.title)}</h3>
<p class="tag">{self.symptoms or "no symptom"}; {escape(self._source())}</p>
<div class="command"><code>python -m recipes.{entry.name}</code></div>
<details open><summary>Card</summary><dl>
{card}
</dl></details>
{figures}
<details><summary>Measured</summary><ul>{measured}</ul></details>
</article>"""

    def _source(self):
        if self.report is None:
            return "not measured"
        versions = self.report["versions"]
        where = "run here" if self.report is self.local else "recorded"
        text = (
            f"{where}: {wording.count_seeds(self.report)}, Keras {versions['keras']}, TensorFlow "
            f"{versions['tensorflow']}, {self.report['machine']}"
        )
        if self.local is not None and self.report is not self.local:
            text += ". The picture is of the run here" if self.pictures else ""
            text += "".join(f". {note}" for note in self.local["notes"])
        return text


def _interval(claim, largest):
    """Return a small picture of an interval about zero; the text beside it says the same."""
    difference = claim["difference"]
    if difference["mean"] is None or difference["low"] is None or not largest:
        return ""

    def position(value):
        return 80 + 74 * value / largest

    low, mean, high = (position(difference[part]) for part in ("low", "mean", "high"))
    kind = claim["verdict"].replace(" ", "-")
    return (
        f'<svg class="interval {kind}" viewBox="0 0 160 18" aria-hidden="true">'
        '<line class="zero" x1="80" x2="80" y1="0" y2="18"/>'
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9"/>'
        f'<circle cx="{mean:.1f}" cy="9" r="4.5"/></svg>'
    )
