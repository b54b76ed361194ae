"""How well a caption fits an image, word by word and region by region: the reference, Triton, and a blocked CPU path.

S_kl = sum_t max_i v_i . s_t over the words t of caption l and the regions i of image k (Karpathy & Fei-Fei, CVPR 2015,
equation 8), or sum_t sum_i max(0, v_i . s_t), the earlier form (equation 7). The tensor [image, caption, region, word]
is never whole: images and words are taken some at a time, and what the backward pass needs is the winning region of
each image and word, whose rows alone it adds, or is computed again. A GPU has its own kernels (maxsim_triton). Forward
and backward are deterministic: in Triton always, on a CPU for a given number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from capbench.base.errors import CapbenchError
from capbench.kernels._scratch import scratch
from capbench.kernels._triton import runs_triton

Form = Literal["max", "sum"]
ELEMENTS_AT_ONCE = 2**21  # of the product of regions and words: 8 MiB in float32, and as fast as all at once
WIDE = 960  # words of a product: 1,024, a power of two, take a tenth longer
EVEN = 32  # products of a multiple of as many words are the fastest
GATHER_FROM = 8  # regions; of fewer, a product with the weights is as fast as a sum over the winners


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
    kept = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    counted = words.flatten(0, 1) if bool(present.all()) else words[present]
    similarity: Tensor = _MaxSim.apply(regions, counted, caption, len(words), form, kept)
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
    """`words` [word, dim] of all captions in a row, `caption` [word] the caption of each; `kept`: for a gradient."""

    @staticmethod
    def forward(
        ctx: Any, regions: Tensor, words: Tensor, caption: Tensor, captions: int, form: Form, kept: bool
    ) -> Tensor:
        images = len(regions)
        similarity = regions.new_zeros(captions, images, dtype=torch.promote_types(regions.dtype, torch.float32))
        winners = words.new_empty(images, len(words), dtype=torch.int16) if kept and form == "max" else None
        for some, part, products in _products(regions, words):
            if winners is not None:
                best, at = products.max(1)
                winners[some, part] = at.to(torch.int16)
            elif form == "max":
                best = products.amax(1)
            else:
                best = products.clamp_(min=0).sum(1, dtype=similarity.dtype)
            similarity[:, some].index_add_(0, caption[part], best.T.to(similarity.dtype))
        ctx.save_for_backward(regions, words, caption, *([] if winners is None else [winners]))
        return similarity.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, caption, *winners = ctx.saved_tensors
        exact = regions.device.type == "cpu" and regions.dtype in (torch.float32, torch.float64)
        if winners and exact and regions.shape[1] >= GATHER_FROM:
            found = _gathered(regions, words, gradient[:, caption], winners[0])
        else:
            found = _multiplied(regions, words, gradient[:, caption].to(regions.dtype), *winners)
        return *found, None, None, None, None


def _gathered(regions: Tensor, words: Tensor, gradient: Tensor, winners: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of regions and words from that of each image and word, by the rows that won alone."""
    images, count, _ = regions.shape
    flat, d_words, d_regions = regions.flatten(0, 1), torch.empty_like(words), torch.empty_like(regions)
    first = torch.arange(images)[:, None] * count
    for part in _parts(len(words), _at_once(images)):
        won = (winners[:, part] + first).T.contiguous()
        weight = gradient[:, part].T.contiguous()
        d_words[part] = embedding_bag(won, flat, mode="sum", per_sample_weights=weight)
    for some in _parts(images, _at_once(len(words))):
        won = winners[some]
        by_region = torch.from_numpy(np.argsort(won.numpy(), axis=1, kind="stable"))
        sizes = torch.bincount((won + first[: len(won)]).flatten(), minlength=len(won) * count)
        weight = gradient[some].gather(1, by_region).flatten()
        starts = sizes.cumsum(0) - sizes
        rows = embedding_bag(by_region.flatten(), words, starts, mode="sum", per_sample_weights=weight)
        d_regions[some] = rows.view(len(won), count, -1)
    return d_regions, d_words


def _multiplied(
    regions: Tensor, words: Tensor, gradient: Tensor, winners: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by products with the weight of each region and word, for half precision and the sum."""
    wide = torch.promote_types(regions.dtype, torch.float32)
    d_regions, d_words = torch.zeros_like(regions, dtype=wide), torch.zeros_like(words, dtype=wide)
    if winners is None:
        weights = ((some, part, products.gt(0)) for some, part, products in _products(regions, words))
    else:
        weights = ((some, part, winners[some, None, part]) for some, part in _tiles(regions, len(words)))
    for some, part, chosen in weights:
        of_word = gradient[some, None, part]
        if winners is None:
            weight = chosen * of_word
        else:
            weight = of_word.new_zeros(len(of_word), regions.shape[1], of_word.shape[2])
            weight.scatter_(1, chosen.long(), of_word)
        weight = weight.flatten(0, 1)
        d_regions[some] += (weight @ words[part]).view_as(regions[some])
        d_words[part] += weight.T @ regions[some].flatten(0, 1)
    return d_regions.to(regions.dtype), d_words.to(words.dtype)


def _products(regions: Tensor, words: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Some images, some words, and the product [image, region, word] of both, which lies where the last one lay."""
    for some, part in _tiles(regions, len(words)):
        rows, columns = regions[some].flatten(0, 1), words[part]
        product = torch.mm(rows, columns.T, out=scratch("maxsim", (len(rows), len(columns)), regions))
        yield some, part, product.view(-1, regions.shape[1], len(columns))


def _tiles(regions: Tensor, words: int) -> Iterator[tuple[slice, slice]]:
    """Some images and some words at a time."""
    images, count, _ = regions.shape
    step = max(1, min(images, _at_once(count * min(words, WIDE))))
    for some in _parts(images, step):
        most = min(WIDE, _at_once(step * count))
        even = ceil(words / max(1, ceil(words / most)))  # a narrow rest takes as long as a wide one
        for part in _parts(words, max(1, min(most, ceil(even / EVEN) * EVEN))):
            yield some, part


def _at_once(each: int) -> int:
    return max(1, ELEMENTS_AT_ONCE // max(1, each))


def _parts(length: int, step: int) -> Iterator[slice]:
    yield from (slice(start, min(start + step, length)) for start in range(0, length, step))


def _check(regions: Tensor, words: Tensor, lengths: Tensor, form: str) -> None:
    if form not in ("max", "sum"):
        raise CapbenchError(f"the form is max or sum, not {form!r}")
    if not 1 <= regions.shape[1] < 2**15:
        raise CapbenchError(f"an image needs 1 to {2**15 - 1} regions, and has {regions.shape[1]}")
    capturing = lengths.is_cuda and torch.cuda.is_current_stream_capturing()
    if len(lengths) and not capturing and not 0 <= int(lengths.min()) <= int(lengths.max()) <= words.shape[1]:
        raise CapbenchError(f"lengths must lie in 0..{words.shape[1]}, the words that each caption has room for")
