"""Trains a search in this process, or with Keras Tuner's chief and workers in several."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent import futures

from recipes._lab import bench
from recipes._lab.errors import SearchFailed, UserError

CHIEF_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")

# How long a chief waits for a sign of life from any worker, and a worker for its chief: so many
# seconds at least, and so many times the longest trial yet.
PATIENCE_SECONDS = 600
PATIENCE_FACTOR = 10
# How long a chief stays for workers that have not heard that nothing is left to do.
FAREWELL_SECONDS = 30
# A worker that dies so often in a row, while no trial gets finished, is not started again.
DEATHS_IN_A_ROW = 3
POLL_SECONDS = 0.1


def role():
    """Return "alone", "chief" or "worker": what the environment says that this process is.

    Raises:
        UserError: where only some of Keras Tuner's three variables are set.
    """
    missing = [name for name in CHIEF_VARIABLES if not os.environ.get(name)]
    if set(CHIEF_VARIABLES[1:]) <= set(missing):
        return "alone"
    if missing:
        raise UserError(
            f"A search over several machines needs all of {', '.join(CHIEF_VARIABLES)}. "
            f"Missing: {', '.join(missing)}"
        )
    # Keras Tuner's own rule for the name.
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


def execute(searches, workers=0, fresh=False, callbacks=(), show_progress=True):
    """Train all trials of `searches` that are not finished yet.

    Args:
        searches: List of `Search`, of one parent folder.
        workers: Int, number of worker processes on this machine. 0 trains in this process, or
            leaves the training to workers elsewhere where the environment makes this one a chief.
        fresh: Whether to forget finished trials.
        callbacks: Keras callbacks for every trial; not with workers.
        show_progress: Whether to draw a progress bar, where standard error is a terminal.

    Raises:
        Interrupted: on Ctrl-C. Finished trials are kept.
        SearchFailed: where workers die or fall silent.
    """
    searches = list({search.key: search for search in searches}.values())
    if fresh:
        for search in searches:
            shutil.rmtree(search.folder, ignore_errors=True)
    if all(search.is_finished() for search in searches):
        return
    bench.import_keras()
    from recipes._lab.tuning.oracle import OracleQueue, SearchOracle

    queue = OracleQueue([SearchOracle(search) for search in searches])
    with Progress(queue, show_progress) as progress:
        try:
            if workers or role() == "chief":
                Chief(queue, searches, workers, progress).run()
            else:
                train(queue, searches, callbacks, progress.update)
        except KeyboardInterrupt:
            raise bench.Interrupted(queue.finished, queue.total) from None


def train(oracle, searches, callbacks=(), on_trial_end=None):
    """Train the trials that an oracle or a chief hands out, in this process."""
    with bench.silent_standard_error():
        from recipes._lab.tuning.tuner import SearchTuner

    SearchTuner(oracle, searches, searches[0].parent, on_trial_end).search(callbacks)


def work(searches):
    """Be a worker: train what the chief of the environment hands out until it says that it is done.

    Raises:
        SearchFailed: where the chief does not answer.
    """
    with bench.silent_standard_error():
        import grpc
        from keras_tuner.src.distribute import oracle_client

        from recipes._lab.tuning.oracle import OracleQueue

    oracle_client.TIMEOUT = PATIENCE_SECONDS
    for chief_may_come_back in (True, False):
        try:
            train(OracleQueue([]), searches)
            return
        except grpc.RpcError as error:
            # A chief that is killed in the middle of a call cuts it off; the next call waits.
            if error.code() == grpc.StatusCode.UNAVAILABLE and chief_may_come_back:
                continue
            address = ":".join(os.environ[name] for name in CHIEF_VARIABLES[1:])
            raise SearchFailed(
                f"The chief at {address} does not answer ({error.code().name.lower()}). "
                "It has finished, or it has to be started again."
            ) from None


class Chief:
    """Hands out trials over the network, and keeps this machine's workers alive.

    Args:
        queue: An `OracleQueue`.
        searches: List of `Search`.
        workers: Int, number of worker processes on this machine.
        progress: A `Progress`.
    """

    def __init__(self, queue, searches, workers, progress):
        self.queue = queue
        self.searches = searches
        self.progress = progress
        self.names = [f"worker-{number}" for number in range(1, workers + 1)]
        self.processes = {}
        self.deaths = dict.fromkeys(self.names, 0)
        self.finished_at_death = dict.fromkeys(self.names, -1)

    def run(self):
        """Serve until every trial is finished, and every worker has heard of it."""
        server, address = self._serve()
        try:
            for name in self.names:
                self._start(name, address)
            while self.queue.finished < self.queue.total:
                self._restart_the_dead(address)
                self._check_signs_of_life(address)
                self.progress.update()
                time.sleep(POLL_SECONDS)
            self.progress.update()
            self._say_farewell()
        finally:
            for process in self.processes.values():
                process.kill()
                process.join()
            server.stop(grace=None).wait(FAREWELL_SECONDS)

    def _serve(self):
        import grpc
        from keras_tuner.src import protos
        from keras_tuner.src.distribute.oracle_chief import OracleServicer

        ip, port = "127.0.0.1", "0"
        if role() == "chief":
            ip, port = (os.environ[name] for name in CHIEF_VARIABLES[1:])
        # Keras Tuner's own server, which ends only after every worker has come back, however long
        # that takes. Two chiefs at one address would each get half of the calls.
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)]
        )
        protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(self.queue), server)
        try:
            port = server.add_insecure_port(f"{ip}:{port}")
        except RuntimeError:
            port = 0
        if not port:
            raise UserError(
                "KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT must be an address of this "
                f"machine that nothing else listens on. Received: {ip}:{port}"
            )
        server.start()
        return server, (ip, str(port))

    def _start(self, name, address):
        # A new interpreter: TensorFlow does not survive a fork.
        self.processes[name] = multiprocessing.get_context("spawn").Process(
            target=_work_for_parent, args=(name, *address, self.searches), name=name, daemon=True
        )
        # What TensorFlow says of absent GPU libraries, once a worker, is no news to anyone.
        with bench.silent_standard_error():
            self.processes[name].start()

    def _restart_the_dead(self, address):
        for name, process in list(self.processes.items()):
            if process.is_alive():
                continue
            progressed = self.queue.finished > self.finished_at_death[name]
            self.deaths[name] = 1 if progressed else self.deaths[name] + 1
            self.finished_at_death[name] = self.queue.finished
            if process.exitcode == 0 and self.queue.finished == self.queue.total:
                continue
            if self.deaths[name] >= DEATHS_IN_A_ROW:
                raise SearchFailed(
                    f"{name} died {DEATHS_IN_A_ROW} times in a row (exit code {process.exitcode}); "
                    f"{self.queue.finished} of {self.queue.total} trials are finished and kept. "
                    "Without --workers the same command shows why."
                )
            # Under the same name, it gets the trial back that it had.
            self._start(name, address)

    def _check_signs_of_life(self, address):
        patience = max(PATIENCE_SECONDS, PATIENCE_FACTOR * self.queue.longest_trial)
        if time.monotonic() - self.queue.last_heard > patience:
            raise SearchFailed(
                f"No worker has called {':'.join(address)} for {patience:.0f} seconds; "
                f"{self.queue.finished} of {self.queue.total} trials are finished and kept. "
                "The same command goes on from there."
            )

    def _say_farewell(self):
        """Stay until every worker that ever called has heard that nothing is left to do."""
        end = time.monotonic() + FAREWELL_SECONDS
        while self.queue.tuner_ids and time.monotonic() < end:
            time.sleep(POLL_SECONDS)


def _work_for_parent(name, ip, port, searches):
    """Be one of a chief's own workers, and end with it, even where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the chief, which ends this one.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(zip(CHIEF_VARIABLES, (name, ip, port), strict=True))
    with contextlib.suppress(SearchFailed):
        work(searches)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


class Progress:
    """A bar with the trials done, the time left and the best score so far, on a terminal."""

    def __init__(self, queue, visible):
        self._queue = queue
        self._bar = bench.progress_bar(visible)

    def __enter__(self):
        self._bar.__enter__()
        self._task = self._bar.add_task(
            "searching", total=self._queue.total, completed=self._queue.finished
        )
        return self

    def __exit__(self, *details):
        return self._bar.__exit__(*details)

    def update(self):
        self._bar.update(
            self._task, completed=self._queue.finished, description=self._description()
        )

    def _description(self):
        current = next((o for o in self._queue.oracles if not o.is_finished), None)
        current = current or self._queue.oracles[-1]
        run = current.search.run
        trials = [trial for trial in current.finished.values() if not trial.diverged]
        sign = 1 if current.search.direction == "max" else -1
        best = max(trials, key=lambda trial: sign * trial.score, default=None)
        so_far = f", best so far {best.score:.3g} at {best.learning_rate:g}" if best else ""
        return f"{run.experiment}, {run.variant}{so_far}"
