"""How well a caption fits an image, word by word and region by region: the reference, Triton, and a blocked CPU path.

S_kl = sum_t max_i v_i . s_t over the words t of caption l and the regions i of image k (Karpathy & Fei-Fei, CVPR 2015,
equation 8), or sum_t sum_i max(0, v_i . s_t), the earlier form (equation 7). The tensor [image, caption, region, word]
is never whole: words are taken some at a time, and what the backward pass needs is the winning region of each image
and word, or is computed again. A GPU has its own kernels (maxsim_triton). Forward and backward are deterministic: in
Triton always, on a CPU for a given number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.errors import CapbenchError
from capbench.kernels._triton import runs_triton

Form = Literal["max", "sum"]
ELEMENTS_AT_ONCE = 2**20  # of the product of regions and words: 4 MiB in float32, and as fast as all at once


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
    _check(regions, words, lengths, form)
    kind = regions.device.type
    if torch.is_autocast_enabled(kind) and regions.dtype is torch.float32:
        regions, words = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (regions, words))
    if runs_triton(regions):
        from capbench.kernels.maxsim_triton import TritonMaxSim

        by_caption: Tensor = TritonMaxSim.apply(regions, words, lengths.to(words.device), form == "max")
        return by_caption.T
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None].to(words.device)
    caption = torch.arange(len(words), device=words.device)[:, None].expand_as(present)[present]
    similarity: Tensor = _MaxSim.apply(regions, words[present], caption, len(words), form)
    return similarity


def reference_maxsim(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    lengths: Int[Tensor, " caption"],
    form: Form = "max",
) -> Float[Tensor, "image caption"]:
    """The same as its equation, with the whole tensor [image, caption, region, word]: the oracle."""
    _check(regions, words, lengths, form)
    wide = torch.promote_types(regions.dtype, torch.float32)
    products = torch.einsum("kid,ltd->klit", regions.to(wide), words.to(wide))
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None].to(words.device)
    best = products.amax(2) if form == "max" else products.clamp(min=0).sum(2)
    return best.masked_fill(~present, 0).sum(2)


class _MaxSim(torch.autograd.Function):
    """`words` [word, dim] of all captions in a row, `caption` [word] the caption of each."""

    @staticmethod
    def forward(ctx: Any, regions: Tensor, words: Tensor, caption: Tensor, captions: int, form: Form) -> Tensor:
        images, count, _ = regions.shape
        flat = regions.flatten(0, 1)
        similarity = regions.new_zeros(captions, images, dtype=torch.promote_types(regions.dtype, torch.float32))
        winners = torch.empty(images, len(words), dtype=torch.int16, device=words.device) if form == "max" else None
        for part in _parts(len(words), len(flat)):
            products = (flat @ words[part].T).view(images, count, -1)
            if winners is not None:
                best, at = products.max(1)
                winners[:, part] = at.to(torch.int16)
            else:
                best = products.clamp(min=0).sum(1, dtype=similarity.dtype)
            similarity.index_add_(0, caption[part], best.T.to(similarity.dtype))
        ctx.save_for_backward(regions, words, caption, *([] if winners is None else [winners]))
        return similarity.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, caption, *saved = ctx.saved_tensors
        images, count, _ = regions.shape
        flat = regions.flatten(0, 1)
        d_flat, d_words = torch.zeros_like(flat, dtype=gradient.dtype), torch.empty_like(words)
        gradient = gradient.to(regions.dtype)
        for part in _parts(len(words), len(flat)):
            of_word = gradient[:, caption[part]][:, None]  # [image, 1, word]
            if saved:
                won = saved[0][:, part].long()[:, None]
                weight = regions.new_zeros(images, count, won.shape[2]).scatter_(1, won, of_word)
            else:
                weight = (flat @ words[part].T).view(images, count, -1).gt(0) * of_word
            weight = weight.flatten(0, 1)
            d_flat += weight @ words[part]
            d_words[part] = weight.T @ flat
        return d_flat.view_as(regions).to(regions.dtype), d_words, None, None, None


def _parts(words: int, rows: int) -> Iterator[slice]:
    step = max(1, ELEMENTS_AT_ONCE // max(1, rows))
    yield from (slice(start, min(start + step, words)) for start in range(0, words, step))


def _check(regions: Tensor, words: Tensor, lengths: Tensor, form: str) -> None:
    if form not in ("max", "sum"):
        raise CapbenchError(f"the form is max or sum, not {form!r}")
    if not 1 <= regions.shape[1] < 2**15:
        raise CapbenchError(f"an image needs 1 to {2**15 - 1} regions, and has {regions.shape[1]}")
    capturing = lengths.is_cuda and torch.cuda.is_current_stream_capturing()
    if len(lengths) and not capturing and not 0 <= int(lengths.min()) <= int(lengths.max()) <= words.shape[1]:
        raise CapbenchError(f"lengths must lie in 0..{words.shape[1]}, the words that each caption has room for")
