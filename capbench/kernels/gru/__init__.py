"""Last hidden state of a GRU over a batch of captions: the reference, cuDNN, and a prefix tree for the CPU.

Captions share their beginnings ("<start> a dog ..."), and a recurrent state depends only on the words before it, so
a batch has fewer distinct states than words. The CPU path runs the cell once for each distinct prefix (80 % of the
words of a Flickr8K batch), multiplies by the recurrent weights once for each prefix that goes on (72 %), projects each
distinct word once (26 %), makes the weight gradient in one product, and leaves captions whose gradient is exactly zero
out of the backward pass: under the max of hinges these are all captions that no active hinge points at.
The result is that of the reference up to rounding; forward and backward are deterministic for a given
number of threads.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from capbench.kernels.gru.cpu import prefix_tree_last_hidden
from capbench.kernels.gru.reference import Embedding, reference_last_hidden


def last_hidden(
    gru: nn.GRU,
    embedding: Embedding,
    captions: Int[Tensor, "caption length"],
    lengths: Int[Tensor, " caption"],
) -> Float[Tensor, "caption hidden"]:
    """State of a one-layer, one-direction `gru` after the last word of each caption.

    `captions` holds word ids, padded at the end; `lengths` (on the CPU) how many of them count, at least one each.
    The prefix tree serves the CPU, cuDNN the rest. The tree asks `embedding` for each distinct word once, so that
    dropout in it takes the same coordinates from a word wherever it stands in the batch.
    """
    if captions.device.type == "cpu":
        return prefix_tree_last_hidden(gru, embedding, captions, lengths)
    return reference_last_hidden(gru, embedding, captions, lengths)
