"""Checkpoints that survive a crash at any moment: one safetensors file each, with a checksum."""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor
from torch.optim import Optimizer

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write

KEEP = 2  # the newest, and one in reserve
SNAPSHOT = "best.safetensors"  # the best weights of a run
NEXT = "best-next.safetensors"  # better ones, of which no checkpoint tells yet


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state as one file, atomically. Raises CapbenchError on a full disk.

    Tensors that share memory are each written in full.
    """
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"state": json.dumps(state, sort_keys=True), "crc32": str(_crc32(held))}
    atomic_write(path, safetensors.torch.save(held, metadata))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a file that `save` wrote. Nothing in it is executed.

    Raises CapbenchError when the file is missing, truncated, damaged, or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        state = json.loads(metadata["state"])
        intact = metadata["crc32"] == str(_crc32(tensors))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CapbenchError(f"{path} is not a readable checkpoint: {error}") from error
    if not intact:
        raise CapbenchError(f"{path} is damaged: its contents do not match its checksum")
    return tensors, state


def save_step(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write `checkpoint-<step>` into a folder, and remove all but the newest two."""
    save(folder / f"checkpoint-{step:09d}.safetensors", tensors, state)
    for old in _steps(folder)[KEEP:]:
        old.unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest undamaged checkpoint; None without any.

    A damaged one is renamed to `.damaged` with a warning and noted in the state's list `fallbacks`. Training from the
    one before it repeats the same steps.
    """
    fallbacks: list[str] = []
    for path in _steps(folder):
        try:
            tensors, state = load(path)
        except CapbenchError as error:
            warnings.warn(f"{error}; falling back on the checkpoint before it", stacklevel=2)
            path.replace(path.with_suffix(".damaged"))
            fallbacks.append(path.name)
            continue
        state["fallbacks"] = fallbacks
        return tensors, state
    return None


def kept(folder: Path) -> bool:
    """Whether a folder has checkpoints."""
    return bool(_steps(folder))


def identity(folder: Path) -> Mapping[str, Any]:
    """That of the newest checkpoint whose head can be read; empty without one."""
    for path in _steps(folder):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                found: Mapping[str, Any] = json.loads((file.metadata() or {})["state"])["identity"]
                return found
        except (OSError, safetensors.SafetensorError, KeyError, ValueError):
            continue
    return {}


def clear(folder: Path) -> None:
    """Remove the checkpoints of a folder."""
    for path in _steps(folder):
        path.unlink(missing_ok=True)


def differences(wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a line for each key. A key that an older version did not have is None.

    >>> differences({"recipe": {"margin": 0.2, "vectors": None}}, {"recipe": {"margin": 0.1}})
    ['recipe.margin: 0.2 here, 0.1 in the checkpoint']
    """
    here, there = dict(_leaves(wanted)), dict(_leaves(saved))
    return [
        f"{key}: {here.get(key, 'absent')} here, {there.get(key, 'absent')} in the checkpoint"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as flat tensors."""
    return {
        f"optimizer.{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _steps(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    paths = (path for path in folder.glob("checkpoint-*.safetensors") if re.search(r"-\d{9}$", path.stem))
    return sorted(paths, reverse=True)


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().numpy().tobytes(), zlib.crc32(name.encode(), value))
    return value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves += _leaves(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return leaves
