"""Makes a notebook of a recipe: its card, its source and its command, where only pip is at hand.

The notebook carries the bench with it. What it measures is therefore what the recipe measures, to
the digit, and its source can be changed and measured again.
"""

import base64
import io
import json
import tomllib
import zipfile
from importlib import metadata

from recipes._lab.collection import catalogue, copies
from recipes._lab.errors import UserError
from recipes._lab.recipe import CARD_SECTIONS
from recipes._lab.runs import check_writable, write_text
from recipes._lab.wording import VERDICTS

PROJECT = catalogue.FOLDER.parent
DISTRIBUTION = "keras-training-recipes"
WIDTH = 100  # Of the lines of the packed bench.

UNPACK = '''\
# The bench that all recipes share, its data and its callbacks, packed by zip and base64.
import base64, io, os, sys, zipfile

packed = """
{packed}
"""
zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))).extractall("{distribution}")
os.chdir("{distribution}")
sys.path.insert(0, os.getcwd())
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
print("Unpacked into", os.getcwd())'''

USE = """\
from data import load
{imports}

x, y = load("{data}", samples={samples}, label_noise={label_noise}).train
{build}
{fit}"""

MEASURE = """\
import pathlib

from IPython.display import Image, display

!"{{sys.executable}}" -m recipes.{name}{options}
for picture in sorted(pathlib.Path("runs/{name}").glob("{name}*.png")):
    display(Image(filename=picture))"""


def write(name, folder):
    """Write the notebook of the recipe called `name` into `folder`; overwrite nothing."""
    entry = catalogue.find(name)
    path = folder / f"{name}.ipynb"
    check_writable("DEST", folder)
    if path.exists():
        raise UserError(f"notebook overwrites nothing, and there is already {path}.")
    write_text(path, json.dumps(build(entry), indent=1) + "\n")
    print(f"Written: {path}")


def build(entry, options=""):
    """Return the notebook of a recipe as nbformat 4.5 has it; `options` go to its command."""
    quoted = " ".join(f'"{requirement}"' for requirement in requirements())
    cells = [
        _text(card(entry)),
        _code(f"%pip install --quiet {quoted}"),
        _code(UNPACK.format(packed=pack(), distribution=DISTRIBUTION), hidden=True),
        _text("## The recipe\n\nChange it, run this cell and those below it again."),
        _code(f"%%writefile recipes/{entry.path.name}\n{entry.source}"),
    ]
    if not copies.has_function(entry, "prepare"):
        cells += [_text("## Its model, in a program of your own"), _code(_use(entry))]
    cells += [
        _text("## Does it help?\n\nBaseline and technique on the same seeds; progress is silent."),
        _code(MEASURE.format(name=entry.name, options=options)),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"{entry.name}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def card(entry):
    """Return a recipe's card as Markdown."""
    sections = [
        f"**{name}**  \n{' '.join(entry.card[name].split())}"
        for name in CARD_SECTIONS
        if entry.card.get(name) and name != "Measured"
    ]
    measured = [f"- {paragraph}" for paragraph in paragraphs(entry.card.get("Measured", ""))]
    return "\n\n".join([f"# {entry.title}", *sections, "**Measured**", "\n".join(measured)])


def paragraphs(measured):
    """Return the sentences of a card's `Measured:`, one for each claim and one about the rest."""
    # A line that starts a paragraph starts as a verdict does; others go on with the one before.
    starts = (*(f"{verdict.capitalize()}:" for verdict in VERDICTS), "Mean difference ")
    found = []
    for line in measured.splitlines():
        if line.startswith(starts) or not found:
            found.append(line)
        else:
            found[-1] += f" {line}"
    return found


def requirements():
    """Return what pip has to install for the bench, as this project declares it."""
    try:
        declared = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
        return declared["project"]["dependencies"]
    except FileNotFoundError:  # Installed, and not a checkout.
        of_distribution = metadata.requires(DISTRIBUTION) or []
        return [requirement for requirement in of_distribution if "extra ==" not in requirement]


def pack():
    """Return the bench as a zip in base64, without recipes; equal files give equal text."""
    files = [PROJECT / "recipes" / "__init__.py"]
    for folder in (PROJECT / "recipes" / "_lab", PROJECT / "data", PROJECT / "callbacks"):
        files += sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".html"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in files:
            member = zipfile.ZipInfo(file.relative_to(PROJECT).as_posix())  # Dated 1980, always.
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, file.read_text(encoding="utf-8"))
    text = base64.b64encode(content.getvalue()).decode()
    return "\n".join(text[start : start + WIDTH] for start in range(0, len(text), WIDTH))


def _use(entry):
    experiment, _ = copies.shown(entry)
    imports, build_line, fit_line = copies.usage(entry)
    return USE.format(
        imports=imports.replace("from ", "from recipes."),
        data=experiment["data"],
        samples=experiment.get("samples"),
        label_noise=experiment.get("label_noise", 0.0),
        build=build_line,
        fit=fit_line.replace("validation_split=0.2", "validation_split=0.2, verbose=2"),
    )


def _text(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code(source, hidden=False):
    shown = {"jupyter": {"source_hidden": True}} if hidden else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": shown,
        "outputs": [],
        "source": source,
    }
