"""Released checkpoints: what the reader of a paper makes of one, and how the file is opened without running it."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.vocabulary import Vocabulary
from capbench.training.experiment import Recipe

PREFIX = "released-"  # of the presets of imported runs: no number of a paper and no claim waits for such a name

# All that a checkpoint may hold beside tensors and plain values: the options of its command, and numpy's numbers.
_SCALAR = np.float64(0).__reduce__()[0]  # numpy's own maker of them, whose module has moved
_ALLOWED: list[Any] = [
    argparse.Namespace,
    (np.dtype, "numpy.dtype"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?")),
]


@dataclass(frozen=True)
class Released:
    """A model trained with the code of its authors, in our terms."""

    recipe: Recipe  # of the paper's own subclass
    vocabulary: Vocabulary
    weights: Mapping[str, Tensor]  # of our model, by our names
    feature_dim: int  # of the vectors that it takes
    preset: str  # what kind of model it is: "vsepp"
    dataset: str  # that it was trained on
    encoder: str  # that it was trained with
    encoder_weights: Mapping[str, Tensor] = field(default_factory=dict)  # torchvision's names; of one saved with it
    tokens: Callable[[str], Sequence[str]] | None = None  # of a raw caption; None: those of the data set
    notes: tuple[str, ...] = ()  # what a record must say


def load_checkpoint(path: Path) -> Any:
    """The content of a file of torch.save, of any age: tensors, plain values, the options of a command. No code runs.

    Raises CapbenchError naming the file when it is missing, truncated, or holds anything else.
    """
    if not path.is_file():
        raise CapbenchError(f"there is no checkpoint {path}")
    try:
        # latin1: Python 2, which wrote the older files, has numpy's numbers as strings of any bytes. torch warns that
        # the encoding is of no use, and uses it.
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, zip and attribute errors
        asked = re.search(r"GLOBAL (\S+)", str(error))
        said = str(error).partition("\n")[0].partition("Weights only load failed")[0]  # what follows is for programmers
        reason = f"it asks for {asked[1]}" if asked else said or type(error).__name__
        raise CapbenchError(
            f"{path} is refused: it is truncated, or holds more than tensors and the options of a command, which could "
            f"run code ({reason[:200]})"
        ) from error
    _check_sizes(content, path)
    return content


def _check_sizes(content: Any, path: Path) -> None:
    """Raises CapbenchError for a tensor that is larger than the file, which would take memory that nothing fills."""
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    for value in inner:
        if isinstance(value, Tensor) and value.numel() * value.element_size() > path.stat().st_size:
            raise CapbenchError(f"{path} is refused: a tensor of {list(value.shape)} is larger than the file")
        _check_sizes(value, path)


def tensors(content: Any, path: Path, what: str) -> dict[str, Tensor]:
    """A part of a checkpoint as a table of dense tensors of numbers.

    Raises CapbenchError naming the file, the part and the tensor otherwise, and for a value that is not finite.
    """
    named = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not named or not content:
        raise CapbenchError(f"{path}: {what} is no table of tensors")
    for name, value in content.items():
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or not value.numel():
            raise CapbenchError(f"{path}: {what} has {name} empty, sparse, complex or quantised, as no model of ours")
        if value.is_floating_point() and not value.isfinite().all():
            raise CapbenchError(f"{path}: {what} has a value in {name} that is not finite")
    return {str(name): value.float() if value.is_floating_point() else value for name, value in content.items()}


def expect(names: set[str], given: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Raises CapbenchError unless the tensors have exactly these names: a model's weights, matrices, and its biases."""
    if given.keys() != names:
        strange = [f"has {', '.join(sorted(given.keys() - names)[:5])}"] * bool(given.keys() - names)
        missing = [f"lacks {', '.join(sorted(names - given.keys())[:5])}"] * bool(names - given.keys())
        raise CapbenchError(f"{path} is no {model}: it {' and '.join(strange + missing)}")
    for name, value in given.items():
        if value.ndim != (wanted := 2 if "weight" in name else 1):
            raise CapbenchError(f"{path} is no {model}: {name} has {value.ndim} dimensions, not {wanted}")
