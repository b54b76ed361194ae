"""Sweeps: what is missing, what shares a job, and jobs that are stopped, preempted, submitted and continued."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from filelock import FileLock

from capbench.base.errors import CapbenchError
from capbench.cli import sweep as command
from capbench.cli.app import app
from capbench.runs import harness, sweep
from capbench.runs.engines import Cluster, Commands, Resources, _here
from capbench.runs.harness import LOCK, Places
from capbench.runs.job import Job
from capbench.runs.materials import Materials
from capbench.runs.paper import paper
from capbench.runs.plan import plan
from tests.own_data import RUSSIAN, draw

OVERRIDES = {"embedding_dim": 16, "training.batch_size": 8, "training.epochs": 40}
SHORT = Job("vsepp", "vsepp-ours", "squares", "scenes", 0, OVERRIDES | {"training.epochs": 2})
SMALL = ("--set", *(f"{name}={value}" for name, value in OVERRIDES.items()))
PATIENCE = 200  # seconds


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a data set of its own, `squares`."""
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "squares")
    return tmp_path


def words(*more: object) -> list[str]:
    few = ("vsepp", "--dataset", "squares", "--encoder", "scenes", "--preset", "vsepp-ours", *SMALL)
    return [*few, "--leaderboards", "pages", *map(str, more)]


def squares() -> Materials:
    """Those of a sweep over `squares`, which is a folder: known by its name once it was loaded."""
    materials = Materials()
    materials.dataset("squares")
    return materials


ENDLESS = OVERRIDES | {"training.epochs": 100_000}


def endless(*more: object) -> list[str]:
    """The words of a sweep whose runs last until they are stopped."""
    return [word.replace("training.epochs=40", "training.epochs=100000") for word in words(*more)]


def begin(*more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "capbench.cli", "sweep", *words(*more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(reached, process=None):
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def metrics(runs: Path) -> dict[int, dict[str, float]]:
    """Those of each seed, of which there is one record."""
    records = [json.loads(path.read_text()) for path in (runs / "records").glob("*.json")]
    found = {record["seed"]: record["metrics"] for record in records}
    assert len(found) == len(records)
    return found


def whole(folder: Path) -> dict[str, float]:
    """The metrics of a run that nothing has stopped."""
    subprocess.run([sys.executable, "-m", "capbench.cli", "run", *words("--seed", 0, "--runs", "whole")], check=True)
    return metrics(folder / "whole")[0]


def test_a_tolerant_sweep_is_made_of_tolerant_runs():
    (task,) = sweep.tasks(plan(paper("vsepp"), "squares", ["vsepp-ours"], seeds=1))
    places = Places(Path("runs"))
    (strict,) = sweep.command(task, "squares", places, Path("pages"), tolerant=False)
    assert sweep.command(task, "squares", places, Path("pages"), tolerant=True) == [[*strict, "--tolerant"]]


def test_runs_that_start_from_one_run_share_a_task():
    members = plan(paper("show-and-tell"), "scenes", ["nic", "nic-ours", "nic-ensemble-ours"], seeds=6)
    found = [[f"{job.preset} {job.seed}" for job in task.jobs] for task in sweep.tasks(members)]
    alone = [[f"nic {seed}"] for seed in range(6)]
    size = paper("show-and-tell").recipe("nic-ensemble-ours", "scenes").ensemble_size
    ensembles = [
        [*(f"nic-ours {seed}" for seed in range(first * size, (first + 1) * size)), f"nic-ensemble-ours {first}"]
        for first in range(6 // size)
    ]
    rest = [[f"nic-ours {seed}"] for seed in range(6 // size * size, 6)]
    assert sorted(found) == sorted(alone + ensembles + rest)


def test_two_ensembles_of_absent_members_share_a_task():
    jobs = plan(paper("show-and-tell"), "scenes", ["nic-ensemble-ours"], seeds=6)
    other = replace(jobs[0], overrides={"beam_size": 2})
    assert [len(task.jobs) for task in sweep.tasks([*jobs, other])] == [2] + [1] * (len(jobs) - 1)


def test_a_run_is_missing_running_or_stopped_by_its_folder(tmp_path):
    places, job = Places(tmp_path), Job("vsepp", "vse0", "scenes", "scenes", 0)
    folder = places.folder(job)
    assert sweep.state(job, places, Materials()) == "missing"
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        assert sweep.state(job, places, Materials()) == "running"
    assert sweep.state(job, places, Materials()) == "missing"
    (folder / "checkpoint-000000007.safetensors").touch()
    assert sweep.state(job, places, Materials()) == "stopped"


def test_a_run_is_done_on_the_data_that_it_was_made_on_alone(here):
    job, places = SHORT, Places(Path("runs"))
    harness.run(job, places, squares(), lambda *_: None)
    assert sweep.state(job, places, squares()) == "done"
    other = Materials()
    other.dataset(str(draw(here / "other" / "squares", RUSSIAN)))
    assert sweep.state(job, places, other) == "missing"
    picture = here / "squares" / "images" / "3.png"
    kept = picture.read_bytes()
    picture.write_bytes((here / "squares" / "images" / "2.png").read_bytes() + b"more")
    assert sweep.state(job, places, squares()) == "missing"
    picture.write_bytes(kept)
    assert sweep.state(job, places, squares()) == "done"


def test_a_run_that_left_a_picture_out_is_done(here):
    job, places = SHORT, Places(Path("runs"))
    (here / "squares" / "images" / "3.png").write_bytes(b"no picture")
    tolerant = Materials(tolerant=True)
    tolerant.dataset("squares")
    with pytest.warns(UserWarning, match="could not be decoded"):
        harness.run(job, places, tolerant, lambda *_: None)
    assert sweep.state(job, places, squares()) == "done"


def test_two_data_sets_of_one_name_are_refused(here):
    draw(here / "other" / "squares")
    with pytest.raises(CapbenchError, match="the data sets squares and other/squares are both kept as squares"):
        call("vsepp", "--dataset", "squares", "other/squares", "--encoder", "scenes", "--preset", "vsepp-ours")
    assert not (here / "runs").exists()


def test_a_sweep_that_is_stopped_saves_all_and_continues_with_what_is_missing(here):
    first = begin("--seeds", 2)
    until(lambda: list(here.glob("runs/vsepp/*/checkpoint-*")), first)
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 75
    jobs = [Job("vsepp", "vsepp-ours", "squares", "scenes", seed, OVERRIDES) for seed in (0, 1)]
    assert [sweep.state(job, Places(here / "runs"), squares()) for job in jobs] == ["stopped", "missing"]

    second = begin("--seeds", 2)
    assert "2 done" in second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0
    assert metrics(here / "runs").keys() == {0, 1}
    assert metrics(here / "runs")[0] == whole(here)

    job = replace(jobs[0], overrides=OVERRIDES | {"margin": 0.1})
    assert sweep.state(job, Places(here / "runs"), squares()) == "missing"
    before = sorted(here.rglob("*"))
    assert call(*words("--seeds", 2)) is None
    assert sorted(here.rglob("*")) == before  # nothing is missing: nothing is begun


def call(*given: object) -> object:
    return app(["sweep", *map(str, given)], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.mark.skipif(sys.platform != "linux", reason="finds a job's process under /proc")
def test_a_job_that_is_preempted_saves_and_is_queued_again(here):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(here / "jobs" / "%j")
    executor.update_parameters(timeout_min=10)
    job = executor.submit(Commands([["run", *words("--seed", 0)]]))
    until(lambda: list(here.glob("runs/vsepp/*/checkpoint-*")))
    (process,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(process), signal.SIGUSR2)  # as Slurm does
    until(job.done)
    assert f"Requeued job {job.job_id}" in job.stdout()
    assert metrics(here / "runs") == {0: whole(here)}


def test_runs_that_fail_are_counted_and_their_output_is_kept(here):
    (here / "squares" / "images" / "3.png").write_bytes(b"")
    with pytest.raises(CapbenchError, match=r"1 of 1 runs failed: vsepp vsepp-ours.*output is under .*sweep"):
        call(*words("--seeds", 1))
    (output,) = here.glob("runs/sweep/*/*_log.out")
    assert "3.png" in output.read_text()


@pytest.fixture
def slurm(here, monkeypatch):
    """Programs of Slurm's names: sbatch keeps what it is given, sacct says what is in `state`."""
    programs = here / "programs"
    programs.mkdir()
    (here / "state").write_text("PENDING")
    scripts = {
        "srun": "exit 0",
        "sbatch": f'cp "$1" {here}/given.sh; echo "Submitted batch job 4711"',
        "sacct": f"echo 'JobID|State|NodeList'; for task in 0 1; do echo \"4711_$task|$(cat {here}/state)|node\"; done",
    }
    for name, script in scripts.items():
        path = programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return here


def test_a_sweep_is_an_array_of_slurm_that_is_not_submitted_twice(slurm, capsys):
    more = ("--seeds", 2, "--cluster", "slurm", "--parallel", 1, "--minutes", 30, "--slurm", "partition=gpu")
    call(*words(*more))
    assert "2 jobs submitted" in capsys.readouterr().out
    given = (slurm / "given.sh").read_text()
    for line in ("--array=0-1%1", "--time=30", "--partition=gpu", "--cpus-per-task=4", "--signal=USR2@90"):
        assert f"#SBATCH {line}" in given
    call(*words(*more))
    assert "0 jobs submitted" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        call(*words("--seeds", 2, "--status"))
    assert "2 queued" in capsys.readouterr().out


def test_a_job_that_slurm_has_ended_without_a_record_is_submitted_again(slurm, capsys, monkeypatch):
    submitit = pytest.importorskip("submitit")
    more = ("--seeds", 2, "--cluster", "slurm")
    call(*words(*more))
    (slurm / "state").write_text("FAILED")
    submitit.SlurmJob.watcher.clear()
    with pytest.raises(SystemExit, match="1"):
        call(*words("--seeds", 2, "--status"))
    assert "2 missing (failed)" in capsys.readouterr().out
    call(*words(*more))
    assert "2 jobs submitted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "shown"),
    [("PREEMPTED", "2 missing (preempted)"), ("REVOKED", "2 missing (revoked)"), ("SUSPENDED", "2 queued"),
     ("CANCELLED by 1000", "2 missing (cancelled)"), ("RUNNING", "2 running")],
)  # fmt: skip
def test_what_slurm_calls_neither_waiting_nor_running_is_missing(slurm, capsys, word, shown):
    submitit = pytest.importorskip("submitit")
    call(*words("--seeds", 2, "--cluster", "slurm"))
    (slurm / "state").write_text(word)
    submitit.SlurmJob.watcher.clear()
    with pytest.raises(SystemExit, match="1"):
        call(*words("--seeds", 2, "--status"))
    assert shown in capsys.readouterr().out


def test_a_job_that_slurm_has_forgotten_is_submitted_again_but_not_at_once(slurm, capsys, monkeypatch):
    submitit = pytest.importorskip("submitit")
    more = ("--seeds", 2, "--cluster", "slurm")
    (slurm / "programs" / "sacct").write_text("#!/bin/sh\necho 'JobID|State|NodeList'\n")
    call(*words(*more))
    submitit.SlurmJob.watcher.clear()
    capsys.readouterr()
    call(*words(*more))
    assert "0 jobs submitted" in capsys.readouterr().out
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    submitit.SlurmJob.watcher.clear()
    call(*words(*more))
    assert "2 jobs submitted" in capsys.readouterr().out


def test_a_run_waits_for_those_that_it_starts_from(slurm, capsys):
    size = paper("show-and-tell").recipe("nic-ensemble-ours", "squares").ensemble_size
    few = ("show-and-tell", "--dataset", "squares", "--encoder", "scenes", "--seeds", size, "--cluster", "slurm")
    call(*few, "--preset", "nic-ours")
    assert f"{size} jobs submitted" in capsys.readouterr().out
    call(*few, "--preset", "nic-ensemble-ours")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 runs wait for others, which are under way: show_and_tell nic-ensemble-ours" in said
    assert "0 jobs submitted" in said


def test_a_parameter_that_slurm_does_not_have_is_refused(slurm):
    with pytest.raises(CapbenchError, match=r"--slurm: .*partion"):
        call(*words("--seeds", 1, "--cluster", "slurm", "--slurm", "partion=gpu"))


def test_two_sweeps_that_submit_at_once_both_remember_their_jobs(tmp_path):
    jobs = [Job("vsepp", "vse0", "scenes", "scenes", seed) for seed in (0, 1)]
    both = [command._Submitted(tmp_path) for _ in jobs]
    for submitted, job in zip(both, jobs, strict=True):
        submitted.add({job: str(job.seed)})
    assert command._Submitted(tmp_path).jobs.keys() == {f"vsepp/{job.name}" for job in jobs}


@pytest.mark.parametrize("given", ["2,3", None])
def test_a_run_here_sees_the_gpus_that_the_sweep_sees(monkeypatch, tmp_path, given):
    pytest.importorskip("submitit")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    note = f"import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'), file=open({str(tmp_path / 'seen')!r}, 'a'))\n"
    (tmp_path / "sitecustomize.py").write_text(note)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    until(_here(tmp_path / "jobs", 1)([["--help"]]).ended)
    seen = (tmp_path / "seen").read_text().split()
    assert seen[-1] == str(given)


def test_without_slurm_a_sweep_says_so(here):
    with pytest.raises(CapbenchError, match=r"submitit cannot submit the sweep: .*srun"):
        call(*words("--seeds", 1, "--cluster", "slurm"))


def test_bad_options_are_refused_before_anything_is_written(here):
    with pytest.raises(CapbenchError, match="no preset 'vsepp-our'; did you mean 'vsepp-ours'"):
        call("vsepp", "karpathy", "--preset", "vsepp-our")
    with pytest.raises(CapbenchError, match="'gpu' sets nothing of Slurm's; write partition=gpu"):
        Resources(slurm=("gpu",)).parameters()
    assert not (here / "runs").exists()


def test_engines_are_those_of_the_library():
    assert get_args(command.Engine) == get_args(Cluster)


def test_ctrl_c_at_a_terminal_reaches_a_run_once_and_it_saves(here):
    first = subprocess.Popen(
        [sys.executable, "-m", "capbench.cli", "sweep", *endless("--seeds", 1)], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(lambda: list(here.glob("runs/vsepp/*/checkpoint-*")), first)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(PATIENCE) == 75
    job = Job("vsepp", "vsepp-ours", "squares", "scenes", 0, ENDLESS)
    assert sweep.state(job, Places(here / "runs"), squares()) == "stopped"  # and no longer running
    (output,) = here.glob("runs/sweep/*/*_log.out")
    assert "stopped and saved" in output.read_text()


def test_ray_runs_a_task_and_stops_one(here, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    on_ray = ("--seeds", 1, "--cluster", "ray", "--cpus", 1)
    first = subprocess.Popen([sys.executable, "-m", "capbench.cli", "sweep", *endless(*on_ray)])
    until(lambda: list(here.glob("runs/vsepp/*/checkpoint-*")), first)
    first.send_signal(signal.SIGINT)
    assert first.wait(PATIENCE) == 75
    job = Job("vsepp", "vsepp-ours", "squares", "scenes", 0, ENDLESS)
    assert sweep.state(job, Places(here / "runs"), squares()) == "stopped"
    done = begin(*on_ray)
    assert "1 done" in done.communicate(timeout=PATIENCE)[0]
    assert set(metrics(here / "runs")) == {0}
