"""Holds every card to its claims: trains each recipe for real and compares with its record."""

import dataclasses

import pytest

from recipes._lab import bench, record, report
from recipes._lab.recipe import Recipe
from recipes._lab.runs import RunFolder
from tests.conftest import PROJECT

RECIPES = sorted((PROJECT / "recipes").glob("[a-z]*.py"))
NAMES = [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_record_belongs_to_the_recipe_as_it_is(path):
    assert record.read(path)["fingerprint"] == record.fingerprint(path), (
        f"The record is stale: run `python -m recipes.{path.stem} --record`."
    )


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_card_says_what_was_recorded(path):
    source = path.read_text(encoding="utf-8")
    assert record.with_measured(source, record.measured(record.read(path))) == source


def test_a_card_that_says_more_than_its_record_is_noticed():
    path = RECIPES[0]
    source = path.read_text(encoding="utf-8")
    boast = source.replace("Supported:", "Clearly supported:", 1)
    assert boast != source
    assert record.with_measured(boast, record.measured(record.read(path))) == source


@pytest.fixture(scope="module")
def processes():
    with bench.processes_for_all():
        yield


def what_claims_compare(recipe):
    """Return the experiments with the variants that some claim is about."""
    variants = {}
    for claim in recipe.claims:
        variants.setdefault(claim.experiment, set()).update((claim.variant, claim.against))
    return [
        dataclasses.replace(
            experiment,
            learning_rates={
                variant: rate
                for variant, rate in experiment.learning_rates.items()
                if variant in variants[experiment.name]
            },
        )
        for experiment in recipe.experiments.values()
        if experiment.name in variants
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_claims_hold_when_trained_again(path, tmp_path, processes):
    """Another machine may give other digits: each claim keeps its verdict, and its size roughly.

    A new mean has to lie within twice the recorded half-width of the recorded mean. A claim whose
    p-value is recorded between .005 and .2 may fall on either side of the limit elsewhere.
    """
    recipe = Recipe(path)
    experiments = what_claims_compare(recipe)
    runs = bench.plan(recipe, experiments, seeds=len(record.read(path)["seeds"]))
    results = bench.execute(runs, RunFolder(tmp_path), jobs=bench.default_jobs())
    trained = report.summarize(recipe, experiments, runs, results)["claims"]
    recorded = record.read(path)["claims"]
    assert [claim["text"] for claim in trained] == [claim["text"] for claim in recorded]
    for new, old in zip(trained, recorded, strict=True):
        if old["metric"].endswith(("_milliseconds", "_time_ratio")):
            continue  # Another machine, or other work on it, another time.
        difference = old["difference"]
        half_width = (difference["high"] - difference["low"]) / 2
        assert new["difference"]["mean"] == pytest.approx(difference["mean"], abs=2 * half_width)
        if not 0.005 < old["p_adjusted"] < 0.2:
            assert new["verdict"] == old["verdict"], new["text"]
