"""`python -m recipes`: what a person meets who comes with a problem and not with a technique."""

import ast
import inspect
import json
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace

import pytest

import callbacks
from recipes._lab.collection import (
    batch,
    catalogue,
    command,
    copies,
    index,
    notebook,
    readme,
    skeleton,
    textbook,
)
from recipes._lab.errors import UserError
from recipes._lab.recipe import record_path
from tests.conftest import PROJECT, run_python

PATHS = catalogue.paths()
each_recipe = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def recorded_claim(textbook=None, verdict="supported", mean=0.02, metric="test_accuracy", **more):
    return {
        "text": "A warm start raises test accuracy",
        "textbook": textbook,
        "metric": metric,
        "difference": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01},
        "p_adjusted": 0.004,
        "verdict": verdict,
        **more,
    }


def entry(name, symptoms=(), claims=None):
    """Return an entry of the catalogue, not measured where `claims` is None."""
    result = {"arguments": {}, "learning_rate": 0.1}
    experiment = {"data": "digits", "samples": 10, "label_noise": 0.0, "epochs": 1}
    made = {
        "claims": claims,
        "seeds": [0, 1],
        "notes": [],
        "versions": {"keras": "3.15.1", "tensorflow": "2.21.0"},
        "machine": "Linux x86_64, 2 cores",
        "experiments": {"main": {**experiment, "variants": {"none": result}}},
        "seconds": {"main": {"none": 1.5}},
    }
    card = {"Problem": "Nothing helps. Not even this."}
    path = catalogue.FOLDER / f"{name}.py"
    source = f"SYMPTOMS = {list(symptoms)}\n"
    return catalogue.Entry(path, f"{name}: it helps", card, source, claims and made)


# The index


def test_index_names_every_recipe_and_imports_nothing_heavy():
    program = """
import runpy, sys
sys.argv = ["recipes"]
try:
    runpy.run_module("recipes", run_name="__main__")
except SystemExit as end:
    print(end.code)
print(sorted({"tensorflow", "keras", "numpy", "scipy", "rich", "matplotlib"} & set(sys.modules)))
"""
    code, output, errors = run_python("-c", program)
    assert (code, errors) == (0, "")
    *listed, exit_code, heavy = output.splitlines()
    assert (exit_code, heavy) == ("0", "[]")
    first_words = {line.split()[0] for line in listed if line.startswith("  ")}
    assert {path.stem for path in PATHS} <= first_words


@each_recipe
def test_every_recipe_has_symptoms_and_a_problem(path):
    found = catalogue.read(path)
    assert 1 <= len(found.symptoms) <= 3
    assert set(found.symptoms) <= set(catalogue.SYMPTOMS)
    assert found.problem.endswith((".", "?"))


@each_recipe
def test_catalogue_reads_what_an_import_gives(path):
    from recipes._lab.recipe import Recipe

    found, recipe = catalogue.read(path), Recipe(path)
    assert (found.title, found.card) == (recipe.title, recipe.card)
    for name in ("VARIANTS", "EQUAL_START", "EXPERIMENTS", "SYMPTOMS"):
        assert found.constants[name] == getattr(recipe.module, name)
    assert found.claims == recipe.module.CLAIMS


@pytest.mark.parametrize(
    "words, symptom",
    [
        (["vanishing"], "at chance"),
        (["at", "chance"], "at chance"),
        (["at-chance"], "at chance"),
        (["Diverges"], "explodes"),
        (["nan"], "explodes"),
        (["overfitting"], "overfits"),
        (["memorizes"], "overfits"),
        (["slow"], "slow"),
        (["learning_rate"], "choosing a rate"),
    ],
)
def test_a_symptom_is_found_by_the_word_that_comes_to_mind(words, symptom):
    assert catalogue.find_symptom(words) == symptom


def test_no_word_means_two_symptoms():
    assert list(catalogue.SYNONYMS) == list(catalogue.SYMPTOMS)
    words = [word for synonyms in catalogue.SYNONYMS.values() for word in synonyms.split()]
    assert len(words) == len(set(words))


def test_index_narrows_to_a_symptom_and_lists_it_wherever_it_stands(capsys):
    entries = [
        entry("first", ["slow", "overfits"], [recorded_claim()]),
        entry("second", ["explodes"], [recorded_claim()]),
    ]
    index.show(entries, "overfits")
    output = capsys.readouterr().out
    assert "  first  " in output and "  second  " not in output


def test_index_shows_effect_interval_verdict_and_seconds(capsys):
    claims = [recorded_claim(mean=0.0321, verdict="no clear difference"), recorded_claim()]
    index.show([entry("first", ["slow"], claims)])
    output = " ".join(capsys.readouterr().out.split())
    # Two seeds of 1.5 seconds.
    effect = "A warm start raises test accuracy (+3.2 [+2.2, +4.2] points)"
    assert f"no clear difference: {effect}; 3 s" in output


def test_a_recipe_without_record_or_symptoms_is_listed_as_not_measured(capsys):
    index.show([entry("first"), entry("second", ["slow"])])
    output = capsys.readouterr().out
    assert output.count("not measured") == 2 and "OTHER" in output


def test_seconds_leave_out_sweeps_and_count_shared_runs_once():
    found = entry("first", ["slow"], [recorded_claim()])
    experiments, seconds = found.record["experiments"], found.record["seconds"]
    experiments["same_run"], seconds["same_run"] = experiments["main"], {"none": 1.5}
    experiments["long"], seconds["long"] = {**experiments["main"], "epochs": 9}, {"none": 50.0}
    found.constants["EXPERIMENTS"] = {"main": {}, "same_run": {}, "long": {"sweep": True}}
    assert catalogue.training_seconds(found) == 3.0
    found.constants["EXPERIMENTS"]["long"]["sweep"] = False
    assert catalogue.training_seconds(found) == 103.0


# Mistakes


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--for", "hunger"], "hunger"),
        (["--fro"], "--fro"),
        (["dropout"], "dropout"),
        (["run"], "--all"),
        (["run", "--all", "dropout"], "not both"),
        (["run", "dropuot"], "dropuot"),
        (["run", "dropout", "--seeds", "0"], "0"),
        (["copy", "dropuot", "somewhere"], "dropuot"),
        (["copy", "dropout"], "DEST"),
        (["notebook", "dropuot"], "dropuot"),
        (["new", "Mixed Case"], "Mixed Case"),
        (["new", "dropout"], "overwrites nothing"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == "" and said in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_or_recipe_is_named(tmp_path):
    (tmp_path / "broken.py").write_text('"""Broken: it has no end.')
    with pytest.raises(UserError, match=r"broken\.py cannot be read"):
        catalogue.read_all(tmp_path)
    (tmp_path / "broken.py").write_text('"""Broken: in the middle."""\nSYMPTOMS = ["slow"\nX = 1\n')
    with pytest.raises(UserError, match="SYMPTOMS cannot be read"):
        index.show(catalogue.read_all(tmp_path))
    (tmp_path / "broken.py").write_text('"""Broken: it is whole now."""')
    file = record_path(tmp_path / "broken.py")
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(UserError, match=r"broken\.json is damaged"):
        catalogue.read_all(tmp_path)


# run


@pytest.fixture
def pretend(monkeypatch):
    """Let programs of a line stand for the commands of recipes."""

    def programs(**of_name):
        known = [catalogue.FOLDER / f"{name}.py" for name in of_name]
        monkeypatch.setattr(catalogue, "paths", lambda: known)
        monkeypatch.setattr(
            batch, "command", lambda name, options: [sys.executable, "-c", of_name[name]]
        )

    return programs


def writes_a_report(folder, claims):
    text = json.dumps({"claims": claims})
    return f"open({str(folder / 'report.json')!r}, 'w').write({text!r})"


def test_run_survives_a_failure_and_says_so_at_the_end(pretend, tmp_path, capfd):
    pretend(
        broken="print('started'); raise OSError('no disk')",
        killed="import os; os.kill(os.getpid(), 9)",
        good=writes_a_report(tmp_path / "good", [recorded_claim(), recorded_claim()]),
    )
    assert command.main(["run", "--all", "--out", str(tmp_path)]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("broken: failed: OSError: no disk")
    assert lines[1].startswith("killed: failed")
    assert lines[2].startswith("good: 2 supported")
    assert lines[3].startswith("1 of 3 recipes finished")
    assert "broken, killed" in lines[4]
    assert "started" in (tmp_path / "broken" / batch.LOG).read_text()


def test_run_of_nothing_but_successes_exits_with_zero(pretend, tmp_path, capfd):
    pretend(good=writes_a_report(tmp_path / "good", []))
    assert command.main(["run", "good", "good", "--out", str(tmp_path)]) == 0
    assert "1 of 1" in capfd.readouterr().out


def test_run_hands_its_options_to_each_recipe(tmp_path):
    options = Namespace(out=tmp_path, seeds=3, jobs=None, quick=True, fresh=False)
    name, *arguments = batch.command("dropout", options)[2:]
    assert name == "recipes.dropout"
    assert arguments == ["--out", str(tmp_path / "dropout"), "--seeds", "3", "--quick"]


def test_run_stops_at_ctrl_c_and_waits_for_the_recipe_to_keep_its_runs(pretend, tmp_path, capfd):
    """The signal reaches this process alone here, so that it has to be handed on."""
    kept = tmp_path / "kept"
    pretend(
        slow=f"""
import pathlib, time
try:
    pathlib.Path({str(tmp_path / "started")!r}).touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(kept)!r}).touch()
    raise SystemExit(130)
""",
        never="raise SystemExit(1)",
    )

    def interrupt():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    batch_seconds, batch.SECONDS_TO_STOP = batch.SECONDS_TO_STOP, 0.1
    try:
        assert command.main(["run", "--all", "--out", str(tmp_path)]) == 130
    finally:
        batch.SECONDS_TO_STOP = batch_seconds
    assert kept.exists()
    assert "0 of 2 recipes finished" in capfd.readouterr().out
    assert not (tmp_path / "never").exists()


# copy


def test_the_copied_recipe_and_the_printed_lines_run_where_the_project_is_not(tmp_path, capsys):
    assert command.main(["copy", "dropout", str(tmp_path / "new")]) == 0
    lines = capsys.readouterr().out.strip().splitlines()[-3:]
    assert lines[0].startswith("from dropout import") and "hidden_rate=0.5" in lines[1]
    program = "import numpy as np\nx = np.ones((20, 8, 8), 'float32')\ny = np.arange(20) % 10\n"
    program += "\n".join(lines).replace("epochs=30", "epochs=1, verbose=0")
    (tmp_path / "new" / "program.py").write_text(program + "\nprint(model.count_params())")
    # -P would keep the folder of the program off the path; -E ignores PYTHONPATH.
    code, output, errors = run_python("-E", "program.py", cwd=tmp_path / "new")
    assert code == 0, errors
    assert int(output.split()[-1]) == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10


def test_copies_are_whole_and_say_nothing_to_the_bench(tmp_path):
    """Ruff finds names that nothing defines, and imports that nothing uses any more."""
    for path in PATHS:
        (tmp_path / path.name).write_text(copies.copyable(path.read_text()))
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", str(tmp_path)]
    checked = subprocess.run(ruff, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert "build_model(" in text and "VARIANTS = " in text and "tunable_model(" in text
        assert not re.search(r"^(EXPERIMENTS|CLAIMS|SYMPTOMS|def main|if __name__)", text, re.M)


@each_recipe
def test_printed_lines_name_what_the_recipe_has(path):
    lines = copies.usage(catalogue.read(path))
    assert len(lines) == 3
    defined = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
    names = {alias.name for node in ast.parse(lines[0]).body for alias in node.names}
    assert "build_model" in names and names <= defined


def test_copyable_keeps_what_the_top_needs_and_comments_with_their_statement():
    source = '''"""Card."""

import time
import keras

# A reason that stays.
SCALE = 2.0
SHARED = {"epochs": 3}


def build_model():
    return keras.Model, SCALE, measure


VARIANTS = {"none": {}}

# A reason that goes.
EXPERIMENTS = {"main": {**SHARED, "measure": "measure_time"}}


def measure():
    return 1


def measure_time():
    return time.time()


def main():
    return run_recipe(__file__)


if __name__ == "__main__":
    main()
'''
    assert (
        copies.copyable(source)
        == '''"""Card."""

import keras

# A reason that stays.
SCALE = 2.0


def build_model():
    return keras.Model, SCALE, measure


VARIANTS = {"none": {}}


def measure():
    return 1
'''
    )


def test_copy_brings_the_callbacks_that_the_recipe_names():
    source = '"""Card: GradientNorms shows it."""\nfrom callbacks import UpdateRatios'
    assert copies.named_callbacks(source) == ["gradient_norms", "update_ratios"]
    assert copies.named_callbacks("GradientNormsOfMine = 1") == []
    for name in callbacks.__all__:
        (module,) = copies.named_callbacks(name)
        assert (copies.CALLBACKS / f"{module}.py").exists()


def test_copy_overwrites_nothing(tmp_path, capsys):
    mine = tmp_path / "dropout.py"
    mine.write_text("mine")
    assert command.main(["copy", "dropout", str(tmp_path)]) == 2
    assert str(mine) in capsys.readouterr().err
    assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [mine]
    assert command.main(["copy", "dropout", str(mine)]) == 2  # A file is no folder.
    assert capsys.readouterr().err.count("\n") == 1


# new


def test_a_new_recipe_keeps_every_promise_at_once(tmp_path):
    from tests import test_contract as contract  # Imports Keras, which nothing else here needs.

    path = skeleton.write("label_smoothing", tmp_path)
    promises = [
        promise
        for name, promise in vars(contract).items()
        if name.startswith("test_") and "path" in inspect.signature(promise).parameters
    ]
    assert len(promises) >= 8
    for promise in promises:
        promise(path)
    test_every_recipe_has_symptoms_and_a_problem(path)
    test_printed_lines_name_what_the_recipe_has(path)
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *check, "--config", PROJECT / "pyproject.toml", path])
        assert done.returncode == 0


@pytest.mark.parametrize("name", ["Dropout", "a-b", "_lab", "x.py", "../x", "class", "json", ""])
def test_new_refuses_names_that_could_not_be_a_recipe(name, tmp_path):
    with pytest.raises(UserError, match="NAME must"):
        skeleton.write(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_overwrites_nothing(tmp_path):
    path = skeleton.write("mixup", tmp_path)
    path.write_text("mine")
    with pytest.raises(UserError, match="overwrites nothing"):
        skeleton.write("mixup", tmp_path)
    assert path.read_text() == "mine"


# notebook


@pytest.mark.slow
def test_a_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """In a kernel of Jupyter's, in a folder from which the project cannot be reached."""
    nbformat = pytest.importorskip("nbformat", reason="no test without nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="no test without nbclient and ipykernel")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # This Python's kernel, and no other's.
    recipe = catalogue.find("dropout")
    made = notebook.build(recipe, options=" --quick --jobs 1")
    made["cells"][6]["source"] = made["cells"][6]["source"].replace("epochs=30", "epochs=1")
    read = nbformat.reads(json.dumps(made), as_version=4)
    nbformat.validate(read)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(read, timeout=300, resources=resources).execute()
    *_, measured = read.cells
    printed = "".join(output.get("text", "") for output in measured.outputs)
    words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).split())
    assert "QUICK" in words and recipe.title in words
    assert any("image/png" in output.get("data", {}) for output in measured.outputs)
    used = tmp_path / notebook.DISTRIBUTION / "recipes" / "dropout.py"
    assert used.read_text().strip() == recipe.path.read_text().strip()


@each_recipe
def test_a_notebook_holds_card_source_and_command(path):
    found = catalogue.read(path)
    made = notebook.build(found)
    assert json.dumps(made) == json.dumps(notebook.build(found))  # Nothing depends on the clock.
    text, *_ = (cell["source"] for cell in made["cells"])
    for section in found.card.values():
        assert section.split()[-1] in text
    sources = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    assert path.read_text() in sources[2]
    assert f"-m recipes.{path.stem}\n" in sources[-1]
    for source in sources[1:]:
        if not source.startswith("%%"):
            ast.parse(re.sub(r"^!.*", "", source, flags=re.M))


def test_the_notebook_installs_what_the_project_needs(monkeypatch):
    declared = notebook.requirements()
    assert any(requirement.startswith("tensorflow>=") for requirement in declared)
    # As an installed package knows it, which is no checkout.
    monkeypatch.setattr(notebook, "PROJECT", PROJECT / "nowhere")
    monkeypatch.setattr(
        notebook.metadata, "requires", lambda name: ["keras>=3", 'ruff; extra == "test"']
    )
    assert notebook.requirements() == ["keras>=3"]


def test_notebook_overwrites_nothing(tmp_path, capsys):
    assert command.main(["notebook", "dropout", str(tmp_path)]) == 0
    (tmp_path / "dropout.ipynb").write_text("mine")
    assert command.main(["notebook", "dropout", str(tmp_path)]) == 2
    assert (tmp_path / "dropout.ipynb").read_text() == "mine"


# report and claims; what the page looks like is in test_html.py


def test_report_names_a_damaged_run(tmp_path, capsys):
    (tmp_path / "dropout").mkdir()
    (tmp_path / "dropout" / "report.json").write_text("{")
    assert command.main(["report", "--runs", str(tmp_path)]) == 2
    assert "report.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_report_is_one_file_without_addresses_of_the_network(tmp_path, capsys):
    assert command.main(["report", "--runs", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", text)
    assert all(f'id="{path.stem}"' in text for path in PATHS)


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ([("textbook", "supported")], "true"),
        ([("textbook", "supported"), ("against_textbook", "contradicted")], "true"),
        ([("textbook", "supported"), ("textbook", "no clear difference")], "half true"),
        ([("textbook", "supported"), ("textbook", "contradicted")], "half true"),
        ([("textbook", "supported"), ("against_textbook", "supported")], "half true"),
        ([("textbook", "contradicted")], "false"),
        ([("against_textbook", "supported")], "false"),
        ([("against_textbook", "supported"), ("textbook", "no clear difference")], "false"),
        ([("textbook", "no clear difference")], "not shown"),
        ([("against_textbook", "no clear difference")], "not shown"),
    ],
)
def test_sentence_is_as_true_as_the_claims_that_settle_it(claims, verdict):
    recorded = [recorded_claim(verdict=of_claim, **{key: "S"}) for key, of_claim in claims]
    (sentence,) = textbook.sentences([entry("first", claims=recorded), entry("second")])
    assert sentence.verdict == verdict


def test_sentences_of_textbooks_are_grouped_by_verdict(capsys):
    claims = [recorded_claim("Harm", verdict="contradicted"), recorded_claim("Help")]
    textbook.show([entry("first", claims=claims)])
    output = capsys.readouterr().out
    assert output.index("TRUE") < output.index("Help") < output.index("FALSE")
    assert output.index("FALSE") < output.index("Harm")
    assert "python -m recipes.first" in output
    textbook.show([])
    assert "No recorded claim" in capsys.readouterr().out


# README


def test_tables_of_the_readme_are_those_of_the_records():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert readme.with_tables(text, catalogue.read_all()) == text, (
        "The tables are old: run `python -m recipes readme`."
    )


def test_tables_hold_what_was_measured_and_what_was_not():
    entries = [entry("first", claims=[recorded_claim()]), entry("second")]
    *_, first, second = readme.recipes_table(entries).splitlines()
    assert first == (
        "| [first](recipes/first.py) | A warm start raises test accuracy (+2.0 [+1.0, +3.0] "
        "points) | supported | 3 | Nothing helps. |"
    )
    assert "| not measured |" in second


def test_textbook_sentences_come_with_their_verdict():
    old = recorded_claim()
    del old["textbook"]  # As in a record from before there were any.
    entries = [
        entry("first", claims=[recorded_claim("Pipes | help", verdict="contradicted"), old]),
        entry("second"),
    ]
    assert len(textbook.sentences(entries)) == 1
    *_, line = readme.textbook_table(entries).splitlines()
    assert line.startswith(
        "| Pipes \\| help | false | A warm start raises test accuracy: contradicted, +2.0 ["
    )


def test_markers_that_are_missing_are_named():
    with pytest.raises(UserError, match="recipes"):
        readme.with_tables("No markers.", [])
