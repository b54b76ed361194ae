"""The last hidden state of a GRU over a batch of captions.

Captions share beginnings ("<start> a dog ..."), so a batch has fewer distinct states than words. The CPU path runs the
cell once for each distinct prefix (80 % of the words of a Flickr8K batch), multiplies by the recurrent weights once for
each prefix that continues (72 %), projects each distinct word once (26 %), and makes the weight gradient in one
product. Captions with a gradient of exactly zero are left out of the backward pass: under the max of hinges, those that
no active hinge points at. It equals the reference up to rounding, and is deterministic for a given number of threads.
A GPU runs the reference, which is cuDNN.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import Array, tensors
from capbench.kernels.gru.cpu import prefix_tree_last_hidden
from capbench.kernels.gru.reference import Embedding, reference_last_hidden


def last_hidden(
    gru: nn.GRU, embedding: Embedding, captions: Int[Array, "caption length"], lengths: Int[Array, " caption"]
) -> Float[Tensor, "caption hidden"]:
    """The state of `gru` after the last word of each caption.

    `captions` holds word ids, padded at the end; `lengths` says how many of them count. The prefix tree asks
    `embedding` for each distinct word once: its dropout takes the same coordinates from a word throughout the batch.
    Raises CapbenchError for wrong types or shapes, a length outside 1..length, or a GRU that has no biases, more than
    one layer or direction, or does not take batches first.

    >>> import torch
    >>> from capbench.kernels.gru import last_hidden
    >>> gru, embedding = torch.nn.GRU(3, 4, batch_first=True), torch.nn.Embedding(9, 3)
    >>> last_hidden(gru, embedding, torch.tensor([[1, 5, 2], [1, 2, 0]]), torch.tensor([3, 2])).shape
    torch.Size([2, 4])
    """
    captions, lengths = tensors(captions=(captions, "int caption+ length+"), lengths=(lengths, "int caption"))
    lengths = lengths.cpu()
    if not 1 <= int(lengths.min()) <= int(lengths.max()) <= captions.shape[1]:
        raise CapbenchError(f"lengths must lie in 1..{captions.shape[1]}, the words that a caption has room for")
    if gru.num_layers > 1 or gru.bidirectional or not gru.batch_first or not gru.bias:
        raise CapbenchError(f"the GRU must have one layer, one direction, biases and batch_first, not {gru}")
    path = prefix_tree_last_hidden if captions.device.type == "cpu" else reference_last_hidden
    return path(gru, embedding, captions, lengths)
