"""The Triton kernels in Triton's interpreter, on the CPU, in a process of their own: it is chosen before the import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from capbench.kernels._triton import interpreted

KERNELS = ("maxsim", "chain", "attention_kernel", "ranking_loss", "ranks_kernel")


@pytest.mark.skipif(interpreted(), reason="starts the interpreter")
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_the_kernels_are_right_in_tritons_interpreter():
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in KERNELS]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "test_kernel", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
