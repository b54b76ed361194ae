"""Viterbi decoding of chains in which equal neighbours are rewarded: exact, many chains at once.

E(a) = sum_j score[j, a_j] + beta sum_j [a_j = a_{j+1}] is maximised over the labels a (Karpathy & Fei-Fei, CVPR 2015,
equations 10 to 12, with the sign of a reward). The best path to a label comes from the same label or from the best
label of all, so a step costs O(labels). On a GPU one launch runs the whole program with the same operations, and gives
the same result.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import Array, readable, tensors
from capbench.kernels._triton import runs_triton
from capbench.kernels.chain import cpu


def viterbi_decode(
    scores: Float[Array, "chain place label"], lengths: Int[Array, " chain"], beta: float
) -> tuple[Int[Tensor, "chain place"], Float[Tensor, " chain"]]:
    """The best labels of every chain, and their energy E.

    `lengths` counts the places of each chain; labels beyond are -1, and an empty chain has energy 0. Ties go to the
    label of the next place, then to the lower label. Deterministic, and equal on a CPU and a GPU; half precision is
    computed in float32. On a GPU, lengths and NaN are not checked while a graph is captured, nor where waiting is an
    error (torch.cuda.set_sync_debug_mode).
    Raises CapbenchError for wrong types or shapes, a length outside the chain, NaN, or a beta that is negative or not
    finite.

    >>> import numpy as np
    >>> from capbench.kernels.chain import viterbi_decode
    >>> scores = np.array([[[1.0, 0.0], [0.0, 0.4], [1.0, 0.0]]])
    >>> [viterbi_decode(scores, np.array([3]), beta)[0].tolist() for beta in (0.0, 0.5)]
    [[[0, 1, 0]], [[0, 0, 0]]]
    """
    scores, lengths = tensors(scores=(scores, "float chain place label+"), lengths=(lengths, "int chain"))
    chains, places, _ = scores.shape
    if not 0 <= beta < float("inf"):
        raise CapbenchError(f"beta must be finite and not negative, and is {beta}")
    if chains and readable(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= places:
        raise CapbenchError(f"lengths must lie in 0..{places}, the places of a chain")
    lengths, scores = lengths.to(scores.device), scores.to(torch.promote_types(scores.dtype, torch.float32))
    if runs_triton(scores):
        from capbench.kernels.chain.triton import viterbi_decode as program
    else:
        program = cpu.viterbi_decode
    labels, energy = program(scores, lengths, beta)
    if readable(energy) and bool(energy.isnan().any()):
        raise CapbenchError("the scores hold NaN: has the model diverged?")
    return labels, energy
