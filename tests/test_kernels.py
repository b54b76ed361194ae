"""The tests of all Triton kernels once more: in Triton's interpreter, on a CPU; under compute-sanitizer, on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from capbench.kernels._triton import interpreted

PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "kernel", str(Path(__file__).parent)]
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"  # each tensor is an allocation of its own, so a step beyond its end is seen


def run(command: list[str], **variables: str) -> None:
    """In a new process: the interpreter, like the sanitizer, is chosen before Triton is imported."""
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
@pytest.mark.timeout(600)
def test_in_tritons_interpreter_all_are_right():
    run(PYTEST, TRITON_INTERPRET="1")


@pytest.mark.kernel
@pytest.mark.skipif(interpreted() or not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="compute-sanitizer is not installed")
@pytest.mark.skipif(UNCACHED in os.environ, reason="runs within the sanitizer")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_on_a_gpu_none_reads_or_writes_where_it_must_not(tool):
    run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *PYTEST], **{UNCACHED: "1"})


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_outputs_are_filled_with_poison_before_a_kernel_writes_them(dtype):
    """What a kernel leaves unwritten is NaN or the largest number, and fails the comparison of its test."""
    made = torch.empty(3, dtype=dtype, device="cpu" if interpreted() else "cuda")
    assert bool((made.isnan() if dtype.is_floating_point else made == torch.iinfo(dtype).max).all())


def test_every_operation_has_its_equation_and_a_cpu_path_in_its_folder():
    operations = [file.parent for file in (Path(__file__).parents[1] / "capbench/kernels").glob("*/__init__.py")]
    assert len(operations) >= 7
    missing = [
        f"{o.name}/{name}" for o in operations for name in ("reference.py", "cpu.py") if not (o / name).is_file()
    ]
    assert not missing
