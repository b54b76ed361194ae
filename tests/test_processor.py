"""What is asked of the processor is what the processor says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from capbench.processor import blas, computes_bf16, instruction_set

CPU = torch.device("cpu")
RESTRICTED = "ATEN_CPU_CAPABILITY" in os.environ


def flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()


@pytest.mark.skipif(RESTRICTED, reason="the process is restricted to lesser instructions")
def test_bf16_products_are_asked_of_the_processor():
    assert computes_bf16(CPU, "product") == bool({"avx512_bf16", "amx_tile"} & flags())


def test_a_bf16_convolution_runs_where_it_is_said_to():
    if not computes_bf16(CPU, "convolution"):
        pytest.skip("no bf16 convolution on this processor")
    images, weight = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((1, 3, 8, 8), (4, 3, 3, 3)))
    expected = functional.conv2d(images.float(), weight.float())
    assert torch.allclose(functional.conv2d(images, weight).float(), expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("capability", ["avx2", "default"])
@pytest.mark.parametrize("operation", ["product", "convolution"])
def test_a_process_with_lesser_instructions_takes_float32(capability, operation):
    words = "import sys, torch; from capbench.processor import *;"
    words += "print(instruction_set(), computes_bf16(torch.device('cpu'), sys.argv[1]))"
    restricted = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", words, operation], env=restricted, capture_output=True, text=True, check=True
    )
    assert "AVX512" not in done.stdout
    assert done.stdout.split()[-1] == "False"


def test_a_device_without_an_answer_takes_float32():
    assert not computes_bf16(torch.device("meta"))


def test_the_instructions_and_the_blas_have_names():
    assert instruction_set()
    assert blas() != "unknown"
