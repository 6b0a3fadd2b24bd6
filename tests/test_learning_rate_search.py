"""Learning-rate search: the grid, the budgets, the cap, and what Keras Tuner makes of a loss."""

import math

import keras
import numpy as np
import pytest
import threadpoolctl

import data
from recipes import learning_rate_search as recipe


@pytest.fixture(autouse=True)
def _without_collection(monkeypatch):
    """Keras Tuner clears the session and collects garbage before each trial, for seconds in all."""
    monkeypatch.setattr("keras_tuner.src.engine.tuner.gc.collect", lambda: 0)
    monkeypatch.setattr(keras.backend, "clear_session", lambda: None)
    # The Gaussian process is tiny; threads that wait for a busy core make it ten times slower.
    with threadpoolctl.threadpool_limits(1):
        yield


class Scripted:
    """A hypermodel whose loss is a function of the learning rate: nothing is trained."""

    def __init__(self, loss_of):
        self.loss_of = loss_of
        self.rates = []
        self.model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        self.model.compile("sgd", "mse")

    def build(self, hp):
        rate = hp.Float("learning_rate", 1e-4, 100.0, sampling="log")
        self.rates.append(rate)
        self.model.fit = lambda epochs, callbacks, initial_epoch=0, **_: self.fit(
            rate, range(initial_epoch, epochs), callbacks
        )
        return self.model

    def fit(self, rate, epochs, callbacks):
        history = keras.callbacks.History()
        history.set_model(self.model)
        history.on_train_begin()
        self.model.stop_training = False
        for epoch in epochs:
            logs = {"val_loss": self.loss_of(rate)}
            for callback in [*callbacks, history]:
                callback.set_model(self.model)
                callback.on_epoch_end(epoch, logs)
            if self.model.stop_training:
                break
        return history


def search(tmp_path, strategy, loss_of, callbacks=(), seed=1):
    hypermodel = Scripted(loss_of)
    tuner = recipe.make_tuner(strategy, hypermodel.build, tmp_path, seed)
    asked = len(hypermodel.rates)  # Keras Tuner builds once to learn the space.
    error = None
    try:
        tuner.search(epochs=recipe.EPOCHS, callbacks=list(callbacks), verbose=0)
    except RuntimeError as stopped:
        error = stopped
    return tuner, hypermodel.rates[asked:], error


def distance(rate):
    """A loss that is lowest, 0.1, at a rate of 0.1."""
    return 0.1 + math.log10(rate / 0.1) ** 2


def test_grid_holds_both_ends_and_equal_ratios(tmp_path):
    tuner, rates, _ = search(tmp_path, "grid", distance)
    np.testing.assert_allclose(sorted(rates), np.geomspace(1e-4, 100.0, 8), rtol=1e-6)
    best = tuner.get_best_hyperparameters()[0].get("learning_rate")
    assert best == pytest.approx(min(np.geomspace(1e-4, 100.0, 8), key=distance), rel=1e-6)


@pytest.mark.parametrize("strategy", ["random", "bayesian"])
def test_eight_rates_within_the_range_and_the_best_is_kept(tmp_path, strategy):
    tuner, rates, error = search(tmp_path, strategy, distance)
    assert error is None and len(rates) == 8
    assert min(rates) >= 1e-4 and max(rates) <= 100.0
    best = tuner.get_best_hyperparameters()[0].get("learning_rate")
    assert best == min(rates, key=distance)


def test_same_seed_tries_the_same_rates_and_another_seed_others(tmp_path):
    tried = [
        search(tmp_path / str(n), "random", distance, seed=s)[1] for n, s in enumerate([3, 3, 4])
    ]
    assert tried[0] == tried[1] != tried[2]


def test_neighbouring_seeds_share_their_draws_and_seeds_far_apart_do_not(tmp_path):
    """Why `measure` spaces its seeds: Keras Tuner counts its seed up at each draw."""
    tried = [
        search(tmp_path / str(seed), "random", distance, seed=seed)[1]
        for seed in (1, 2, 1 + recipe.DRAWS)
    ]
    assert tried[0][1:] == tried[1][:-1]
    assert not set(tried[0]) & set(tried[2])


def test_hyperband_spends_about_the_budget_of_the_others(tmp_path):
    """Brackets for 9 epochs by 3: 9, 3, 1 trials; 5, 2; 3. Epochs 9 + 6 + 6 + 15 + 12 + 27 = 75."""
    epochs = []
    counting = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: epochs.append(epoch))
    tuner, rates, _ = search(tmp_path, "hyperband", distance, [counting])
    assert len(rates) == 23
    assert len(epochs) == 75
    best = tuner.get_best_hyperparameters()[0].get("learning_rate")
    assert best == min(rates, key=distance)


def diverging(value):
    return lambda rate: value if rate > 1e-3 else distance(rate)


def test_three_trials_of_nan_end_a_search_and_the_cap_prevents_it(tmp_path):
    tuner, _, error = search(tmp_path / "plain", "grid", diverging(math.nan))
    assert error is not None and len(tuner.oracle.trials) < 8
    tuner, rates, error = search(
        tmp_path / "capped", "grid", diverging(math.nan), [recipe.CappedLoss()]
    )
    assert error is None and len(rates) == 8
    scores = sorted(trial.score for trial in tuner.oracle.trials.values())
    assert scores[-1] == recipe.LOSS_CAP and scores[0] < recipe.LOSS_CAP


def test_infinity_draws_bayesian_search_and_the_cap_repels_it(tmp_path):
    """Infinity is turned into 0 there, a perfect loss: every rate that diverges invites more."""
    share = []
    for name, callbacks in {"plain": [], "capped": [recipe.CappedLoss()]}.items():
        _, rates, _ = search(tmp_path / name, "bayesian", diverging(math.inf), callbacks)
        share.append(np.mean(np.array(rates) > 1e-3))
    assert share[1] < share[0]


@pytest.mark.parametrize(
    ("loss", "reported", "stops"),
    [
        (0.5, 0.5, False),
        (10.0, 10.0, False),
        (10.5, 10.0, True),
        (math.inf, 10.0, True),
        (math.nan, 10.0, True),
    ],
)
def test_cap_holds_for_every_loss(loss, reported, stops):
    callback = recipe.CappedLoss()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.stop_training = False
    callback.set_model(model)
    logs = {"val_loss": loss, "loss": loss}
    callback.on_epoch_end(0, logs)
    assert logs["val_loss"] == reported
    assert model.stop_training is stops


def test_unknown_strategy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of grid, .* Received: strategy='luck'"):
        recipe.make_tuner("luck", recipe.tunable_model, tmp_path)


def test_seed_zero_is_refused_because_it_means_none(tmp_path):
    with pytest.raises(ValueError, match=r"must be >= 1. Received: seed=0"):
        recipe.make_tuner("random", recipe.tunable_model, tmp_path, seed=0)


def test_tuner_searches_the_rate_of_the_tunable_model_and_nothing_else(tmp_path):
    tuner = recipe.make_tuner("random", recipe.tunable_model, tmp_path)
    space = {entry.name: entry for entry in tuner.oracle.get_space().space}
    assert list(space) == ["learning_rate"]
    assert (space["learning_rate"].min_value, space["learning_rate"].max_value) == (1e-4, 100.0)
    values = tuner.oracle.create_trial("tuner0").hyperparameters
    model = tuner.hypermodel.build(values)
    assert float(model.optimizer.learning_rate) == pytest.approx(values.get("learning_rate"))


@pytest.fixture(scope="module")
def network():
    return recipe._Network(data.load("digits", samples=64))


def test_network_is_set_back_exactly(network):
    once = network.outcome(0.05)
    network.model.optimizer.learning_rate = 3.0
    again = network.outcome(0.05)
    assert once == again
    assert once["validation_accuracy"] > 0.3 and once["rate_exponent"] == math.log10(0.05)


def test_no_rate_counts_as_fooled_with_the_untrained_network(network):
    outcome = network.outcome(None)
    assert outcome["fooled"] and math.isnan(outcome["rate_exponent"])
    assert outcome["accuracy"] < 0.35


def test_diverged_rate_counts_as_fooled(network):
    assert network.outcome(100.0)["fooled"]
