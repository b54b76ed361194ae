"""Ranks from embeddings: tiles of similarities are compared and counted where they are made, and never stored.

The counts are added with integer atomics, so that two runs give the same ranks. Float32 is multiplied in three bf16
parts, high x high + high x low + low x high.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from capbench.kernels.ranking_loss_tiles import tile_of_similarities
from capbench.kernels.ranking_loss_triton import matched_similarities, tile_of
from capbench.kernels.ranks import refuse_nan

PRECISION = "bf16x3"


def embedding_ranks(images: Tensor, captions: Tensor, owner: Tensor, order: bool) -> tuple[Tensor, Tensor]:
    """`capbench.kernels.ranks.embedding_ranks`, for tensors on one GPU (or in the interpreter)."""
    common = torch.promote_types(images.dtype, captions.dtype)
    images, captions, owner = images.to(common).contiguous(), captions.to(common).contiguous(), owner.contiguous()
    tile = tile_of(captions, order, PRECISION)
    matched = matched_similarities(images, captions, owner, order, PRECISION)
    best = matched.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, matched, "amax")
    by_image, by_caption, nan = (owner.new_zeros(n, dtype=torch.int32) for n in (len(images), len(captions), 1))
    grid = triton.cdiv(len(captions), tile["block"]), triton.cdiv(len(images), tile["block"])
    _count_tiles[grid](
        images, captions, owner, best, matched, len(images), len(captions), images.shape[1],
        by_image, by_caption, nan, **tile,
    )  # fmt: skip
    refuse_nan(bool(nan))
    return by_image.long(), by_caption.long()


@triton.jit
@no_type_check
def _count_tiles(
    images, captions, owner, best, matched, image_count, caption_count, dim, by_image, by_caption, nan,
    order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, block)
    columns = (tl.program_id(0) * block + place).to(tl.int64)
    rows = (tl.program_id(1) * block + place).to(tl.int64)
    row_there, column_there = rows < image_count, columns < caption_count
    tile = tile_of_similarities(
        images, captions, rows, columns, row_there, column_there, dim, order, block, depth, precision
    )
    there = row_there[:, None] & column_there[None, :]
    column_owner = tl.load(owner + columns, mask=column_there, other=-1)
    wrong = there & (column_owner[None, :] != rows[:, None])
    row_best = tl.load(best + rows, mask=row_there, other=0.0)
    own = tl.load(matched + columns, mask=column_there, other=0.0)
    ahead_of_image = (wrong & (tile >= row_best[:, None])).to(tl.int32)
    ahead_of_caption = (wrong & (tile >= own[None, :])).to(tl.int32)
    tl.atomic_add(by_image + rows, tl.sum(ahead_of_image, 1), mask=row_there)
    tl.atomic_add(by_caption + columns, tl.sum(ahead_of_caption, 0), mask=column_there)
    nans = tl.sum(tl.sum((there & (tile != tile)).to(tl.int32), 1), 0)
    if nans > 0:
        tl.atomic_add(nan, nans)
