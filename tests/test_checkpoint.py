"""Checkpoints under the faults they exist for."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.training import checkpoint
from capbench.training.rmsprop import RMSProp
from tests.processes import begin


def tensors(value: float, size: int = 1000) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((size,), value), "steps": torch.tensor(int(value))}


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    saved = {"x": torch.randn(3, 5), "empty": torch.zeros(0, 2), "number": torch.tensor(7), "t": torch.randn(4, 3).t()}
    checkpoint.save(tmp_path / "a", saved, {"epoch": 3, "best": 0.1 + 0.2})
    loaded, state = checkpoint.load(tmp_path / "a")
    assert state == {"epoch": 3, "best": 0.1 + 0.2}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_a_save_keeps_two_checkpoints(tmp_path):
    for step in range(5):
        checkpoint.save_step(tmp_path, step, tensors(step), {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-00000000{n}.safetensors" for n in (3, 4)]


@pytest.mark.fault("damaged newest checkpoint")
@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "empty", "html", "pickle", "huge header"])
def test_a_damaged_newest_checkpoint_falls_back_by_one_and_says_so(tmp_path, damage):
    checkpoint.save_step(tmp_path, 1, tensors(1), {"step": 1})
    checkpoint.save_step(tmp_path, 2, tensors(2), {"step": 2})
    newest = tmp_path / "checkpoint-000000002.safetensors"
    content = newest.read_bytes()
    broken = {
        "truncated": content[:-100],
        "one byte changed": content[:-10] + bytes([content[-10] ^ 1]) + content[-9:],
        "empty": b"",
        "html": b"<html>not found</html>",
        "pickle": b"\x80\x04cos\nsystem\n",
        "huge header": (2**60).to_bytes(8, "little") + content[8:],
    }
    newest.write_bytes(broken[damage])
    with pytest.warns(UserWarning, match="checkpoint-000000002"):
        found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found[1] == {"step": 1, "fallbacks": ["checkpoint-000000002.safetensors"]}
    assert torch.equal(found[0]["a.weight"], tensors(1)["a.weight"])


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None


def save_without_end(folder: Path, told: Connection) -> None:
    for step in count(1):
        checkpoint.save_step(folder, step, {"w": torch.full((2_000_000,), float(step))}, {"step": step})
        told.send(step)


@pytest.mark.fault("kill -9 while saving")
@pytest.mark.parametrize("delay", [0.0, 0.011, 0.023])
def test_kill_dash_nine_while_saving_leaves_a_checkpoint_that_loads(tmp_path, delay):
    process, heard = begin(save_without_end, tmp_path)
    assert [heard.recv() for _ in range(3)] == [1, 2, 3]
    time.sleep(delay)
    process.kill()
    process.join()
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert bool((found[0]["w"] == found[1]["step"]).all())


@pytest.mark.fault("limit on the size of files while saving")
@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_full_disk_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path):
    import resource

    checkpoint.save(tmp_path / "a", tensors(1), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CapbenchError, match="cannot write"):
            checkpoint.save(tmp_path / "a", {"a.weight": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert torch.equal(checkpoint.load(tmp_path / "a")[0]["a.weight"], tensors(1)["a.weight"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapbenchError, match="gone"):
        checkpoint.load(tmp_path / "gone")


def test_differences_name_each_key_with_both_values():
    ours = {"recipe": {"margin": 0.2, "training": {"epochs": 30}}, "seed": 0, "architecture": {"W": [3, 4]}}
    theirs = {"recipe": {"margin": 0.1, "training": {"epochs": 30}}, "seed": 0, "architecture": {}}
    assert checkpoint.differences(ours, theirs) == [
        "architecture.W: [3, 4] here, absent in the checkpoint",
        "recipe.margin: 0.2 here, 0.1 in the checkpoint",
    ]


def test_a_key_that_an_older_version_did_not_have_is_none():
    assert checkpoint.differences({"recipe": {"margin": 0.2, "vectors": None}}, {"recipe": {"margin": 0.2}}) == []
    assert checkpoint.differences({"recipe": {}}, {"recipe": {"vectors": "a file's"}}) == [
        "recipe.vectors: absent here, a file's in the checkpoint"
    ]


CENTRED = partial(RMSProp, decay=0.9, epsilon=1e-8, centred=True)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, CENTRED])
def test_an_optimiser_goes_on_exactly_where_it_was(make):
    def problem():
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        options = {"lr": 0.01, **({"momentum": 0.9} if make is not torch.optim.Adam else {})}
        return weight, make([weight], **options)

    def steps(weight, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    whole, optimizer = problem()
    steps(whole, optimizer, 10)
    part, optimizer = problem()
    steps(part, optimizer, 4)
    held = {name: value.clone() for name, value in checkpoint.optimizer_tensors(optimizer).items()}
    again, fresh = problem()
    again.data = part.data.clone()
    checkpoint.restore_optimizer(fresh, held)
    steps(again, fresh, 6)
    assert torch.equal(again, whole)
