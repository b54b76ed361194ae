"""The ranking losses as Triton kernels: similarity, hinge and maximum in one pass over tiles of S.

No tile leaves the registers but for its maxima (or counts, and for the sum one number), so that scratch memory is
linear in the batch, but for one number a tile; the sum's backward pass writes the weights of a block of rows. Sums of
floating-point numbers go through partial results in a fixed order; the only atomic additions are of integers. So two
runs give the same bits. Products of float32 in the kernels are exact ones, not tf32; those of the sum's backward pass
are torch's, as it is set.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from capbench.kernels._triton import interpreted
from capbench.kernels.ranking_loss import tiles
from capbench.kernels.ranking_loss.order import add_violations

PARTIAL_BYTES = 2**22  # of each direction's partial maxima
WEIGHT_BYTES = 2**26  # of the weights of a block of rows in the sum's backward pass
WIDE_FROM = 2048  # rows from which a tile has 128 of them; fewer give more, smaller tiles
GATHERED = 16  # rows that are added at a time in the backward pass
ORDER_BLOCKS = 64, 32, 16  # rows of a tile of the order
BUSY_FROM = 128  # tiles; with fewer large ones than this a GPU has idle processors, and small ones are quicker


def ranking_loss(
    images: Tensor, captions: Tensor, owner: Tensor, margin: float, negatives: str, similarity: str
) -> Tensor:
    """`capbench.kernels.ranking_loss.ranking_loss`, for tensors on one GPU (or in the interpreter)."""
    device, order = images.device.type, similarity == "order"
    if torch.is_autocast_enabled(device) and not order:
        images, captions = (x.to(torch.get_autocast_dtype(device)) for x in (images, captions))
    operation = _HardestHinges if negatives == "hardest" else _SumOfHinges
    loss: Tensor = operation.apply(images.contiguous(), captions.contiguous(), owner.contiguous(), float(margin), order)
    return loss


class _HardestHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, owner: Tensor, margin: float, order: bool) -> Tensor:
        positive, (caption_score, caption), (image_score, image) = hardest_negatives(images, captions, owner, order)
        over_captions, over_images = margin + caption_score - positive, margin + image_score - positive
        caption = caption.masked_fill(over_captions <= 0, -1)
        image = image.masked_fill(over_images <= 0, -1)
        ctx.save_for_backward(images, captions, positive, caption_score, caption, image_score, image)
        ctx.order = order
        return over_captions.clamp(min=0).sum() + over_images.clamp(min=0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, positive, caption_score, caption, image_score, image = ctx.saved_tensors
        wrong_captions, wrong_images = (caption_score, caption), (image_score, image)
        d_images = winners_gradient(
            images, captions, positive, wrong_captions, wrong_images, gradient, ctx.order, own_is_image=True
        )
        d_captions = winners_gradient(
            captions, images, positive, wrong_images, wrong_captions, gradient, ctx.order, own_is_image=False
        )
        return d_images, d_captions, None, None, None


class _SumOfHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, owner: Tensor, margin: float, order: bool) -> Tensor:
        pairs, dim = images.shape
        positive = matched_similarities(images, captions, torch.arange(pairs, device=images.device), order)
        tile = tile_of(images, order)
        blocks = triton.cdiv(pairs, tile["block"])
        totals = positive.new_empty(blocks, blocks)
        violations = owner.new_zeros(pairs, dtype=torch.int32)
        tiles.sum_tiles[(blocks, blocks)](
            images, captions, owner, positive, margin, pairs, dim, totals, violations, **tile
        )
        ctx.save_for_backward(images, captions, owner, positive, violations)
        ctx.margin, ctx.order = margin, order
        return totals.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, owner, positive, violations = ctx.saved_tensors
        pairs, dim = images.shape
        tile = tile_of(images, ctx.order)
        kind = torch.float32 if ctx.order else images.dtype
        add = _add_violations if ctx.order else _add_products
        d_images, d_captions = _matched_gradients(images, captions, positive, -violations.float(), ctx.order)
        height = _multiple(WEIGHT_BYTES // (pairs * kind.itemsize), tile["block"])
        for start in range(0, pairs, height):
            part = slice(start, min(start + height, pairs))
            weights = images.new_empty(part.stop - start, pairs, dtype=kind)  # by hinges of each image and caption
            grid = triton.cdiv(len(weights), tile["block"]), triton.cdiv(pairs, tile["block"])
            tiles.weight_tiles[grid](images, captions, owner, positive, ctx.margin, start, pairs, dim, weights, **tile)
            add(d_images[part], weights.T, images[part], captions, True)
            add(d_captions, weights, captions, images[part], False)
        return (d_images * gradient).to(images.dtype), (d_captions * gradient).to(images.dtype), None, None, None


def hardest_negatives(
    images: Tensor, captions: Tensor, owner: Tensor, order: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Score of each pair; score and index of each image's closest wrong caption, and of each caption's closest image.

    All [pair], scores in float32. A block of rows at a time: every tile writes its maxima by row and by column, and
    these are reduced before the next block. Of equals the first wins.
    """
    pairs, dim = images.shape
    tile = tile_of(images, order)
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


def winners_gradient(
    own: Tensor,
    other: Tensor,
    positive: Tensor,
    chosen: tuple[Tensor, Tensor],
    chosen_by: tuple[Tensor, Tensor],
    gradient: Tensor,
    order: bool,
    own_is_image: bool,
) -> Tensor:
    """Gradient of the `own` side of the pairs, [pair, dim], from its embeddings and those of the `other` side.

    Row k has the slope of the negative that it chose, minus that of its own match for each of its two hinges, plus
    those of all of the other side that chose it. `chosen` are score and index [pair] into `other` of what each row
    chose, `chosen_by` of the row that each of `other` chose; the index is -1 where there is no violation.
    """
    pairs, dim = other.shape
    hinges = (chosen[1] >= 0).int() + (chosen_by[1] >= 0).int()
    ordered, sorting = chosen_by[1].sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(pairs + 1, device=other.device))
    result = torch.empty_like(other)
    width = min(256, triton.next_power_of_2(dim))
    tiles.gather_winners[(pairs, triton.cdiv(dim, width))](
        own, other, positive, *chosen, hinges, chosen_by[0], sorting, bounds, gradient, result, dim,
        order=order, own_is_image=own_is_image, width=width, at_once=GATHERED,
    )  # fmt: skip
    return result


def matched_similarities(images: Tensor, captions: Tensor, owner: Tensor, order: bool) -> Tensor:
    """The similarity of each caption and image `owner` [caption] of it, [caption] in float32, as a tile computes it."""
    tile = tile_of(captions, order)
    scores = torch.empty(len(captions), device=captions.device)
    grid = (triton.cdiv(len(captions), tile["block"]),)
    tiles.matched_tiles[grid](images, captions, owner, len(captions), captions.shape[1], scores, **tile)
    return scores


def tile_of(embeddings: Tensor, order: bool, precision: str = "ieee") -> dict[str, Any]:
    """How kernels make their tiles of similarities: the shape, the precision and the warps."""
    if order:
        return {"order": True, "precision": "ieee", **_order_tile(embeddings)}
    wide = len(embeddings) >= WIDE_FROM
    precision = "widened" if interpreted() else precision
    shape = {"block": 128 if wide else 32, "depth": 128 // embeddings.element_size(), "num_warps": 8 if wide else 4}
    return {"order": False, "precision": precision, **shape}


def _order_tile(embeddings: Tensor) -> dict[str, Any]:
    """The shape of a tile of the order and its warps; the smaller, the more coordinates of it fit the registers."""
    busy = (block for block in ORDER_BLOCKS if triton.cdiv(len(embeddings), block) ** 2 >= BUSY_FROM)
    block = next(busy, min(ORDER_BLOCKS))
    return {"block": block, "depth": 512 // block, "num_warps": 8 if block == 64 else 4}


def _multiple(rows: int, block: int) -> int:
    return max(1, rows // block) * block


def _partials(blocks: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    score = torch.empty(blocks, length, device=device)
    return score, torch.empty(blocks, length, dtype=torch.int32, device=device)


def _first_maximum(score: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    best, block = score.max(0)
    return best, index.gather(0, block[None])[0].long()


def _matched_gradients(
    images: Tensor, captions: Tensor, positive: Tensor, weight: Tensor, order: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_k weight[k] s(k, k), in float32."""
    if not order:
        return captions * weight[:, None], images * weight[:, None]
    violation = (captions.float() - images.float()).clamp_(min=0).mul_((weight / -positive)[:, None])
    return violation, -violation


def _add_violations(result: Tensor, weights: Tensor, own: Tensor, other: Tensor, own_is_image: bool) -> None:
    grid = triton.cdiv(len(own), 16), triton.cdiv(own.shape[1], 64)
    add_violations[grid](
        weights.contiguous(), own, other, result, len(own), len(other), own.shape[1],
        own_is_image=own_is_image, block=16, width=64, depth=16,
    )  # fmt: skip


def _add_products(result: Tensor, weights: Tensor, _own: Tensor, other: Tensor, _own_is_image: bool) -> None:
    result += _float32_product(weights.T, other)


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right added and returned in float32, whatever their type."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
