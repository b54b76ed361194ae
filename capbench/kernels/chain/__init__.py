"""The best labels of a chain whose neighbours like to agree: exact, for many chains at once.

E(a) = sum_j score[j, a_j] + beta sum_j [a_j = a_{j+1}], maximised over the labels a (Karpathy & Fei-Fei, CVPR 2015,
equations 10 to 12, with the sign of a reward). Since only agreement counts, the best way to a label comes either from
the same label or from the best one of all, and a step costs as much as there are labels, not their square. A GPU runs
the whole program in one launch (triton.py), with the same operations and so the same result.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._triton import runs_triton
from capbench.kernels.chain.cpu import viterbi


def chain_labels(
    scores: Float[Tensor, "chain place label"], lengths: Int[Tensor, " chain"], beta: float
) -> tuple[Int[Tensor, "chain place"], Float[Tensor, " chain"]]:
    """The labels of every chain and the energy E that they reach.

    `lengths` says how many places of a chain count; labels beyond are -1, and a chain without a place has energy 0.
    `beta` = 0 takes the best label of each place alone; a large one gives all the same label. Of equals, staying with
    the next label wins, then the lower label. Deterministic, and the same on a CPU and a GPU; half precision is
    computed in float32. While a graph is captured, lengths on the GPU and NaN go unchecked. Raises CapbenchError when
    `beta` is negative or not finite, for a length outside the chain, or for NaN.
    """
    chains, places, labels = scores.shape
    if not 0 <= beta < float("inf"):
        raise CapbenchError(f"beta must be a finite number from 0 on, and is {beta}")
    if labels == 0:
        raise CapbenchError("there is no label to choose from")
    capturing = scores.is_cuda and torch.cuda.is_current_stream_capturing()
    if chains and not (capturing and lengths.is_cuda) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= places:
        raise CapbenchError(f"lengths must lie in 0..{places}, the places that each chain has")
    lengths, scores = lengths.to(scores.device), scores.to(torch.promote_types(scores.dtype, torch.float32))
    if runs_triton(scores):
        from capbench.kernels.chain.triton import viterbi as program
    else:
        program = viterbi
    found, energy = program(scores, lengths, beta)
    if not capturing and bool(energy.isnan().any()):
        raise CapbenchError("the scores hold NaN: has the model diverged?")
    return found, energy
