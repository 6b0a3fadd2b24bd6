"""The bench that all recipes share: seeds, repeats, statistics, tables and pictures.

A recipe hands over its file; everything that it claims and builds is read from there.

    recipe.py        reads a recipe: its card, variants, experiments and claims
    training.py      trains one variant with one seed
    runs.py          keeps finished runs on disk
    bench.py         plans the runs, trains the missing ones side by side
    wording.py       says results in words and digits
    statistics.py    paired differences, Holm's correction, verdicts
    report.py        the table, report.json and the CSV files
    picture.py       the PNG
    tuning/          finds the learning rate of every variant
    command_line.py  the arguments, the same for every recipe
"""


def run_recipe(path, arguments=None):
    """Run the recipe in the file `path` with command-line `arguments`; return the exit code."""
    from recipes._lab.command_line import main

    return main(path, arguments)
