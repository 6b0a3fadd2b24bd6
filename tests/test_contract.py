"""What every recipe promises, whatever its technique: found by listing the folder."""

import ast
import json
import subprocess
import sys

import keras
import keras_tuner
import numpy as np
import pytest

import data
from recipes._lab import bench, command_line, training
from recipes._lab.recipe import CARD_SECTIONS, Recipe, load_module, record_path
from recipes._lab.training import build
from tests.conftest import PROJECT, run_python

PATHS = sorted((PROJECT / "recipes").glob("[a-z]*.py"))
NAMES = [path.stem for path in PATHS]
each_recipe = pytest.mark.parametrize("path", PATHS, ids=NAMES)


def small_split(recipe, experiment):
    samples = min(experiment.samples or 100, 100)
    samples = min(samples, data.DATASETS[experiment.data].train)
    return data.load(experiment.data, samples=samples, label_noise=experiment.label_noise)


def build_variants(recipe, experiment, names, seed=0):
    split = small_split(recipe, experiment)
    runs = {run.variant: run for run in bench.plan(recipe, [experiment], seeds=1)}
    return {name: build(recipe.module, split, runs[name]) for name in names if name in runs}


@each_recipe
def test_card_is_complete(path):
    recipe = Recipe(path)
    assert recipe.title
    for section in CARD_SECTIONS:
        assert recipe.card.get(section), f"{path.name}: the card has no text for `{section}:`."
    assert list(recipe.card) == list(CARD_SECTIONS)
    assert f"python -m recipes.{path.stem}" in recipe.card["Run"]
    assert any(character.isdigit() for character in recipe.card["Reference"])


@each_recipe
def test_lines_fit_and_names_fit_the_table(path):
    assert all(len(line) <= 100 for line in path.read_text().splitlines())
    assert all(len(name) <= 16 for name in Recipe(path).variants)


@each_recipe
def test_top_imports_nothing_but_keras_numpy_tensorflow_and_the_standard_library(path):
    tree = ast.parse(path.read_text())
    allowed = {"keras", "numpy", "tensorflow", *sys.stdlib_module_names}
    for node in tree.body:
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module.split(".")[0] in allowed


@each_recipe
def test_variants_start_from_equal_weights_where_said(path):
    recipe = Recipe(path)
    for group in recipe.module.EQUAL_START:
        assert len(group) > 1
        compared = set()
        for experiment in recipe.experiments.values():
            present = set(group) & set(experiment.variants)
            if len(present) < 2 or present <= compared:
                continue  # To build deep networks takes seconds.
            compared |= present
            models = list(build_variants(recipe, experiment, present).values())
            for model in models[1:]:
                for one, other in zip(models[0].weights, model.weights, strict=True):
                    np.testing.assert_array_equal(one, other, err_msg=f"{one.path}, {other.path}")
        assert compared == set(group)


@each_recipe
def test_layers_of_equal_shape_start_from_different_weights(path):
    """A seed used twice would make them equal, and the copies would learn in step."""
    recipe = Recipe(path)
    experiment = next(iter(recipe.experiments.values()))
    (model,) = build_variants(recipe, experiment, [experiment.baseline]).values()
    kernels = [w.numpy() for w in model.trainable_weights if len(w.shape) > 1]
    for index, kernel in enumerate(kernels):
        for other in kernels[index + 1 :]:
            assert kernel.shape != other.shape or np.ptp(kernel) == 0 or (kernel != other).any()


@each_recipe
def test_every_seed_starts_from_other_weights(path):
    recipe = Recipe(path)
    experiment = next(iter(recipe.experiments.values()))
    split = small_split(recipe, experiment)
    runs = bench.plan(recipe, [experiment], seeds=2)
    first, second = (
        build(recipe.module, split, run) for run in runs if run.variant == experiment.baseline
    )
    assert any(
        not np.array_equal(one, other)
        for one, other in zip(first.weights, second.weights, strict=True)
    )


@each_recipe
def test_stored_rates_are_positive_and_every_variant_is_used(path):
    recipe = Recipe(path)
    for experiment in recipe.experiments.values():
        assert all(rate > 0 for rate in experiment.learning_rates.values())
    used = {v for e in recipe.experiments.values() for v in e.variants}
    assert used == set(recipe.variants)


@each_recipe
def test_record_stays_small(path):
    file = record_path(path)
    if file.exists():  # A recipe that has none yet keeps all the other promises.
        assert file.stat().st_size < 200_000
        json.loads(file.read_text())


@pytest.mark.slow
@each_recipe
def test_smoke_run_builds_every_variant(path):
    """`--quick` leaves few steps, and every schedule has to make do with them."""
    recipe = Recipe(path)
    options = command_line._parse(recipe, ["--quick"])
    experiments = command_line._choose_experiments(recipe, options)
    for run in bench.plan(recipe, experiments, seeds=1):
        split = training.load(run)
        assert build(recipe.module, split, run).steps_per_execution >= 1
        training.make_callbacks(recipe.module, split, run)


@each_recipe
def test_tunable_model_declares_a_rate_and_builds(path):
    module = load_module(path)
    hyperparameters = keras_tuner.HyperParameters()
    model = module.tunable_model(hyperparameters)
    assert isinstance(model, keras.Model) and model.optimizer is not None
    by_name = {entry.name: entry for entry in hyperparameters.space}
    assert by_name["learning_rate"].sampling == "log"
    assert len(by_name) > 1, "the technique's own hyperparameter is missing"


def test_copies_build_and_train_with_keras_alone(tmp_path):
    """Every recipe, copied into an empty folder from which the project cannot be reached."""
    for path in PATHS:
        (tmp_path / path.name).write_text(path.read_text())
    program = """
import importlib, inspect, sys
class OutOfReach:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("recipes", "data", "callbacks", "keras_tuner", "mnist1d"):
            raise ImportError(name)
sys.meta_path.insert(0, OutOfReach())
sys.path.insert(0, "")
import numpy as np
for name in sys.argv[1:]:
    recipe = importlib.import_module(name)
    model = recipe.build_model()
    model.run_eagerly = True  # A step costs less than its trace.
    shape = (6, *model.input_shape[1:])
    y = np.zeros(6) if model.output_shape[-1] > 1 else np.zeros((6, 1))
    model.fit(np.ones(shape, "float32"), y, verbose=0)
    print(name, model.count_params() > 0)
"""
    code, output, errors = run_python("-I", "-c", program, *NAMES, cwd=tmp_path)
    assert code == 0, errors
    assert output.splitlines() == [f"{name} True" for name in NAMES]


def test_package_lists_no_recipe_by_name():
    """The bench must work for any file: no recipe is special to it."""
    text = "".join(path.read_text() for path in (PROJECT / "recipes" / "_lab").rglob("*.py"))
    for name in NAMES:
        assert f"recipes.{name}" not in text.replace("python -m recipes.dropout", "")


def test_importing_the_package_is_light():
    program = (
        "import sys, recipes; print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
