"""Runs many recipes, one after the other, each by its own command line in a process of its own.

So one that fails, or takes its process down with it, leaves the others alone.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import TimeElapsedColumn

from recipes._lab import bench
from recipes._lab.arguments import FAILED, INTERRUPTED
from recipes._lab.collection import catalogue
from recipes._lab.errors import UserError
from recipes._lab.recipe import choose
from recipes._lab.runs import check_writable

LOG = "log.txt"
SECONDS_TO_STOP = 10


@dataclass(frozen=True)
class Outcome:
    """How one recipe's command ended."""

    name: str
    code: int
    seconds: float
    message: str  # The verdicts, or what went wrong.


def run(options):
    """Run the recipes that `options` name; return the exit code."""
    names = _choose_names(options)
    check_writable("--out", options.out)
    start = time.monotonic()
    finished, interrupted = [], False
    console = Console(highlight=False, soft_wrap=True)
    with bench.progress_bar(True, clock=(TimeElapsedColumn(),)) as progress:
        task = progress.add_task("", total=len(names))
        try:
            for name in names:
                progress.update(task, description=name)
                outcome = run_one(name, options)
                finished.append(outcome)
                progress.advance(task)
                console.print(f"{name}: {outcome.message} ({outcome.seconds:.0f} s)")
        except KeyboardInterrupt:
            interrupted = True
    failed = [outcome.name for outcome in finished if outcome.code]
    succeeded = len(finished) - len(failed)
    minutes = (time.monotonic() - start) / 60
    console.print(f"{succeeded} of {len(names)} recipes finished in {minutes:.1f} minutes.")
    if failed:
        console.print(
            f"Failed: {', '.join(failed)}. What they printed is in DIR/NAME/{LOG}, DIR "
            f"being {options.out}."
        )
    if interrupted:
        console.print("Interrupted: finished runs are kept. The same command goes on from there.")
        return INTERRUPTED
    return FAILED if failed else 0


def _choose_names(options):
    if options.all and options.names:
        raise UserError("run takes names of recipes or --all, not both.")
    if not options.all and not options.names:
        raise UserError("run needs the names of recipes, or --all.")
    known = [path.stem for path in catalogue.paths()]
    return known if options.all else choose("A recipe", dict.fromkeys(options.names), known)


def run_one(name, options):
    """Run one recipe's command and return its `Outcome`; what it prints goes into a log."""
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(folder / LOG, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command(name, options), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise
    seconds = time.monotonic() - start
    if code:
        return Outcome(name, code, seconds, f"failed: {_last_line(folder / LOG)}")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    message = catalogue.count_verdicts(report["claims"]) or "nothing claimed"
    return Outcome(name, code, seconds, message)


def command(name, options):
    """Return the command that runs the recipe `name`."""
    arguments = ["--out", str(options.out / name)]
    for option in ("seeds", "jobs"):
        if getattr(options, option) is not None:
            arguments += [f"--{option}", str(getattr(options, option))]
    arguments += [f"--{flag}" for flag in ("quick", "fresh") if getattr(options, flag)]
    return [sys.executable, "-m", f"recipes.{name}", *arguments]


def _stop(process):
    """Wait for a recipe that Ctrl-C reached too; tell it where only this process was told."""
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def _last_line(path):
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
