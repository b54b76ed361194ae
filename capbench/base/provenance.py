"""What produced a number: commit, versions, device; and which files git tracks."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator

from capbench.base.processor import blas, instruction_set


def _utc(value: str) -> str:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("has no time zone; write UTC, as in 2024-05-01T12:00:00+00:00")
    return moment.astimezone(UTC).isoformat(timespec="seconds")


Moment = Annotated[str, AfterValidator(_utc)]  # ISO 8601, kept in UTC


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What produces a number here: the fields of a Result from `commit` to `threads`, `instruction_set` and `blas`.

    `commit` is that of capbench's own git checkout or, installed from a repository, the one that the installer noted
    (PEP 610); else "unknown". Changes under leaderboards/ do not make
    the tree dirty. `instruction_set` and `blas` are blank unless the device is a CPU. Holds no name of a host or user
    and nothing of the environment.
    """
    commit, dirty = _commit()
    on_cpu = torch.device(device).type == "cpu"
    packages = ("capbench", "torch", "torchvision", "numpy")
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set() if on_cpu else "",
        "blas": blas() if on_cpu else "",
    }


def _commit() -> tuple[str, bool]:
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top).resolve() != root:
            return _installed_commit(root), False
        changes = git("status", "--porcelain", "--", ".", ":(exclude)leaderboards")
        return git("rev-parse", "--verify", "--quiet", "HEAD") or "unknown", bool(changes)
    except (OSError, subprocess.SubprocessError):
        return _installed_commit(root), False


def _installed_commit(root: Path) -> str:
    """The commit of the package installed in `root`, from its direct_url.json; "unknown" where that names none."""
    for installed in importlib.metadata.distributions(name="capbench", path=[str(root)]):
        try:
            commit = str(json.loads(installed.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"])
        except (ValueError, TypeError, KeyError):
            continue
        if re.fullmatch(r"[0-9a-f]{7,64}", commit):
            return commit
    return "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return f"CPU, {model.group(1).strip() if model else platform.processor() or platform.machine()}"
