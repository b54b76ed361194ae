"""maxsim on a CPU: products of blocks of images and words, and gradients from the regions that won."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from capbench.kernels._blocks import scratch, slices
from capbench.kernels.maxsim.reference import Form

ELEMENTS_AT_ONCE = 2**21  # of the product of regions and words: 8 MiB in float32, and as fast as all at once
WIDE = 960  # words of a product: 1,024, a power of two, take a tenth longer
EVEN = 32  # products are fastest where the words are a multiple of this
GATHER_FROM = 8  # regions; below, a product with the weights is as fast as a sum over the winners


def maxsim(regions: Tensor, words: Tensor, lengths: Tensor, form: Form) -> Tensor:
    """`capbench.kernels.maxsim.maxsim`, unchecked, on any device."""
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None].to(words.device)
    caption = torch.arange(len(words), device=words.device)[:, None].expand_as(present)[present]
    kept = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    counted = words.flatten(0, 1) if bool(present.all()) else words[present]
    similarity: Tensor = _MaxSim.apply(regions, counted, caption, len(words), form, kept)
    return similarity


class _MaxSim(torch.autograd.Function):
    """`words` [word, dim] of all captions in a row, `caption` [word] of each; `kept`: whether a gradient follows."""

    @staticmethod
    def forward(
        ctx: Any, regions: Tensor, words: Tensor, caption: Tensor, captions: int, form: Form, kept: bool
    ) -> Tensor:
        images = len(regions)
        similarity = regions.new_zeros(captions, images, dtype=torch.promote_types(regions.dtype, torch.float32))
        winners = words.new_empty(images, len(words), dtype=torch.int16) if kept and form == "max" else None
        for rows, columns in _tiles(regions, len(words)):
            products = _product(regions[rows], words[columns])
            if winners is not None:
                best, at = products.max(1)
                winners[rows, columns] = at.to(torch.int16)
            elif form == "max":
                best = products.amax(1)
            else:
                best = products.clamp_(min=0).sum(1, dtype=similarity.dtype)
            similarity[:, rows].index_add_(0, caption[columns], best.T.to(similarity.dtype))
        ctx.save_for_backward(regions, words, caption, *([] if winners is None else [winners]))
        return similarity.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, caption, *winners = ctx.saved_tensors
        exact = regions.device.type == "cpu" and regions.dtype in (torch.float32, torch.float64)
        if winners and exact and regions.shape[1] >= GATHER_FROM:
            gradients = _gathered(regions, words, gradient[:, caption], winners[0])
        else:
            gradients = _multiplied(regions, words, gradient[:, caption].to(regions.dtype), *winners)
        return *gradients, None, None, None, None


def _gathered(regions: Tensor, words: Tensor, gradient: Tensor, winners: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of regions and words from that of each image and word [image, word]: sums over the winners' rows."""
    images, count, _ = regions.shape
    flat, d_words, d_regions = regions.flatten(0, 1), torch.empty_like(words), torch.empty_like(regions)
    first = torch.arange(images)[:, None] * count
    for columns in slices(0, len(words), _at_once(images)):
        won = (winners[:, columns] + first).T.contiguous()
        weight = gradient[:, columns].T.contiguous()
        d_words[columns] = embedding_bag(won, flat, mode="sum", per_sample_weights=weight)
    for rows in slices(0, images, _at_once(len(words))):
        won = winners[rows]
        by_region = torch.from_numpy(np.argsort(won.numpy(), axis=1, kind="stable"))
        sizes = torch.bincount((won + first[: len(won)]).flatten(), minlength=len(won) * count)
        weight = gradient[rows].gather(1, by_region).flatten()
        starts = sizes.cumsum(0) - sizes
        sums = embedding_bag(by_region.flatten(), words, starts, mode="sum", per_sample_weights=weight)
        d_regions[rows] = sums.view(len(won), count, -1)
    return d_regions, d_words


def _multiplied(regions: Tensor, words: Tensor, gradient: Tensor, *winners: Tensor) -> tuple[Tensor, Tensor]:
    """The same as products with the weights [image, region, word], for half precision and the sum."""
    wide = torch.promote_types(regions.dtype, torch.float32)
    d_regions, d_words = torch.zeros_like(regions, dtype=wide), torch.zeros_like(words, dtype=wide)
    for rows, columns in _tiles(regions, len(words)):
        of_word = gradient[rows, None, columns]
        if winners:
            weight = of_word.new_zeros(len(of_word), regions.shape[1], of_word.shape[2])
            weight.scatter_(1, winners[0][rows, None, columns].long(), of_word)
        else:
            weight = _product(regions[rows], words[columns]).gt(0) * of_word
        weight = weight.flatten(0, 1)
        d_regions[rows] += (weight @ words[columns]).view_as(regions[rows])
        d_words[columns] += weight.T @ regions[rows].flatten(0, 1)
    return d_regions.to(regions.dtype), d_words.to(words.dtype)


def _product(regions: Tensor, words: Tensor) -> Tensor:
    """[image, region, word], which the next product overwrites."""
    left = regions.flatten(0, 1)
    product = torch.mm(left, words.T, out=scratch("maxsim", (len(left), len(words)), regions))
    return product.view(-1, regions.shape[1], len(words))


def _tiles(regions: Tensor, words: int) -> Iterator[tuple[slice, slice]]:
    images, count, _ = regions.shape
    step = max(1, min(images, _at_once(count * min(words, WIDE))))
    for rows in slices(0, images, step):
        most = min(WIDE, _at_once(step * count))
        even = ceil(words / max(1, ceil(words / most)))  # a narrow rest would take as long as a wide one
        for columns in slices(0, words, max(1, min(most, ceil(even / EVEN) * EVEN))):
            yield rows, columns


def _at_once(each: int) -> int:
    return max(1, ELEMENTS_AT_ONCE // max(1, each))
