"""Keeps finished runs on disk: one JSON file a run, named by a hash of all that it depends on."""

import functools
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from recipes._lab.errors import UserError
from recipes._lab.recipe import code_fingerprint

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "mnist1d", "mlxtend")


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed: everything that its result depends on."""

    recipe: str
    recipe_path: str
    fingerprint: str
    experiment: str
    data: str
    samples: int | None
    label_noise: float
    epochs: int
    batch_size: int
    variant: str
    arguments: dict
    learning_rate: float
    seed: int
    measure: bool | str

    @property
    def key(self):
        """A hash that changes with anything that could change the result."""
        facts = asdict(self)
        # Where the file lies and what an experiment is called change no number.
        for name in ("recipe_path", "experiment", "variant"):
            del facts[name]
        facts["bench"] = bench_fingerprint()
        facts["versions"] = versions()
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def describe(self):
        return f"{self.experiment}, {self.variant}, seed {self.seed}"


@functools.cache
def versions():
    """Return the versions of Python and of the packages that take part in a run."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    found.update({package: metadata.version(package) for package in PACKAGES})
    return found


@functools.cache
def bench_fingerprint():
    """Hash the code of this project, outside the recipe, that takes part in a run."""
    project = Path(__file__).resolve().parents[2]
    files = [
        Path(__file__).with_name("training.py"),
        *sorted((project / "data").glob("*.py")),
        project / "callbacks" / "gradient_norms.py",
        project / "callbacks" / "learning_rate_logger.py",
    ]
    hashes = [code_fingerprint(file.read_text(encoding="utf-8"), without=()) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


class RunFolder:
    """The finished runs in one folder."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, run):
        return self.folder / f"{run.variant}-seed{run.seed}-{run.key}.json"

    def read(self, run):
        """Return the result of `run`, or None where it is not finished.

        Raises:
            DamagedRun: the file is there and does not hold a whole result.
        """
        path = self.path(run)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            result, checksum = stored["result"], stored["checksum"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRun(path) from error
        if checksum != _checksum(result):
            raise DamagedRun(path)
        return result

    def write(self, run, result):
        stored = {"run": asdict(run), "checksum": _checksum(result), "result": result}
        write_text(self.path(run), json.dumps(stored))


class DamagedRun(Exception):
    """A run file that cannot be trusted; the run has to be trained again."""

    def __init__(self, path):
        super().__init__(f"{path} is damaged")
        self.path = path


def _checksum(result):
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def write_text(path, text):
    """Write a text file whole or not at all: to a temporary file first, then renamed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path, content):
    """Write a file whole or not at all: to a temporary file first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@functools.cache
def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(option, folder):
    """Make `folder`; raise `UserError` that names `option` where nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option} must be a folder that can be written. Received: {folder} ({error.strerror})"
        ) from error
