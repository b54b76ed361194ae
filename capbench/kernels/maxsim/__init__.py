"""How well each caption fits each image, by its words and the image's regions.

S_kl = sum_t max_i v_i . s_t over the words t of caption l and the regions i of image k (Karpathy & Fei-Fei, CVPR 2015,
equation 8), or sum_t sum_i max(0, v_i . s_t), the earlier form (equation 7). No path holds all of [image, caption,
region, word]: blocks are multiplied, and the backward pass keeps the best region of each image and word, or recomputes
the product. Deterministic: in Triton always, on a CPU for a given number of threads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import Array, readable, same_dtype, tensors
from capbench.kernels._triton import on_device_of, runs_triton
from capbench.kernels.maxsim import cpu
from capbench.kernels.maxsim.reference import Form


def maxsim(
    regions: Float[Array, "image region dim"], words: Float[Array, "caption word dim"],
    lengths: Int[Array, " caption"], form: Form = "max",
) -> Float[Tensor, "image caption"]:  # fmt: skip
    """S of every image and caption. `lengths` counts the words of each caption; later words may hold anything.

    A caption without words scores 0. Where regions tie, the first has the gradient. Half-precision inputs, and float32
    under autocast, are multiplied in half precision and summed in float32, the type of S. Triton makes a float32
    product from three in TF32, with about the precision of float32. Nothing waits for a GPU while `lengths` are on the
    CPU; those on the GPU are not checked while a graph is captured, nor where waiting is an error
    (torch.cuda.set_sync_debug_mode).
    Raises CapbenchError for wrong types or shapes, an unknown form, or a length outside the words.

    >>> import numpy as np
    >>> from capbench.kernels.maxsim import maxsim
    >>> regions = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # two regions of one image
    >>> maxsim(regions, np.array([[[1.0, 1.0], [3.0, 1.0]]]), np.array([2])).tolist()  # 2 + 3
    [[5.0]]
    """
    regions, words, lengths = tensors(
        regions=(regions, "float image region+ dim+"), words=(words, "float caption word dim"),
        lengths=(lengths, "int caption"),
    )  # fmt: skip
    if form not in ("max", "sum"):
        raise CapbenchError(f"form must be max or sum, not {form!r}")
    if regions.shape[1] >= 2**15:
        raise CapbenchError(f"an image may have {2**15 - 1} regions, and has {regions.shape[1]}")
    if len(lengths) and readable(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= words.shape[1]:
        raise CapbenchError(f"lengths must lie in 0..{words.shape[1]}, the words that a caption has room for")
    kind = regions.device.type
    if torch.is_autocast_enabled(kind) and regions.dtype is torch.float32:
        regions, words = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (regions, words))
    same_dtype(regions=regions, words=words)
    if runs_triton(regions):
        from capbench.kernels.maxsim.triton import TritonMaxSim

        with on_device_of(words):
            lengths = lengths.to(words.device, non_blocking=True)
            by_caption: Tensor = TritonMaxSim.apply(regions, words, lengths, form == "max")
        return by_caption.T
    return cpu.maxsim(regions, words, lengths, form)
