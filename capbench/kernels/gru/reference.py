"""The last hidden state through torch's packed sequences."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

Embedding = Callable[[Tensor], Tensor]  # word ids of any shape to their vectors, as nn.Embedding


def reference_last_hidden(
    gru: nn.GRU, embedding: Embedding, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
) -> Float[Tensor, "caption hidden"]:
    """The state after the last word of each caption, by cuDNN on a GPU."""
    packed = pack_padded_sequence(embedding(captions), lengths, batch_first=True, enforce_sorted=False)
    _, hidden = gru(packed)
    return hidden[0]
