"""Faults of the machine, caused for real: full and read-only disks, no network, folders and locks of other users."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from capbench.base import files
from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError
from capbench.base.files import TEMPORARY, atomic_write, check_writable, locked, remove_remains
from capbench.data.registered import registered
from capbench.data.scenes import scenes
from capbench.evidence.records import load_results, save_result
from capbench.metrics import jars
from capbench.metrics.jars import find_java, meteor_statistics, ptb_tokenize
from capbench.training import checkpoint
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from tests.processes import begin, namespaces, read_only, result_of, small_disk
from tests.test_records import RANKS, example

linux = pytest.mark.skipif(not Path("/proc/self/ns").exists(), reason="needs the namespaces of Linux")
ROOT = Path(__file__).parents[1]
FEW = {"train": 6, "val": 1, "test": 1}


def refusal(work, *words) -> str:
    try:
        work(*words)
    except CapbenchError as error:
        return str(error)
    return "nothing was refused"


def save_until_the_disk_is_full(folder: Path, told: Connection) -> None:
    namespaces(told)
    small_disk(folder / "disk", 3_000_000)
    said = ""
    for step in range(1, 9):
        weights = {"w": torch.full((step * 50_000,), float(step))}  # 200 kB more at each step
        said = refusal(checkpoint.save_step, folder / "disk", step, weights, {"step": step})
        if said != "nothing was refused":
            break
    found = checkpoint.load_newest(folder / "disk")
    told.send((said, step, found and found[1], sorted(path.name for path in (folder / "disk").iterdir())))


@linux
@pytest.mark.fault("disk full while a checkpoint is saved")
def test_a_checkpoint_on_a_full_disk_is_refused_and_the_ones_before_it_stay(tmp_path):
    said, step, state, names = result_of(save_until_the_disk_is_full, tmp_path)
    assert "No space left on device; the old file is as it was" in said
    assert step > 2
    assert state == {"step": step - 1, "fallbacks": []}
    assert names == [f"checkpoint-{n:09d}.safetensors" for n in (step - 2, step - 1)]


def record_on_a_full_disk(folder: Path, told: Connection) -> None:
    namespaces(told)
    small_disk(folder / "disk", 400_000)
    kept = save_result(example(), RANKS, folder / "disk")
    (folder / "disk" / "other").write_bytes(b"x" * 250_000)
    said = refusal(save_result, example(notes=["n" * 200_000]), RANKS, folder / "disk")
    with suppress(OSError), (folder / "disk" / "other").open("ab", buffering=0) as other:
        while True:
            other.write(bytes(4096))
    os.truncate(folder / "disk" / "other", (folder / "disk" / "other").stat().st_size - 3 * 4096)
    store = refusal(lambda: features(scenes(**FEW, seed=9), Encoder("scenes"), store=folder / "disk" / "store"))
    left = [path.name for path in (folder / "disk").iterdir() if path.is_file() and path.name != "other"]
    parts = [p.name for p in (folder / "disk" / "store" / "features").iterdir() if p.suffix != ".lock"]
    told.send((said, store, sorted(left), sorted([kept.name, f"{kept.stem}.npz"]), parts))


@linux
@pytest.mark.fault("disk full while a record is written")
@pytest.mark.fault("disk full while features are stored")
def test_records_and_features_on_a_full_disk_are_refused_and_leave_nothing(tmp_path):
    said, store, left, expected, parts = result_of(record_on_a_full_disk, tmp_path)
    assert "No space left on device" in said
    assert "No space left on device" in store
    assert left == expected
    assert parts == []


def write_where_nothing_can_be_written(folder: Path, told: Connection) -> None:
    namespaces(told)
    (folder / "out").mkdir()
    save_result(example(), RANKS, folder / "out")
    read_only(folder / "out")
    writes = {
        "check": lambda: check_writable(folder / "out" / "runs"),
        "record": lambda: save_result(example(), RANKS, folder / "out"),
        "checkpoint": lambda: checkpoint.save(folder / "out" / "best", {"w": torch.zeros(2)}, {}),
        "features": lambda: features(scenes(**FEW), Encoder("scenes"), store=folder / "out"),
    }
    told.send(({name: refusal(write) for name, write in writes.items()}, len(load_results(folder / "out"))))


@linux
@pytest.mark.fault("folder on a read-only disk")
def test_a_read_only_disk_is_named_before_the_work_and_what_is_there_is_read(tmp_path):
    said, records = result_of(write_where_nothing_can_be_written, tmp_path)
    assert records == 1
    for name, message in said.items():
        assert "Read-only file system" in message, name
        assert str(tmp_path / "out") in message, name


def work_without_network(folder: Path, told: Connection) -> None:
    namespaces(told, network=True)
    os.environ |= {"CAPBENCH_WEIGHTS": str(folder / "weights"), "CAPBENCH_CACHE": str(folder / "cache")}
    for name in ("HF_HUB_OFFLINE", "http_proxy", "https_proxy"):
        os.environ.pop(name, None)
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    except OSError as error:
        network = str(error.strerror)
    torchvision = refusal(Encoder, "squeezenet1_0")
    timm = refusal(Encoder, "timm/mobilenetv2_050")
    told.send((network, torchvision, timm, features(scenes(**FEW), Encoder("scenes"), store=folder).array.shape))


@linux
@pytest.mark.fault("no network")
def test_without_a_network_what_is_there_works_and_what_is_missing_is_named_with_its_place(tmp_path):
    network, torchvision, timm, shape = result_of(work_without_network, tmp_path)
    assert network == "Network is unreachable"
    assert "cannot download" in torchvision or "no weights of squeezenet1_0" in torchvision
    assert "squeezenet1_0" in torchvision
    assert str(tmp_path / "weights") in torchvision
    assert f"Put mobilenetv2_050.safetensors into {tmp_path / 'weights'}" in timm
    assert shape == (8, 512)


@pytest.fixture
def shared():
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def as_another_user() -> None:
    """Give up the rights of root, where this process has them."""
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)


def lock_of_another_user(folder: Path, told: Connection) -> None:
    as_another_user()

    def hold() -> None:
        with locked(folder / "features.lock", 0.5):
            pass

    told.send(refusal(hold))


@pytest.mark.skipif(os.name != "posix", reason="needs users")
@pytest.mark.fault("lock that belongs to another user")
def test_a_lock_is_open_to_all_users_and_one_that_is_not_says_what_to_do(shared):
    before = os.umask(0o022)
    try:
        with locked(shared / "features.lock", 1.0):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / "features.lock").stat().st_mode) == 0o666
    assert result_of(lock_of_another_user, shared) == "nothing was refused"
    (shared / "features.lock").chmod(0o444)
    said = result_of(lock_of_another_user, shared)
    assert "features.lock: Permission denied; make it and its folder writable" in said
    assert "CAPBENCH_CACHE" in said


def test_a_process_that_waits_for_another_one_says_so(shared, monkeypatch, capsys):
    monkeypatch.setattr("capbench.base.files.SILENT", 0.05)
    path = shared / "features.lock"
    with locked(path, 1.0):
        for seconds in (0.05, 0.2):
            assert "another process has held" in refusal(lambda seconds=seconds: locked(path, seconds).__enter__())
    said = capsys.readouterr().err
    assert said == f"waiting for another process, which holds {path}\n"  # only the longer one


def work_without_a_home(folder: Path, told: Connection) -> None:
    for name in ("HOME", "CAPBENCH_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    os.setgid(54321)
    os.setuid(54321)  # a container's user without an entry in passwd
    told.send((refusal(cache_folder), refusal(features, scenes(**FEW), Encoder("scenes")), list(registered())))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may become a user without an entry")
@pytest.mark.fault("user without a home folder")
def test_a_user_without_a_home_folder_is_told_which_variable_to_set(tmp_path):
    cache, store, mine = result_of(work_without_a_home, tmp_path)
    assert cache == store == "~/.cache: the home folder is unknown; set CAPBENCH_CACHE to a folder, as a whole path"
    assert mine == []


def die_while_writing(folder: Path, told: Connection) -> None:
    def half(file) -> None:
        file.write(b"half")
        file.flush()
        told.send("written")
        os.kill(os.getpid(), 9)

    atomic_write(folder / "best.safetensors", half)


@pytest.mark.fault("kill -9 within an atomic write")
def test_what_a_killed_write_leaves_is_removed_at_the_next_start_unless_another_may_be_writing(tmp_path, monkeypatch):
    (tmp_path / "best.safetensors").write_bytes(b"whole")
    process, heard = begin(die_while_writing, tmp_path)
    assert heard.recv() == "written"
    process.join()
    assert process.exitcode == -9
    (left,) = tmp_path.glob(f".*{TEMPORARY}")
    assert left.read_bytes() == b"half"
    assert (tmp_path / "best.safetensors").read_bytes() == b"whole"
    remove_remains(tmp_path)
    assert left.exists()
    os.utime(left, (0, left.stat().st_mtime - files.OTHERS_AT_WORK - 1))
    remove_remains(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_file_that_is_written_again_removes_what_killed_writers_of_it_left_and_of_no_other(tmp_path):
    names = [f".page[1].md.abc{TEMPORARY}", f".page1.md.abc{TEMPORARY}", f".page[1].md.new{TEMPORARY}"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    for name in names[:2]:
        os.utime(tmp_path / name, (0, 0))
    atomic_write(tmp_path / "page[1].md", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "page[1].md"])


RUN = """
import sys
import pytest
from capbench.cli import main
from tests.tiny_papers import make_papers_tiny
patch = pytest.MonkeyPatch()
few = make_papers_tiny(patch, __import__("pathlib").Path("cache"))
patch.setattr("capbench.runs.materials.load_dataset", lambda name: few)
sys.argv = ["capbench", "run", "vsepp", "--preset", "vsepp-ours", "--seed", "0", "--runs", "l\u00e4ufe"]
main()
"""


@pytest.mark.fault("output that is not UTF-8, while a command trains")
def test_a_run_whose_output_lacks_letters_writes_its_page_and_ends_well(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stderr.decode()
    assert b"l\\xe4ufe/records/vsepp-" in done.stdout  # the name of the record
    assert "this machine" in (tmp_path / "leaderboards" / "vsepp.md").read_text("utf-8")


def score_with_read_only_packages(folder: Path, told: Connection) -> None:
    namespaces(told)
    read_only(jars.PYCOCOEVALCAP)
    told.send((ptb_tokenize(["A dog runs."]), meteor_statistics(["a dog"], [["a dog"]]).shape))


@linux
@pytest.mark.skipif(find_java() is None, reason="needs Java")
@pytest.mark.fault("read-only site-packages")
def test_read_only_packages_are_no_obstacle_to_the_tokeniser_and_meteor(tmp_path):
    assert result_of(score_with_read_only_packages, tmp_path) == (["a dog runs"], (1, 23))
