"""The bench on a Dask cluster: the same report as on one machine, though a worker is killed."""

import json
import re
import signal
import sys
import time

import pytest

from recipes._lab import command_line
from tests.conftest import PROJECT, start_python

FRAGILE = PROJECT / "tests" / "fragile_recipe.py"
OPTIONS = ["--variants", "small_rates_diverge", "--seeds", "2", "--epochs", "1"]


def test_without_dask_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    options = [*OPTIONS, "--cluster", "tcp://127.0.0.1:1", "--out", str(tmp_path)]
    assert command_line.main(FRAGILE, options) == 2
    error = capsys.readouterr().err
    assert "keras-training-recipes[cluster]" in error and error.count("\n") == 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://"])
def test_wrong_address_is_one_sentence(address, tmp_path, capsys, monkeypatch):
    pytest.importorskip("dask.distributed", reason="Dask, the extra `cluster`, is not installed")
    monkeypatch.setattr("recipes._lab.bench.CLUSTER_SECONDS", 0.5)
    options = [*OPTIONS, "--cluster", address, "--out", str(tmp_path)]
    assert command_line.main(FRAGILE, options) == 2
    error = capsys.readouterr().err
    assert "--cluster must be the address of a Dask scheduler" in error
    assert f"Received: {address}" in error


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and a function that starts a worker; all processes end with the test."""
    pytest.importorskip("dask.distributed", reason="Dask, the extra `cluster`, is not installed")
    processes = []

    def start(program, *arguments):
        command = ["-m", f"distributed.cli.dask_{program}", *arguments, "--no-dashboard"]
        processes.append(start_python(*command, cwd=tmp_path))
        return processes[-1]

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
    address = None
    while address is None:
        line = scheduler.stderr.readline()
        assert line, "the scheduler did not start"
        address = re.search(r"tcp://127\.0\.0\.1:\d+", line)
    address = address.group()

    def start_worker(threads=1):
        return start("worker", address, "--nthreads", str(threads), "--no-nanny")

    yield address, start_worker
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_workers(address, count):
    from dask.distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=120)


def read_report(out):
    report = json.loads((out / "report.json").read_text())
    report.pop("seconds")  # The only figures that no two runs share.
    return report


@pytest.mark.slow
def test_killed_worker_changes_nothing_in_the_report(cluster, tmp_path, monkeypatch):
    address, start_worker = cluster
    order = tmp_path / "order"
    order.write_text("0.25 1")
    with monkeypatch.context() as environment:
        environment.setenv("FRAGILE_RECIPE", str(order))
        workers = [start_worker(), start_worker()]
    wait_for_workers(address, 2)
    options = [*OPTIONS, "--out"]
    out = tmp_path / "cluster"
    assert command_line.main(FRAGILE, [*options, str(out), "--cluster", address]) == 0
    assert not order.exists()
    deadline = time.monotonic() + 30
    while all(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert -signal.SIGKILL in [worker.poll() for worker in workers]
    alone = tmp_path / "alone"
    assert command_line.main(FRAGILE, [*options, str(alone), "--jobs", "1"]) == 0
    assert read_report(out) == read_report(alone)
    assert (out / "epochs.csv").read_bytes() == (alone / "epochs.csv").read_bytes()


@pytest.mark.slow
def test_worker_with_several_threads_is_refused(cluster, tmp_path, capsys):
    address, start_worker = cluster
    start_worker(threads=2)
    wait_for_workers(address, 1)
    options = [*OPTIONS, "--out", str(tmp_path / "out"), "--cluster", address]
    assert command_line.main(FRAGILE, options) == 2
    error = capsys.readouterr().err
    assert "has 2 threads" in error and error.count("\n") == 1
