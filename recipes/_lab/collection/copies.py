"""Copies a recipe into a project: what a person would take home, and the callbacks it names."""

import ast
import itertools
import json
import re
from pathlib import Path

import callbacks
import data
from recipes._lab.collection import catalogue
from recipes._lab.errors import UserError
from recipes._lab.runs import check_writable, write_text

CALLBACKS = Path(callbacks.__file__).parent

# Only the bench reads these; what a project needs stands without them.
OF_THE_BENCH = {"EQUAL_START", "EXPERIMENTS", "CLAIMS", "SYMPTOMS", "illustrate", "main"}


def copy(name, folder):
    """Copy the recipe called `name` into `folder`, and print the lines that use it."""
    entry = catalogue.find(name)
    files = {f"{name}.py": copyable(entry.source)}
    for module in named_callbacks(entry.source):
        files[f"{module}.py"] = (CALLBACKS / f"{module}.py").read_text(encoding="utf-8")
    check_writable("DEST", folder)
    there = [str(folder / file) for file in files if (folder / file).exists()]
    if there:
        raise UserError(f"copy overwrites nothing, and there is already {', '.join(there)}.")
    for file, text in files.items():
        write_text(folder / file, text)
    print(f"Copied to {folder}: {', '.join(files)}. Beside it, in your program:\n")
    print("\n".join(usage(entry)))


def copyable(source):
    """Return a recipe's source without what only the bench reads: claims, experiments, `main`."""
    tree = ast.parse(source)
    unwanted = OF_THE_BENCH | _measuring_functions(source)
    dropped = [n for n in tree.body if _bound_by(n) & unwanted or _is_main_guard(n)]
    kept = [node for node in tree.body if node not in dropped]
    # Something that the top uses stays, whoever else reads it.
    while needed := [node for node in dropped if _bound_by(node) & _names_in(kept)]:
        kept += needed
        dropped = [node for node in dropped if node not in needed]
    # Imports and constants that nothing else used go as well.
    while useless := [
        node
        for node in kept
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)
        and _bound_by(node) & _names_in(dropped)
        and not _bound_by(node) & (_names_in(kept) | {"VARIANTS"})
    ]:
        dropped += useless
        kept = [node for node in kept if node not in useless]
    lines = source.splitlines(keepends=True)
    end_of_previous, parts, gap = 0, [], []
    for node in tree.body:
        # A node's comments come and go with it; the wider gap of two neighbors stays.
        chunk = lines[end_of_previous : node.end_lineno]
        blank = list(itertools.takewhile(lambda line: not line.strip(), chunk))
        gap = max(gap, blank, key=len)
        if node not in dropped:
            parts += [*gap, *chunk[len(blank) :]]
            gap = []
        end_of_previous = node.end_lineno
    return "".join(parts).rstrip() + "\n"


def _measuring_functions(source):
    experiments = catalogue.constants(source).get("EXPERIMENTS", {})
    values = [experiment.get("measure", False) for experiment in experiments.values()]
    return {"measure", *(value for value in values if isinstance(value, str))}


def _bound_by(node):
    """Return the names that a top-level statement gives a value to."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {getattr(node, "name", None)} - {None}


def _is_main_guard(node):
    return isinstance(node, ast.If) and "__main__" in ast.dump(node.test)


def _names_in(nodes):
    """Return the names that statements read."""
    found = [name for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)]
    return {name.id for name in found if isinstance(name.ctx, ast.Load)}


def named_callbacks(source):
    """Return the modules of the callbacks that a recipe names, in its code or in its card."""
    words = set(re.findall(r"\w+", source))
    return [module for name, module in callbacks._FILES.items() if name in words]


def has_function(entry, name):
    """Return whether a recipe defines the function `name`."""
    return name in _functions(entry)


def _functions(entry):
    tree = ast.parse(entry.source)
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def usage(entry):
    """Return the three lines that use a copied recipe, with the settings of its first claim."""
    functions = _functions(entry)
    build, make_callbacks = functions["build_model"], functions.get("make_callbacks")
    experiment, variant = shown(entry)
    # Without what the experiment stages for all variants alike.
    settings = dict(entry.constants["VARIANTS"][variant])
    training = {key: experiment[key] for key in ("epochs", "batch_size")}
    training |= {key: settings.pop(key) for key in training if key in settings}
    steps = f"-(-len(x) // {training['batch_size']})"  # Rounded up.
    given = {
        "input_shape": "x.shape[1:]",
        "classes": "int(y.max()) + 1" if data.DATASETS[experiment["data"]].classes else "None",
        "steps_per_epoch": steps,
        "total_steps": f"{training['epochs']} * {steps}",
        **{key: _as_code(value) for key, value in settings.items()},
        "learning_rate": repr(experiment["learning_rates"][variant]),
    }
    of_model = _call("build_model", build, given)
    of_fit = {"epochs": training["epochs"], "batch_size": training["batch_size"]}
    of_fit["validation_split"] = 0.2
    names = ["build_model"]
    if make_callbacks:
        names.append("make_callbacks")
        of_fit["callbacks"] = _call("make_callbacks", make_callbacks, given)
    arguments = ", ".join(f"{key}={value}" for key, value in of_fit.items())
    return [
        f"from {entry.name} import {', '.join(names)}",
        f"model = {of_model}",
        f"model.fit(x, y, {arguments})",
    ]


def shown(entry):
    """Return the experiment and the variant to start from, as the recipe declares them.

    That is the side which the first claim on a score expects to be the better one.
    """
    experiments = entry.constants["EXPERIMENTS"]
    for claim in entry.claims:
        score = claim["metric"].endswith(("accuracy", "loss", "rmse"))
        if score and claim["direction"] != "equal":
            higher_is_better = claim["metric"].endswith("accuracy")
            better = (claim["direction"] == "higher") == higher_is_better
            variant = claim["variant"] if better else claim["against"]
            return experiments[claim["experiment"]], variant
    experiment = next(iter(experiments.values()))
    return experiment, list(experiment["learning_rates"])[-1]


def _as_code(value):
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _call(name, function, given):
    defaults = dict(
        zip(
            [argument.arg for argument in function.args.args][::-1],
            [
                _as_code(ast.literal_eval(d)) if isinstance(d, ast.Constant) else ast.unparse(d)
                for d in function.args.defaults
            ][::-1],
            strict=False,
        )
    )
    arguments = [argument.arg for argument in function.args.args + function.args.kwonlyargs]
    shown = {
        key: value
        for key, value in given.items()
        if key in arguments and defaults.get(key) != value
    }
    return f"{name}({', '.join(f'{key}={value}' for key, value in shown.items())})"
