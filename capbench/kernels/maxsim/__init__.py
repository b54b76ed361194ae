"""How well a caption fits an image, word by word and region by region: the reference, Triton, and a blocked CPU path.

S_kl = sum_t max_i v_i . s_t over the words t of caption l and the regions i of image k (Karpathy & Fei-Fei, CVPR 2015,
equation 8), or sum_t sum_i max(0, v_i . s_t), the earlier form (equation 7). The tensor [image, caption, region, word]
is never whole: images and words are taken some at a time, and what the backward pass needs is the winning region of
each image and word, whose rows alone it adds, or is computed again. A GPU has its own kernels (triton.py). Forward
and backward are deterministic: in Triton always, on a CPU for a given number of threads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.kernels._triton import runs_triton
from capbench.kernels.maxsim import cpu
from capbench.kernels.maxsim.reference import Form, check


def maxsim(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    lengths: Int[Tensor, " caption"],
    form: Form = "max",
) -> Float[Tensor, "image caption"]:
    """S of every image and caption. `lengths` says how many words of each caption count; the rest may be anything.

    A caption without a word scores 0. Of regions that are equally good the first has the gradient. Half-precision
    inputs, and float32 under autocast, are multiplied in half precision and summed in float32, which S then has. Triton
    makes a float32 product of three in TF32, which keeps about the precision of float32. Nothing waits for a GPU when
    `lengths` lies on the CPU, or while a graph is captured, when lengths on the GPU go unchecked. Raises CapbenchError
    for an unknown form, without a region, or for a length outside the words.
    """
    check(regions, words, lengths, form)
    kind = regions.device.type
    if torch.is_autocast_enabled(kind) and regions.dtype is torch.float32:
        regions, words = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (regions, words))
    if runs_triton(regions):
        from capbench.kernels.maxsim.triton import TritonMaxSim

        by_caption: Tensor = TritonMaxSim.apply(regions, words, lengths.to(words.device), form == "max")
        return by_caption.T
    return cpu.maxsim(regions, words, lengths, form)
