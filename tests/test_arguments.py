"""The public functions of the kernels take NumPy arrays, and name an argument that they cannot take, with its shape."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import readable, tensors
from capbench.kernels.attention import attention_step, attention_weights
from capbench.kernels.chain import viterbi_decode
from capbench.kernels.gru import last_hidden
from capbench.kernels.log_prob import target_log_probs
from capbench.kernels.maxsim import maxsim
from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranks import embedding_ranks

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


GRU = nn.GRU(3, 4, batch_first=True)
RIGHT: dict[Any, dict[str, Any]] = {
    attention_step: {"keys": floats(2, 5, 3), "annotations": floats(2, 5, 4), "query": floats(2, 1, 3), "v": floats(3)},
    attention_weights: {"keys": floats(2, 5, 3), "query": floats(2, 1, 3), "v": floats(1, 3)},
    viterbi_decode: {"scores": floats(2, 3, 4), "lengths": ints(3, 0), "beta": 1.0},
    last_hidden: {
        "gru": GRU,
        "embedding": nn.Embedding(9, 3),
        "captions": np.array([[1, 2], [3, 0]]),
        "lengths": ints(2, 1),
    },
    target_log_probs: {"scores": floats(3, 5), "target": ints(0, 4, 2)},
    maxsim: {"regions": floats(2, 4, 3), "words": floats(5, 6, 3), "lengths": ints(0, 6, 2, 3, 4)},
    ranking_loss: {
        "images": floats(4, 3),
        "captions": floats(4, 3),
        "image_ids": ints(9, 9, 2, 3),
        "margin": 0.2,
        "loss": "max_of_hinges",
    },
    embedding_ranks: {"images": floats(2, 3), "captions": floats(4, 3), "image_of_caption": ints(0, 1, 1, 0)},
}


@pytest.mark.parametrize("function", RIGHT, ids=lambda function: function.__name__)
def test_numpy_arrays_give_what_tensors_give(function):
    arrays = RIGHT[function]
    as_tensors = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in arrays.items()}
    ours, expected = function(**arrays), function(**as_tensors)
    both = zip(ours, expected, strict=True) if isinstance(ours, tuple) else [(ours, expected)]
    assert all(torch.equal(one, other) for one, other in both)


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        (
            attention_step,
            {"keys": ints(1, 2)},
            r"keys is int32 \[2\], not floating-point \[image, location, attention\]",
        ),
        (attention_step, {"annotations": floats(2, 6, 4)}, r"annotations is float32 \[2, 6, 4\].*5 for location"),
        (attention_step, {"keys": floats(2, 0, 3), "annotations": floats(2, 0, 4)}, "location must be at least 1"),
        (attention_weights, {"query": floats(2, 1, 4)}, "query is .* has 3 for attention"),
        (attention_weights, {"v": floats(2, 3)}, r"v is \[2, 3\]"),
        (viterbi_decode, {"scores": floats(2, 3, 0)}, "label must be at least 1"),
        (viterbi_decode, {"lengths": floats(2)}, r"lengths is float32 \[2\], not integer \[chain\]"),
        (viterbi_decode, {"lengths": ints(1)}, "scores has 2 for chain"),
        (last_hidden, {"captions": floats(2, 2)}, "captions is float32"),
        (last_hidden, {"lengths": ints(0, 1)}, r"lengths must lie in 1\.\.2"),
        (last_hidden, {"lengths": ints(3, 1)}, r"lengths must lie in 1\.\.2"),
        (last_hidden, {"captions": np.zeros((0, 2), int), "lengths": ints()}, "caption must be at least 1"),
        (last_hidden, {"gru": nn.GRU(3, 4, num_layers=2)}, "one layer"),
        (target_log_probs, {"target": ints(0, 5, 2)}, r"target must lie in 0\.\.4"),
        (target_log_probs, {"target": ints(0, -1, 2)}, r"target must lie in 0\.\.4"),
        (target_log_probs, {"target": ints(0, 1)}, "scores has 3 for word"),
        (target_log_probs, {"scores": floats(3, 0)}, "vocabulary must be at least 1"),
        (maxsim, {"words": floats(5, 6, 2)}, "words is .* regions has 3 for dim"),
        (
            maxsim,
            {"words": floats(5, 6, 3).astype(np.float64)},
            r"regions is float32 \[2, 4, 3\], words is float64 \[5, 6, 3\]: convert",
        ),
        (maxsim, {"regions": floats(2, 4, 0), "words": floats(5, 6, 0)}, "dim must be at least 1"),
        (maxsim, {"form": "mean"}, "form must be max or sum"),
        (ranking_loss, {"captions": floats(3, 3)}, "images has 4 for pair"),
        (ranking_loss, {"image_ids": floats(4)}, "image_ids is float32"),
        (ranking_loss, {"loss": "hardest"}, "loss must be sum_of_hinges or max_of_hinges"),
        (ranking_loss, {"similarity": "cosine"}, "similarity must be dot or order"),
        (embedding_ranks, {"captions": floats(4, 2)}, "images has 3 for dim"),
        (embedding_ranks, {"images": np.array([[None]])}, "images is ndarray, not a tensor or NumPy array of numbers"),
    ],
)
def test_a_wrong_argument_is_named_with_its_shape(function, change, message):
    with pytest.raises(CapbenchError, match=message):
        unwrap(function)(**{**RIGHT[function], **change})


def test_integers_become_int64_and_a_read_only_array_is_copied():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    array.flags.writeable = False
    (tensor,) = tensors(ids=(array[:, ::-1], "int row column"))
    assert tensor.dtype is torch.int64
    assert tensor.tolist() == [[2, 1, 0], [5, 4, 3]]


class OnGPU(torch.Tensor):
    is_cuda = True


@pytest.mark.parametrize(
    ("captured", "mode", "may"), [(False, 0, True), (False, 1, True), (True, 0, False), (False, 2, False)]
)
def test_values_on_a_gpu_are_read_where_one_may_wait_for_them(captured, mode, may, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode)
    assert readable(torch.zeros(2).as_subclass(OnGPU)) is may
    assert readable(torch.zeros(2))
