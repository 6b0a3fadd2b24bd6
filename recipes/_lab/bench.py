"""Plans the runs of a recipe and trains those that are missing, side by side."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import joblib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recipes._lab import picture
from recipes._lab.errors import UserError
from recipes._lab.recipe import code_fingerprint, load_module
from recipes._lab.runs import DamagedRun, Run

# Seeds that report take no part in choosing learning rates: the search has seeds of its own.
FIRST_REPORT_SEED = 0
FIRST_TUNING_SEED = 1000
SETTINGS = ("samples", "label_noise", "epochs", "batch_size")
CLUSTER_SECONDS = 10  # How long a Dask scheduler may take to answer.


class Interrupted(Exception):
    """Ctrl-C: `finished` of `total` runs are kept."""

    def __init__(self, finished, total):
        super().__init__(f"{finished} of {total} runs are finished")
        self.finished = finished
        self.total = total


def plan(recipe, experiments, seeds):
    """Return the runs of `experiments` for seeds 0 to `seeds - 1`.

    All seeds of a variant stand together, because they share one traced graph.
    """
    return [
        _run(recipe, experiment, variant, seed)
        for experiment in experiments
        for variant in experiment.variants
        for seed in range(FIRST_REPORT_SEED, FIRST_REPORT_SEED + seeds)
    ]


def _run(recipe, experiment, variant, seed):
    arguments = {**experiment.arguments, **recipe.variants[variant]}
    settings = {name: getattr(experiment, name) for name in SETTINGS}
    settings |= {name: arguments.pop(name) for name in SETTINGS if name in arguments}
    return Run(
        recipe=recipe.name,
        recipe_path=str(recipe.path),
        fingerprint=recipe.fingerprint,
        experiment=experiment.name,
        data=experiment.data,
        variant=variant,
        arguments=arguments,
        learning_rate=float(experiment.learning_rates[variant]),  # Keras takes no int.
        seed=seed,
        measure=experiment.measure,
        **settings | experiment.overrides,
    )


def execute(runs, folder, jobs=1, cluster=None, fresh=False, show_progress=True):
    """Return the results of `runs`, a dictionary from run key to result; train what is missing.

    Args:
        runs: List of `Run`.
        folder: A `RunFolder`. Every run is written to it as soon as it is finished.
        jobs: Int, number of processes that train side by side. 1 trains in this process.
        cluster: String, the address of a Dask scheduler whose workers train instead.
        fresh: Whether to train runs again that are finished.
        show_progress: Whether to draw a progress bar, where standard error is a terminal.

    Raises:
        Interrupted: on Ctrl-C. Finished runs are kept.
    """
    results = {}
    if not fresh:
        for run in runs:
            try:
                result = folder.read(run)
            except DamagedRun as damage:
                print(f"{damage.path} is damaged; training it again.", file=sys.stderr)
                continue
            if result is not None:
                results[run.key] = result
    # Two experiments may share runs: a sweep contains the main comparison's.
    missing = list({run.key: run for run in runs if run.key not in results}.values())
    total = len({run.key for run in runs})
    with progress_bar(show_progress and bool(missing)) as progress:
        task = progress.add_task("training", total=total, completed=total - len(missing))
        try:
            for run, result in _train_all(missing, min(jobs, len(missing)), cluster):
                folder.write(run, result)
                results[run.key] = result
                progress.update(task, advance=1, description=run.describe())
        except KeyboardInterrupt:
            # The files, because Ctrl-C may come between a file and the line after it.
            kept = {run.key for run in runs if folder.path(run).exists()}
            raise Interrupted(len(kept), total) from None
    return results


def illustrate(recipe, summary, folder, jobs=1):
    """Let a recipe that has a function `illustrate(summary)` draw a picture of its own.

    The function returns a matplotlib `Figure`, or None where the summary lacks the experiments
    that it draws. It may need Keras, and so it runs where the training did.
    """
    if hasattr(recipe.module, "illustrate"):
        path = Path(folder) / f"{recipe.name}-illustration.png"
        list(_side_by_side(_illustrate, [(str(recipe.path), summary, path)], jobs))


def _illustrate(recipe_path, summary, path):
    import_keras()
    figure = load_module(recipe_path).illustrate(summary)
    if figure is None:
        path.unlink(missing_ok=True)  # Of an earlier command, with other experiments.
    else:
        picture.put_legends_beside(figure)
        picture.save(figure, path)


def default_jobs():
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train(run):
    import_keras()
    from recipes._lab.training import train

    return run, train(run)


def import_keras():
    """Load Keras and TensorFlow, which only a process that trains has to pay for."""
    with silent_standard_error():
        import keras

        keras.version()  # Loads Keras, where the import was put off, before TensorFlow's own.


@contextlib.contextmanager
def silent_standard_error():
    """Keep what C++ code writes to standard error off the terminal.

    TensorFlow's import reports every GPU library that is absent before any of its settings for
    the log take effect. What goes wrong in Python comes out as an exception all the same.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _train_all(runs, jobs, cluster=None):
    if cluster and runs:
        yield from _train_on_cluster(runs, cluster)
        return
    yield from _side_by_side(_train, [(run,) for run in runs], jobs)


def _side_by_side(function, calls, jobs):
    """Call `function` once for each tuple of arguments; yield what it returns, as it comes."""
    if jobs <= 1:
        yield from (function(*arguments) for arguments in calls)
        return
    with warnings.catch_warnings():
        # A worker that leaves while others train is joblib's to replace, and no one else's concern.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        yield from parallel(joblib.delayed(function)(*arguments) for arguments in calls)


@contextlib.contextmanager
def processes_for_all():
    """Let all that trains in this block share its processes, each of which loads Keras once."""
    try:
        yield
    finally:
        joblib.externals.loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _train_on_cluster(runs, address):
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError(
            "--cluster needs Dask: pip install 'keras-training-recipes[cluster]'"
        ) from None
    try:
        client = Client(address, timeout=CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            "--cluster must be the address of a Dask scheduler, such as tcp://10.0.0.1:8786. "
            f"Received: {address} ({error})"
        ) from None
    with client, joblib.parallel_config("dask", client=client):
        if not client.nthreads():
            raise UserError(f"The Dask scheduler at {address} has no workers.")
        parallel = joblib.Parallel(
            return_as="generator_unordered", batch_size=1, pre_dispatch="all"
        )
        yield from parallel(joblib.delayed(_train_for_cluster)(run, run.key) for run in runs)


def _train_for_cluster(run, key):
    """Train a run on a worker of Dask, where that gives the same digits as here."""
    from dask.distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:
        raise UserError(
            f"Dask's worker {worker.address} has {worker.state.nthreads} threads, and Keras can "
            "train in one only. Start it with --nthreads 1, and more of them with --nworkers."
        )
    source = Path(load_module(run.recipe_path).__file__).read_text(encoding="utf-8")
    if run.key != key or code_fingerprint(source) != run.fingerprint:
        raise UserError(
            f"Dask's worker {worker.address} has another version of the recipe, of this project "
            "or of its packages than this machine: its results could not be compared."
        )
    return _train(run)


TIME_LEFT = (TimeRemainingColumn(compact=True), TextColumn("left"))


def progress_bar(visible, clock=TIME_LEFT):
    """Return a bar for standard error with counts and a clock; none without a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *clock,
        console=console,
        transient=True,
        disable=not (visible and console.is_terminal),
    )
