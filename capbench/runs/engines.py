"""Where the tasks of a sweep run: on a Slurm cluster or in processes here, by submitit; or on a cluster of Ray.

submitit keeps each task, a list of command lines, as a pickle in the sweep's folder, which the job of that task reads.
Nothing of a run's own goes through it: whether a task is done shows in the folders of its runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any, Literal, Protocol

from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.signals import stop_requests

LONGEST = 60 * 24 * 365  # minutes: processes here have no limit
SECONDS = 0.5  # between two looks at what runs
AGAIN = 10.0  # between two demands that a task of Ray stop
RETRIES = 3  # of a task whose node Ray has lost
TIMES = 10**6  # that a Slurm job may be over its time, and is queued again

Cluster = Literal["local", "slurm", "ray"]
Words = Sequence[Sequence[str]]  # a task: the words of commands, after `capbench`


@dataclass(frozen=True)
class Resources:
    """What a task may use."""

    minutes: int = 24 * 60  # of a Slurm job; a task that takes longer is queued again, and continues
    cpus: int = 4
    gpus: int = 0
    slurm: tuple[str, ...] = ()  # more of Slurm's own: "partition=gpu"

    def parameters(self) -> dict[str, Any]:
        """submitit's names of them. Raises CapbenchError for one of Slurm's that is not name=value."""
        wrong = [each for each in self.slurm if not each.partition("=")[2]]
        if wrong:
            raise CapbenchError(f"{wrong[0]!r} sets nothing of Slurm's; write partition=gpu")
        own: dict[str, Any] = {
            f"slurm_{name}": value for name, _, value in (each.partition("=") for each in self.slurm)
        }
        if "slurm_setup" in own:
            own["slurm_setup"] = [own["slurm_setup"]]  # a list of command lines
        gpus = {"gpus_per_node": self.gpus} if self.gpus else {}  # clusters without any refuse to be asked for none
        return {"timeout_min": self.minutes, "cpus_per_task": self.cpus, **gpus, **own}


class Commands:
    """A task as it runs: its commands in turn, each in a process of its own."""

    def __init__(self, commands: Words, environment: Mapping[str, str | None] | None = None) -> None:
        self.commands = [list(words) for words in commands]
        self.environment = dict(environment or {})  # variables that differ from those of the job; None: not set

    def __call__(self) -> None:
        variables = {**os.environ, **self.environment}
        environment = {name: value for name, value in variables.items() if value is not None}
        for words in self.commands:
            self._process = subprocess.Popen([sys.executable, "-m", "capbench.cli", *words], env=environment)
            self._waiting = Thread(target=self._process.wait)  # a handler of signals can wait for it, too
            self._waiting.start()
            signal.signal(signal.SIGTERM, self._pass_on)
            try:
                while self._waiting.is_alive():
                    self._waiting.join(SECONDS)  # Ray interrupts a wait only between two of them
            except KeyboardInterrupt:
                self._stop(signal.SIGTERM)  # Ray's processes block SIGINT, and so do their children
                raise
            if self._process.returncode:
                raise RuntimeError(f"capbench {' '.join(words)} ended with {self._process.returncode}")

    def checkpoint(self) -> Any:
        """What submitit calls when a job is preempted or over time, before it queues the result: the run saves."""
        from submitit.helpers import DelayedSubmission

        self._stop(signal.SIGUSR2)
        return DelayedSubmission(Commands(self.commands, self.environment))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._process.send_signal(number)

    def _stop(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        while self._waiting.is_alive():
            with suppress(KeyboardInterrupt):  # Ray's, once more: the run knows
                self._waiting.join(SECONDS)


def submit(tasks: Sequence[Words], folder: Path, resources: Resources, parallel: int) -> list[str]:
    """Submit an array of jobs to Slurm, of which `parallel` run at once; returns a job id for each task.

    Raises CapbenchError without submitit or Slurm, and for what Slurm refuses.
    """
    with _submitit() as submitit:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster="slurm", slurm_max_num_timeout=TIMES)
        try:
            executor.update_parameters(name="capbench", slurm_array_parallelism=parallel, **resources.parameters())
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise CapbenchError(f"--slurm: {error}") from error
        with executor.batch():
            jobs = [executor.submit(Commands(task)) for task in tasks]
        return [str(job.job_id) for job in jobs]


def slurm_state(folder: Path, job_id: str) -> str:
    """Slurm's word for what a submitted job is at, such as PENDING or FAILED."""
    with _submitit() as submitit:
        return str(submitit.SlurmJob(folder / "%j", job_id).state)


class Begun(Protocol):
    """A task that runs."""

    def ended(self) -> bool:
        """Whether it has ended, well or not."""

    def stop(self) -> None:
        """Let its run save, and end."""

    def wait(self) -> None:
        """Wait for the end of a task that was stopped."""


def work(
    tasks: Sequence[Words], folder: Path, cluster: Cluster, resources: Resources, parallel: int,
    look: Callable[[], None],
) -> None:  # fmt: skip
    """Run tasks here or on Ray, `parallel` at once, until all have ended, well or not. `look` is called meanwhile.

    Raises StoppedError after a signal to stop, when all that ran have saved, and CapbenchError without the library.
    """
    begin = _ray(resources) if cluster == "ray" else _here(folder, parallel)
    waiting, running = list(tasks), list[Begun]()
    with stop_requests() as stopped:
        while waiting or running:
            running = [task for task in running if not task.ended()]
            while waiting and len(running) < parallel:
                running.append(begin(waiting.pop(0)))
            look()
            time.sleep(SECONDS)
            if stopped():
                for task in running:
                    task.stop()
                for task in running:
                    task.wait()
                left = f"{len(running) + len(waiting)} of {len(tasks)} tasks are left"
                raise StoppedError(f"stopped and saved: {left}; the same command resumes")


class _Local:
    """A job of submitit's local executor."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def ended(self) -> bool:
        return bool(self.job.done())

    def stop(self) -> None:
        self.job._process.terminate()  # its controller passes the signal on, where `cancel` kills after a second

    def wait(self) -> None:
        self.job._process.wait()


def _here(folder: Path, parallel: int) -> Callable[[Words], Begun]:
    """Tasks begin in processes with an equal share of the threads."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
    with _submitit() as submitit:
        executor = submitit.LocalExecutor(folder / "%j")
        executor.update_parameters(timeout_min=LONGEST, stderr_to_stdout=True)
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}  # submitit hides all GPUs from its jobs

    def begin(task: Words) -> Begun:
        with _without_ctrl_c():
            return _Local(executor.submit(Commands(task, visible)))

    return begin


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A process that is begun within it never sees Ctrl-C: the sweep does, and stops it once."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _OfRay:
    """A task of Ray."""

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray, self.task = ray, task

    def ended(self) -> bool:
        return bool(self.ray.wait([self.task], timeout=0)[0])

    def stop(self) -> None:
        self.ray.cancel(self.task)  # raises KeyboardInterrupt in it

    def wait(self) -> None:
        while not self.ray.wait([self.task], timeout=AGAIN)[0]:
            self.stop()  # the exception can be lost in code that swallows it, as in a destructor


def _ray(resources: Resources) -> Callable[[Words], Begun]:
    """Tasks begin on the cluster of RAY_ADDRESS, or on one that is made here."""
    try:
        import ray
    except ImportError as error:
        raise CapbenchError(f"the cluster is Ray's: pip install 'capbench[ray]' ({error})") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to others
    own = {name: value for name, value in os.environ.items() if name.startswith("CAPBENCH_")}
    ray.init(ignore_reinit_error=True, runtime_env={"env_vars": own})  # else workers have those of `ray start`
    takes = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=RETRIES)
    run = takes(_run)
    return lambda task: _OfRay(ray, run.remote([list(words) for words in task]))


def _run(commands: Words) -> None:
    Commands(commands)()


@contextmanager
def _submitit() -> Iterator[Any]:
    try:
        import submitit
    except ImportError as error:
        raise CapbenchError(f"sweeps are shared out by submitit: pip install 'capbench[sweep]' ({error})") from error
    try:
        yield submitit
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise CapbenchError(f"submitit cannot submit the sweep: {error}") from error
