"""The ranking losses with the cosine as Triton kernels: product, hinge and maximum in one pass over tiles of S.

No tile leaves the registers but for its maxima (or counts), so that scratch memory is linear in the batch. Sums of
floating-point numbers go through partial results in a fixed order; the only atomic additions are of integers. So two
runs give the same bits. Products of float32 are exact ones, not tf32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from capbench.kernels import ranking_loss_tiles as tiles
from capbench.kernels._triton import interpreted

PARTIAL_BYTES = 2**22  # of each direction's partial maxima
WEIGHT_BYTES = 2**26  # of the weights of a block of rows in the sum's backward pass
WIDE_FROM = 2048  # rows from which a tile has 128 of them; fewer give more, smaller tiles
GATHERED = 16  # rows that are added at a time in the backward pass


def ranking_loss(images: Tensor, captions: Tensor, owner: Tensor, margin: float, negatives: str) -> Tensor:
    """`capbench.kernels.ranking_loss.ranking_loss` with the cosine, for tensors on one GPU (or in the interpreter)."""
    device = images.device.type
    if torch.is_autocast_enabled(device):
        images, captions = (x.to(torch.get_autocast_dtype(device)) for x in (images, captions))
    operation = _HardestHinges if negatives == "hardest" else _SumOfHinges
    loss: Tensor = operation.apply(images.contiguous(), captions.contiguous(), owner.contiguous(), float(margin))
    return loss


class _HardestHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, owner: Tensor, margin: float) -> Tensor:
        positive, (caption_score, caption), (image_score, image) = hardest_negatives(images, captions, owner)
        over_captions, over_images = margin + caption_score - positive, margin + image_score - positive
        caption = caption.masked_fill(over_captions <= 0, -1)
        image = image.masked_fill(over_images <= 0, -1)
        ctx.save_for_backward(images, captions, caption, image)
        return over_captions.clamp(min=0).sum() + over_images.clamp(min=0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, caption, image = ctx.saved_tensors
        d_images = winners_gradient(captions, caption, image, gradient)
        return d_images, winners_gradient(images, image, caption, gradient), None, None


class _SumOfHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, owner: Tensor, margin: float) -> Tensor:
        pairs, dim = images.shape
        positive = matched_products(images, captions, torch.arange(pairs, device=images.device))
        tile = tile_of(images)
        blocks = triton.cdiv(pairs, tile["block"])
        totals = positive.new_empty(blocks, blocks)
        violations = owner.new_zeros(pairs, dtype=torch.int32)
        tiles.sum_tiles[(blocks, blocks)](
            images, captions, owner, positive, margin, pairs, dim, totals, violations, **tile
        )
        ctx.save_for_backward(images, captions, owner, positive, violations)
        ctx.margin = margin
        return totals.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, owner, positive, violations = ctx.saved_tensors
        pairs, dim = images.shape
        tile = tile_of(images)
        of_pair = -violations.float()[:, None]
        d_images, d_captions = captions * of_pair, images * of_pair
        height = _multiple(WEIGHT_BYTES // (pairs * images.element_size()), tile["block"])
        for start in range(0, pairs, height):
            part = slice(start, min(start + height, pairs))
            weights = images.new_empty(part.stop - start, pairs)  # 0, 1 or 2 hinges of each image and caption
            grid = triton.cdiv(len(weights), tile["block"]), triton.cdiv(pairs, tile["block"])
            tiles.weight_tiles[grid](images, captions, owner, positive, ctx.margin, start, pairs, dim, weights, **tile)
            d_images[part] += _float32_product(weights, captions)
            d_captions += _float32_product(weights.T, images[part])
        return (d_images * gradient).to(images.dtype), (d_captions * gradient).to(images.dtype), None, None


def hardest_negatives(
    images: Tensor, captions: Tensor, owner: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Score of each pair; score and index of each image's closest wrong caption, and of each caption's closest image.

    All [pair], scores in float32. A block of rows at a time: every tile writes its maxima by row and by column, and
    these are reduced before the next block. Of equals the first wins.
    """
    pairs, dim = images.shape
    tile = tile_of(images)
    block = tile["block"]
    columns = triton.cdiv(pairs, block)
    height = _multiple(PARTIAL_BYTES // (8 * columns), block)
    positive = torch.empty(pairs, device=images.device)
    by_row = []
    score = torch.full_like(positive, -torch.inf)
    index = torch.zeros_like(positive, dtype=torch.int64)
    for start in range(0, pairs, height):
        width = min(height, pairs - start)
        rows = triton.cdiv(width, block)
        row_score, row_index = _partials(columns, width, images.device)
        column_score, column_index = _partials(rows, pairs, images.device)
        tiles.hardest_tiles[(rows, columns)](
            images, captions, owner, start, width, pairs, dim,
            positive, row_score, row_index, column_score, column_index, **tile,
        )  # fmt: skip
        by_row.append(_first_maximum(row_score, row_index))
        block_score, block_index = _first_maximum(column_score, column_index)
        closer = block_score > score
        score, index = torch.where(closer, block_score, score), torch.where(closer, block_index, index)
    return positive, (torch.cat([row[0] for row in by_row]), torch.cat([row[1] for row in by_row])), (score, index)


def winners_gradient(other: Tensor, chosen: Tensor, chosen_by: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of one side of the pairs, [pair, dim], from the embeddings of the `other` side.

    Row k has the negative that it chose, minus its own match for each of its two hinges, plus all of the other side
    that chose it. `chosen` [pair] are indices into `other`, `chosen_by` [pair] the row that each of `other` chose; -1
    where there is no violation.
    """
    pairs, dim = other.shape
    hinges = (chosen >= 0).int() + (chosen_by >= 0).int()
    ordered, order = chosen_by.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(pairs + 1, device=other.device))
    result = torch.empty_like(other)
    width = min(256, triton.next_power_of_2(dim))
    tiles.gather_winners[(pairs, triton.cdiv(dim, width))](
        other, chosen, hinges, order, bounds, gradient, result, dim, width=width, at_once=GATHERED
    )
    return result


def matched_products(images: Tensor, captions: Tensor, owner: Tensor) -> Tensor:
    """The product of each caption and image `owner` [caption] of it, [caption] in float32, as a tile computes it."""
    tile = tile_of(captions)
    products = torch.empty(len(captions), device=captions.device)
    grid = (triton.cdiv(len(captions), tile["block"]),)
    tiles.matched_tiles[grid](images, captions, owner, len(captions), captions.shape[1], products, **tile)
    return products


def tile_of(embeddings: Tensor) -> dict[str, Any]:
    """The shape of a tile and its warps; widened because the interpreter does not multiply bf16."""
    wide = len(embeddings) >= WIDE_FROM
    depth = 128 // embeddings.element_size()
    return {"block": 128 if wide else 32, "depth": depth, "widen": interpreted(), "num_warps": 8 if wide else 4}


def _multiple(rows: int, block: int) -> int:
    return max(1, rows // block) * block


def _partials(blocks: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    score = torch.empty(blocks, length, device=device)
    return score, torch.empty(blocks, length, dtype=torch.int32, device=device)


def _first_maximum(score: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    best, block = score.max(0)
    return best, index.gather(0, block[None])[0].long()


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right added and returned in float32, whatever their type."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
