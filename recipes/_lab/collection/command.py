"""The command line of `python -m recipes`: its arguments, and what they start.

Each command imports what it needs when it starts, because the index must be there at once.
"""

import argparse
import os
import sys
from pathlib import Path

from recipes._lab.arguments import INTERRUPTED, USER_ERROR, Parser, count, folder
from recipes._lab.collection import catalogue, index
from recipes._lab.errors import UserError

DESCRIPTION = "Training techniques for Keras, by the problem that each one answers."
EXAMPLES = """examples:
  python -m recipes --for overfitting     which recipes answer a problem
  python -m recipes.dropout               measure one of them
  python -m recipes run --all             measure all of them
  python -m recipes copy dropout src/     take it home
"""


def main(arguments=None):
    """Run the command; return the exit code."""
    try:
        options = _parse(arguments)
        return options.start(options) or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(arguments):
    parser = Parser(
        prog="python -m recipes",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--for",
        dest="symptom",
        nargs="+",
        metavar="SYMPTOM",
        help=f"only recipes that answer it: {', '.join(catalogue.SYMPTOMS)}",
    )
    parser.set_defaults(start=_show_index)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(name, start, text):
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(start=start)
        return added.add_argument

    add = command("run", _run, "run many recipes, one after the other")
    add("names", nargs="*", metavar="NAME", help="recipes to run")
    add("--all", action="store_true", help="run all of them")
    add("--seeds", type=count, metavar="N", help="paired repeats (default: 5)")
    add("--jobs", type=count, metavar="N", help="processes side by side (default: all cores)")
    add("--quick", action="store_true", help="smoke runs of seconds; the numbers mean nothing")
    add("--fresh", action="store_true", help="train again what is finished")
    add("--out", type=folder, metavar="DIR", default=Path("runs"), help="(default: runs)")

    add = command("copy", _copy, "copy a recipe, and the callbacks that it names, into a project")
    add("name", metavar="NAME", help="the recipe")
    add("folder", type=folder, metavar="DEST", help="a folder; made where there is none")

    add = command("notebook", _write_notebook, "write a notebook that runs where only pip is")
    add("name", metavar="NAME", help="the recipe")
    add("folder", type=folder, metavar="DEST", nargs="?", default=Path(), help="(default: here)")

    command("claims", _show_textbook_claims, "what textbooks say, and what was measured for it")

    add = command("report", _write_page, "write one HTML page about all recipes")
    add("--runs", type=folder, metavar="DIR", default=Path("runs"), help="(default: runs)")
    add("--out", type=Path, metavar="FILE", help="(default: DIR/report.html)")

    add = command("new", _write_skeleton, "write the skeleton of a new recipe")
    add("name", metavar="NAME", help="the technique's, such as label_smoothing")

    command("readme", _update_readme, "write the tables of README.md again, from the records")
    return parser.parse_args(arguments)


def _show_index(options):
    symptom = options.symptom and catalogue.find_symptom(options.symptom)
    index.show(catalogue.read_all(), symptom)


def _run(options):
    from recipes._lab.collection import batch

    return batch.run(options)


def _copy(options):
    from recipes._lab.collection import copies

    copies.copy(options.name, options.folder)


def _update_readme(options):
    from recipes._lab.collection import readme

    readme.update()


def _write_notebook(options):
    from recipes._lab.collection import notebook

    notebook.write(options.name, options.folder)


def _show_textbook_claims(options):
    from recipes._lab.collection import textbook

    textbook.show(catalogue.read_all())


def _write_page(options):
    from recipes._lab.collection import page

    page.write(options.runs, options.out or options.runs / "report.html")


def _write_skeleton(options):
    from recipes._lab.collection import skeleton

    skeleton.explain(skeleton.write(options.name))
