"""The ranking losses as Triton kernels: similarities, hinges and maxima in one pass over tiles of S.

A tile leaves only its maxima, or its counts and one number, so memory is linear in the batch but for one number a tile;
the backward pass of the sum writes the weights of a block of rows. Only integers are added atomically: two runs give
the same bits. Float32 products are exact, not TF32; those of the sum's backward pass are torch's, as it is set.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from capbench.kernels._blocks import slices
from capbench.kernels._triton import interpreted
from capbench.kernels.ranking_loss import tiles
from capbench.kernels.ranking_loss.reference import Best

PARTIAL_BYTES = 2**22  # of the partial maxima of each direction
WEIGHT_BYTES = 2**26  # of the weights of a block of rows in the sum's backward pass
WIDE_FROM = 2048  # pairs; below, tiles are smaller than 128 rows, and more
GATHERED = 16  # rows added at a time in the backward pass
ORDER_BLOCKS = 64, 32, 16  # rows of a tile of the order, the largest that keeps a GPU busy
BUSY_FROM = 128  # tiles; fewer leave processors of a GPU idle


def ranking_loss(
    images: Tensor, captions: Tensor, image_ids: Tensor, margin: float, loss: str, similarity: str
) -> Tensor:
    """`capbench.kernels.ranking_loss.ranking_loss`, unchecked, on one GPU or in the interpreter."""
    device, order = images.device.type, similarity == "order"
    if torch.is_autocast_enabled(device) and not order:
        images, captions = (x.to(torch.get_autocast_dtype(device)) for x in (images, captions))
    operation = _MaxOfHinges if loss == "max_of_hinges" else _SumOfHinges
    batch = (x.contiguous() for x in (images, captions, image_ids))
    value: Tensor = operation.apply(*batch, float(margin), order)
    return value


class _MaxOfHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, image_ids: Tensor, margin: float, order: bool) -> Tensor:
        matched, (caption_score, caption), (image_score, image) = hardest_negatives(images, captions, image_ids, order)
        over_captions, over_images = margin + caption_score - matched, margin + image_score - matched
        caption = caption.masked_fill(over_captions <= 0, -1)
        image = image.masked_fill(over_images <= 0, -1)
        ctx.save_for_backward(images, captions, matched, caption_score, caption, image_score, image)
        ctx.order = order
        return over_captions.clamp(min=0).sum() + over_images.clamp(min=0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, matched, caption_score, caption, image_score, image = ctx.saved_tensors
        by_image, by_caption = (caption_score, caption), (image_score, image)
        d_images = winners_gradient(images, captions, matched, by_image, by_caption, gradient, ctx.order, True)
        d_captions = winners_gradient(captions, images, matched, by_caption, by_image, gradient, ctx.order, False)
        return d_images, d_captions, None, None, None


class _SumOfHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, image_ids: Tensor, margin: float, order: bool) -> Tensor:
        pairs, dim = images.shape
        tile = tile_of(images, order)
        blocks = triton.cdiv(pairs, tile["block"])
        matched = torch.empty(pairs, device=images.device)
        tiles.matched_tiles[(blocks,)](images, captions, matched, pairs, dim, **tile)
        totals = matched.new_empty(blocks, blocks)
        violations = image_ids.new_zeros(pairs, dtype=torch.int32)
        tiles.sum_tiles[(blocks, blocks)](
            images, captions, image_ids, matched, totals, violations, margin, pairs, dim, **tile
        )
        ctx.save_for_backward(images, captions, image_ids, matched, violations)
        ctx.margin, ctx.order = margin, order
        return totals.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, image_ids, matched, violations = ctx.saved_tensors
        pairs, dim = images.shape
        tile = tile_of(images, ctx.order)
        kind = torch.float32 if ctx.order else images.dtype
        d_images, d_captions = _matched_gradients(images, captions, matched, -violations.float(), ctx.order)
        height = _multiple(WEIGHT_BYTES // (pairs * kind.itemsize), tile["block"])
        for rows in slices(0, pairs, height):
            weights = images.new_empty(rows.stop - rows.start, pairs, dtype=kind)
            grid = triton.cdiv(len(weights), tile["block"]), triton.cdiv(pairs, tile["block"])
            tiles.weight_tiles[grid](
                images, captions, image_ids, matched, weights, ctx.margin, rows.start, pairs, dim, **tile
            )
            _add_gradient(d_images[rows], weights.T, images[rows], captions, ctx.order, True)
            _add_gradient(d_captions, weights, captions, images[rows], ctx.order, False)
        return (d_images * gradient).to(images.dtype), (d_captions * gradient).to(images.dtype), None, None, None


def hardest_negatives(images: Tensor, captions: Tensor, image_ids: Tensor, order: bool) -> tuple[Tensor, Best, Best]:
    """Score of each matched pair; score and index of each image's closest wrong caption, each caption's wrong image.

    All [pair], scores in float32; the first of ties wins. The maxima of the tiles of a block of rows are reduced before
    the next block.
    """
    pairs, dim = images.shape
    tile = tile_of(images, order)
    block = tile["block"]
    columns = triton.cdiv(pairs, block)
    height = _multiple(PARTIAL_BYTES // (8 * columns), block)
    matched = torch.empty(pairs, device=images.device)
    by_row = []
    score = torch.full_like(matched, -torch.inf)
    index = torch.zeros_like(matched, dtype=torch.int64)
    for some in slices(0, pairs, height):
        width = some.stop - some.start
        rows = triton.cdiv(width, block)
        row_score, row_index = _partials(columns, width, images.device)
        column_score, column_index = _partials(rows, pairs, images.device)
        tiles.hardest_tiles[(rows, columns)](
            images, captions, image_ids, matched, row_score, row_index, column_score, column_index,
            some.start, width, pairs, dim, **tile,
        )  # fmt: skip
        by_row.append(_first_maximum(row_score, row_index))
        block_score, block_index = _first_maximum(column_score, column_index)
        closer = block_score > score
        score, index = torch.where(closer, block_score, score), torch.where(closer, block_index, index)
    scores, indices = zip(*by_row, strict=True)
    return matched, (torch.cat(scores), torch.cat(indices)), (score, index)


def winners_gradient(
    side: Tensor, other: Tensor, matched: Tensor, chosen: Best, chosen_by: Best, gradient: Tensor, order: bool,
    side_is_image: bool,
) -> Tensor:  # fmt: skip
    """The gradient [pair, dim] of one side of the pairs, `side`.

    Row k adds up the slope of the negative that it chose, minus the slope of its match for each active hinge of the
    pair, and the slopes of the rows of `other` that chose it. `chosen` has the score and index [pair] into `other` of
    each row's choice, `chosen_by` those of the choices of `other`; without a violation the index is -1.
    """
    pairs, dim = other.shape
    hinges = (chosen[1] >= 0).int() + (chosen_by[1] >= 0).int()
    ordered, sorting = chosen_by[1].sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(pairs + 1, device=other.device))
    result = torch.empty_like(other)
    width = min(256, triton.next_power_of_2(dim))
    tiles.gather_winners[(pairs, triton.cdiv(dim, width))](
        side, other, matched, *chosen, hinges, chosen_by[0], sorting, bounds, gradient, result, dim,
        order=order, side_is_image=side_is_image, width=width, at_once=GATHERED,
    )  # fmt: skip
    return result


def tile_of(embeddings: Tensor, order: bool, precision: str = "ieee") -> dict[str, Any]:
    """The shape, precision and warps of a tile of similarities."""
    if order:  # the smaller a block, the more coordinates fit the registers
        busy = (block for block in ORDER_BLOCKS if triton.cdiv(len(embeddings), block) ** 2 >= BUSY_FROM)
        block = next(busy, min(ORDER_BLOCKS))
        depth, wide, precision = 512 // block, block == 64, "ieee"
    else:
        wide = len(embeddings) >= WIDE_FROM
        block, depth = 128 if wide else 32, 128 // embeddings.element_size()
        precision = "widened" if interpreted() else precision
    return {"order": order, "precision": precision, "block": block, "depth": depth, "num_warps": 8 if wide else 4}


def _multiple(rows: int, block: int) -> int:
    return max(1, rows // block) * block


def _partials(blocks: int, length: int, device: torch.device) -> Best:
    score = torch.empty(blocks, length, device=device)
    return score, torch.empty(blocks, length, dtype=torch.int32, device=device)


def _first_maximum(score: Tensor, index: Tensor) -> Best:
    best, block = score.max(0)
    return best, index.gather(0, block[None])[0].long()


def _matched_gradients(images: Tensor, captions: Tensor, matched: Tensor, weight: Tensor, order: bool) -> list[Tensor]:
    """The gradients of sum_k weight[k] s(k, k), in float32."""
    if not order:
        return [captions * weight[:, None], images * weight[:, None]]
    violation = (captions.float() - images.float()).clamp_(min=0).mul_((weight / -matched)[:, None])
    return [violation, -violation]


def _add_gradient(
    result: Tensor, weights: Tensor, side: Tensor, other: Tensor, order: bool, side_is_image: bool
) -> None:
    """Adds to `result` [side, dim] the gradient by `side` of its similarities by `weights` [other, side], in float32.

    The weights of the order are divided by the norms.
    """
    if order:
        grid = triton.cdiv(len(side), 16), triton.cdiv(side.shape[1], 64)
        tiles.add_violations[grid](
            weights.contiguous(), side, other, result, len(side), len(other), side.shape[1],
            side_is_image=side_is_image, block=16, width=64, depth=16,
        )  # fmt: skip
    elif other.is_cuda and other.dtype is not torch.float32:
        result += torch.mm(weights.T, other, out_dtype=torch.float32)
    else:
        result += weights.T.float() @ other.float()
