"""Triton kernels over tiles of S, the similarities of image and caption embeddings by dot product or by the order.

A tile has `block` rows of each side and takes `depth` coordinates at a time. Row indices are int64, similarities and
all that follows from them float32. The order, s(i, c) = -||max(0, c - i)||, is no product of matrices: its differences,
[depth, block, block] in float32, are summed within one thread. NaN stays NaN.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def signed_violation(side, other, side_is_image: tl.constexpr):
    """-s times the gradient of s by `side`: max(0, c - i) for an image, and for a caption -max(0, c - i)."""
    step = other - side
    if side_is_image:
        step = tl.maximum(step, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        step = tl.minimum(step, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return step


@triton.jit
@no_type_check
def tile_of_orders(
    images, captions, rows, columns, row_there, column_there, dim, block: tl.constexpr, depth: tl.constexpr
):  # fmt: skip
    """S [block, block] float32 of `images` [image, dim] at int64 `rows` and `captions` [caption, dim] at `columns`."""
    squares = tl.zeros((block, block), tl.float32)
    for start in tl.range(0, dim, depth, num_stages=3):
        inner = start + tl.arange(0, depth)
        image_there = (inner < dim)[:, None] & row_there[None, :]
        caption_there = (inner < dim)[:, None] & column_there[None, :]
        image = tl.load(images + rows[None, :] * dim + inner[:, None], mask=image_there, other=0.0)
        caption = tl.load(captions + columns[None, :] * dim + inner[:, None], mask=caption_there, other=0.0)
        above = signed_violation(image.to(tl.float32)[:, :, None], caption.to(tl.float32)[:, None, :], True)
        squares += tl.sum(above * above, 0)
    return -tl.sqrt_rn(squares + 1e-12)


@triton.jit
@no_type_check
def tile_of_similarities(
    images, captions, rows, columns, row_there, column_there, dim, order: tl.constexpr, block: tl.constexpr,
    depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """S [block, block] in float32 of `images` [image, dim] at int64 `rows` and `captions` [caption, dim] at `columns`.

    `precision` is that of float32 products: exact ("ieee") or in three bf16 parts ("bf16x3"); half precision is always
    exact. "widened" serves the interpreter, which does not multiply bf16.
    """
    if order:
        tile = tile_of_orders(images, captions, rows, columns, row_there, column_there, dim, block, depth)
    else:
        tile = tl.zeros((block, block), tl.float32)
        for start in range(0, dim, depth):
            inner = start + tl.arange(0, depth)
            left_there = row_there[:, None] & (inner < dim)[None, :]
            right_there = (inner < dim)[:, None] & column_there[None, :]
            left = tl.load(images + rows[:, None] * dim + inner[None, :], mask=left_there, other=0.0)
            right = tl.load(captions + columns[None, :] * dim + inner[:, None], mask=right_there, other=0.0)
            if precision == "widened":
                tile = tl.dot(left.to(tl.float32), right.to(tl.float32), tile, input_precision="ieee")
            else:
                tile = tl.dot(left, right, tile, input_precision=precision)
    return tile


@triton.jit
@no_type_check
def matched_tiles(
    images, captions,  # [pair, dim]
    scores,  # [pair] float32, out
    pairs, dim, order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The similarity of each matched pair, as the other kernels compute it in their tiles."""
    place = tl.arange(0, block)
    rows = (tl.program_id(0) * block + place).to(tl.int64)
    there = rows < pairs
    tile = tile_of_similarities(images, captions, rows, rows, there, there, dim, order, block, depth, precision)
    diagonal = tl.sum(tl.where(place[:, None] == place[None, :], tile, 0.0), 0)
    tl.store(scores + rows, diagonal, mask=there)


@triton.jit
@no_type_check
def _negatives(image_ids, rows, columns, row_there, column_there):
    """Which pairs of a tile are negatives: those of two images."""
    of_row = tl.load(image_ids + rows, mask=row_there, other=0)
    of_column = tl.load(image_ids + columns, mask=column_there, other=0)
    return (of_row[:, None] != of_column[None, :]) & row_there[:, None] & column_there[None, :]


@triton.jit
@no_type_check
def hardest_tiles(
    images, captions, image_ids,  # [pair, dim], [pair, dim], [pair] int64
    matched,  # [pair] float32, out: similarities of the matched pairs
    row_score, row_index,  # [column block, width] float32 and int32, out: the best of each row in each tile, its column
    column_score, column_index,  # [row block, pair] float32 and int32, out: the best of each column, and its row
    first, width, pairs, dim, order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The closest negatives of `width` rows from `first` and of all columns, tile by tile."""
    row_block, column_block = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, block)
    local = (row_block * block + place).to(tl.int64)
    rows, columns = first + local, (column_block * block + place).to(tl.int64)
    row_there, column_there = local < width, columns < pairs
    tile = tile_of_similarities(
        images, captions, rows, columns, row_there, column_there, dim, order, block, depth, precision
    )
    if first + row_block * block == column_block * block:
        diagonal = tl.sum(tl.where(place[:, None] == place[None, :], tile, 0.0), 1)
        tl.store(matched + rows, diagonal, mask=row_there)
    negative = _negatives(image_ids, rows, columns, row_there, column_there)
    tile = tl.where(negative, tile, float("-inf"))
    best, at = tl.max(tile, 1, return_indices=True)
    partial = column_block.to(tl.int64) * width + local
    tl.store(row_score + partial, best, mask=row_there)
    tl.store(row_index + partial, column_block * block + at, mask=row_there)
    best, at = tl.max(tile, 0, return_indices=True)
    partial = row_block.to(tl.int64) * pairs + columns
    tl.store(column_score + partial, best, mask=column_there)
    tl.store(column_index + partial, first + row_block * block + at, mask=column_there)


@triton.jit
@no_type_check
def _hinges(
    images, captions, image_ids, matched, margin, rows, columns, row_there, column_there, dim,
    order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """S of a tile and its hinges over captions and over images, which are 0 where there is no negative."""
    tile = tile_of_similarities(
        images, captions, rows, columns, row_there, column_there, dim, order, block, depth, precision
    )
    negative = _negatives(image_ids, rows, columns, row_there, column_there)
    matched_row = tl.load(matched + rows, mask=row_there, other=0.0)
    matched_column = tl.load(matched + columns, mask=column_there, other=0.0)
    over_captions = margin + tile - matched_row[:, None]
    over_images = margin + tile - matched_column[None, :]
    # Written so that NaN stays: a comparison with it is false.
    over_captions = tl.where((over_captions <= 0.0) | (negative == 0), 0.0, over_captions)
    return tile, over_captions, tl.where((over_images <= 0.0) | (negative == 0), 0.0, over_images)


@triton.jit
@no_type_check
def sum_tiles(
    images, captions, image_ids, matched,  # [pair, dim], [pair, dim], [pair] int64, [pair] float32
    totals,  # [row block, column block] float32, out: the sum of each tile's hinges
    violations,  # [pair] int32, in and out: the hinges in which each pair is the matched one
    margin, pairs, dim, order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, block)
    rows, columns = (row_block * block + place).to(tl.int64), (column_block * block + place).to(tl.int64)
    row_there, column_there = rows < pairs, columns < pairs
    _, over_captions, over_images = _hinges(
        images, captions, image_ids, matched, margin, rows, columns, row_there, column_there, dim,
        order, block, depth, precision,
    )  # fmt: skip
    total = tl.sum(tl.sum(over_captions + over_images, 1), 0)
    tl.store(totals + row_block * tl.num_programs(1) + column_block, total)
    tl.atomic_add(violations + rows, tl.sum((over_captions != 0.0).to(tl.int32), 1), mask=row_there)
    tl.atomic_add(violations + columns, tl.sum((over_images != 0.0).to(tl.int32), 0), mask=column_there)


@triton.jit
@no_type_check
def weight_tiles(
    images, captions, image_ids, matched,  # [pair, dim], [pair, dim], [pair] int64, [pair] float32
    weights,  # [row, pair], out
    margin, first, pairs, dim, order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The active hinges of each image, from row `first` on, and caption: 0, 1 or 2; for the order, over the norm."""
    place = tl.arange(0, block)
    local = (tl.program_id(0) * block + place).to(tl.int64)
    rows, columns = first + local, (tl.program_id(1) * block + place).to(tl.int64)
    row_there, column_there = rows < pairs, columns < pairs
    tile, over_captions, over_images = _hinges(
        images, captions, image_ids, matched, margin, rows, columns, row_there, column_there, dim,
        order, block, depth, precision,
    )  # fmt: skip
    weight = (over_captions != 0.0).to(tl.float32) + (over_images != 0.0).to(tl.float32)
    if order:
        weight /= -tile
    target = weights + local[:, None] * pairs + columns[None, :]
    tl.store(target, weight.to(weights.dtype.element_ty), mask=row_there[:, None] & column_there[None, :])


@triton.jit
@no_type_check
def _gradient(side, other, score, order: tl.constexpr, side_is_image: tl.constexpr):
    """The gradient by `side` of its similarity to `other`, which is `score`."""
    slope = other.to(tl.float32)
    if order:
        slope = signed_violation(side, slope, side_is_image) * (-1.0 / score)
    return slope


@triton.jit
@no_type_check
def gather_winners(
    side, other, matched,  # [pair, dim], [pair, dim], [pair] float32
    chosen_score, chosen,  # [pair] float32 and int64: the negative of each row, in `other`; -1 without a violation
    hinges,  # [pair] int32, the active hinges of each matched pair: 0, 1 or 2
    chosen_by_score,  # [pair] float32, of the negative that each row of `other` chose
    sorting,  # [pair] int64, the rows of `other` sorted by the row of `side` that they chose
    bounds,  # [pair + 1] int64, where those of each row of `side` start in `sorting`
    gradient, result,  # [] float32, of the loss; [pair, dim], out
    dim, order: tl.constexpr, side_is_image: tl.constexpr, width: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    """The gradient of each row of `side`: see `capbench.kernels.ranking_loss.triton.winners_gradient`."""
    row = tl.program_id(0).to(tl.int64)
    inner = tl.program_id(1) * width + tl.arange(0, width)
    there = inner < dim
    mine = tl.load(side + row * dim + inner, mask=there, other=0.0).to(tl.float32)
    partner = tl.load(other + row * dim + inner, mask=there, other=0.0)
    from_partner = _gradient(mine, partner, tl.load(matched + row), order, side_is_image)
    total = -tl.load(hinges + row).to(tl.float32) * from_partner
    choice = tl.load(chosen + row)
    chose = inner < tl.where(choice >= 0, dim, 0)
    wrong = tl.load(other + choice * dim + inner, mask=chose, other=0.0)
    total += tl.where(chose, _gradient(mine, wrong, tl.load(chosen_score + row), order, side_is_image), 0.0)
    last = tl.load(bounds + row + 1)
    for start in range(tl.load(bounds + row), last, at_once):
        places = start + tl.arange(0, at_once)
        sources = tl.load(sorting + places, mask=places < last, other=0)
        scores = tl.load(chosen_by_score + sources, mask=places < last, other=-1.0)
        mask = (places < last)[:, None] & there[None, :]
        chosen_by = tl.load(other + sources[:, None] * dim + inner[None, :], mask=mask, other=0.0)
        from_choosers = _gradient(mine[None, :], chosen_by, scores[:, None], order, side_is_image)
        total += tl.sum(tl.where(mask, from_choosers, 0.0), 0)
    total *= tl.load(gradient)
    tl.store(result + row * dim + inner, total.to(result.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def add_violations(
    weights, side, other,  # [other, side] float32, [side, dim], [other, dim]
    result,  # [side, dim] float32, in and out
    side_count, other_count, dim, side_is_image: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
    depth: tl.constexpr,
):  # fmt: skip
    """result[o] += sum_t weights[t, o] signed_violation(side[o], other[t]) for `block` rows and `width` coordinates."""
    rows = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)
    inner = tl.program_id(1) * width + tl.arange(0, width)
    row_there, there = rows < side_count, inner < dim
    both = row_there[:, None] & there[None, :]
    at = rows[:, None] * dim + inner[None, :]
    mine = tl.load(side + at, mask=both, other=0.0).to(tl.float32)
    total = tl.load(result + at, mask=both, other=0.0)
    for start in tl.range(0, other_count, depth, num_stages=3):
        others = start + tl.arange(0, depth).to(tl.int64)
        other_there = (others < other_count)[:, None]
        theirs = tl.load(other + others[:, None] * dim + inner[None, :], mask=other_there & there[None, :], other=0.0)
        pair = others[:, None] * side_count + rows[None, :]
        weight = tl.load(weights + pair, mask=other_there & row_there[None, :], other=0.0)
        step = signed_violation(mine[None, :, :], theirs.to(tl.float32)[:, None, :], side_is_image)
        total += tl.sum(weight[:, :, None] * step, 0)
    tl.store(result + at, total, mask=both)
