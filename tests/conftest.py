"""Settings and helpers that all tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# TensorFlow reads these once, when it starts: one thread, as the bench trains.
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _determinism_ends_with_the_test():
    """Undo what the bench switches on: Keras leaves out XLA where operations are deterministic."""
    yield
    config = sys.modules.get("tensorflow.python.framework.config")
    if config is not None and config.is_op_determinism_enabled():
        config.disable_op_determinism()


def start_python(*arguments, cwd=PROJECT, **options):
    """Start Python with the project on its path, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def run_python(*arguments, cwd=PROJECT, timeout=240):
    """Run Python to its end; return exit code, standard output and standard error."""
    process = start_python(*arguments, cwd=cwd)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors
