"""maxsim in blocks: products of some images and some words at a time, and the gradient by the rows that won."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from capbench.kernels._scratch import scratch
from capbench.kernels.maxsim.reference import Form

ELEMENTS_AT_ONCE = 2**21  # of the product of regions and words: 8 MiB in float32, and as fast as all at once
WIDE = 960  # words of a product: 1,024, a power of two, take a tenth longer
EVEN = 32  # products of a multiple of as many words are the fastest
GATHER_FROM = 8  # regions; of fewer, a product with the weights is as fast as a sum over the winners


def maxsim(regions: Tensor, words: Tensor, lengths: Tensor, form: Form) -> Tensor:
    """`capbench.kernels.maxsim.maxsim`, unchecked, on any device."""
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None].to(words.device)
    caption = torch.arange(len(words), device=words.device)[:, None].expand_as(present)[present]
    kept = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    counted = words.flatten(0, 1) if bool(present.all()) else words[present]
    similarity: Tensor = _MaxSim.apply(regions, counted, caption, len(words), form, kept)
    return similarity


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
