"""Triton functions of the order similarity, s(i, c) = -||max(0, c - i)||, which no product of matrices gives.

Blocks of `depth` coordinates, [depth, block, block], are summed within one thread. Differences are taken in float32
whatever the embeddings are, and NaN stays NaN.
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
