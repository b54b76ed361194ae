"""What is asked of the processor is what the processor says of itself."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from capbench.base.processor import blas, computes_bf16, instruction_set
from tests.conftest import NUMERICAL

CPU = torch.device("cpu")
RESTRICTED = "ATEN_CPU_CAPABILITY" in os.environ


def lesser() -> dict[str, dict[str, str]]:
    """What noxfile.py tells the processes of `nox -s tests-portable`."""
    tree = ast.parse((Path(__file__).parents[1] / "noxfile.py").read_text(encoding="utf-8"))
    (found,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "LIMITS"]
    return ast.literal_eval(found)


LIMITS = lesser()
KNOWN = ["AVX512", *LIMITS]  # those that restrictions are for, the least last


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


@pytest.mark.parametrize("name", LIMITS)
def test_a_process_that_is_told_to_keep_to_lesser_instructions_does_and_takes_float32(name):
    if instruction_set() not in KNOWN[: KNOWN.index(name) + 1]:
        pytest.skip(f"the processor has no more than {name}")
    words = "import torch; from capbench.base.processor import *; print(instruction_set(), "
    words += "*(computes_bf16(torch.device('cpu'), operation) for operation in ('product', 'convolution')))"
    environment = {**os.environ, **LIMITS[name]}
    told = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [name, "False", "False"]


@pytest.mark.skipif(not RESTRICTED, reason="the process is not restricted")
@pytest.mark.skipif(instruction_set() not in KNOWN, reason="there is no restriction for this processor")
def test_this_process_keeps_to_the_instructions_it_was_told_to():
    assert instruction_set() == os.environ["ATEN_CPU_CAPABILITY"].upper()


def test_a_device_without_an_answer_takes_float32():
    assert not computes_bf16(torch.device("meta"))


def test_the_instructions_and_the_blas_have_names():
    assert instruction_set()
    assert blas() != "unknown"


def test_the_files_of_numerical_tests_are_there():
    assert {file.stem.removeprefix("test_") for file in Path(__file__).parent.glob("test_*.py")} >= NUMERICAL
