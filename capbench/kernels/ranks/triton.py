"""Ranks from embeddings: tiles of similarities are counted where they are made, and never stored.

Counts are added with integer atomics. A pair that is not clear of a tile's rounding, for its image or its caption, is
listed for its exact score to decide: two runs give the same ranks. Float32 is multiplied in three bf16 parts,
high x high + high x low + low x high.
"""

from __future__ import annotations

from functools import partial
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from capbench.kernels.ranking_loss.tiles import tile_of_similarities
from capbench.kernels.ranking_loss.triton import tile_of
from capbench.kernels.ranks.exact import Contest

PRECISION = "bf16x3"
LISTED = 2**22  # open pairs, at most
EPSILON = 2.0**-23  # what a tensor core may cut off a term twice, aligning and adding it
PARTS = 2.0**-16  # of a float32 product in three parts: low x low, and what two bf16 parts leave out


def counted(contest: Contest) -> tuple[Tensor, Tensor] | None:
    """The ranks of images and captions on one GPU or in the interpreter; None with more than `LISTED` open pairs."""
    common = torch.promote_types(contest.images.dtype, contest.captions.dtype)
    images, captions = (side.to(common).contiguous() for side in (contest.images, contest.captions))
    image_of_caption, tile = contest.image_of_caption.contiguous(), tile_of(captions, contest.order, PRECISION)
    parts = PARTS if common is torch.float32 and not contest.order else 0.0
    of_image, of_caption = contest.bands(torch.float32, EPSILON if contest.order else 2 * EPSILON, parts)
    room = min(LISTED, len(images) * len(captions))
    zeros = partial(image_of_caption.new_zeros, dtype=torch.int32)
    by_image, by_caption, count = zeros(len(images)), zeros(len(captions)), zeros(1)
    listed = image_of_caption.new_empty((room, 2), dtype=torch.int32)
    grid = triton.cdiv(len(captions), tile["block"]), triton.cdiv(len(images), tile["block"])
    _count_tiles[grid](
        images, captions, image_of_caption, *of_image, *of_caption, by_image, by_caption, listed, count,
        len(images), len(captions), images.shape[1], room, **tile,
    )  # fmt: skip
    pairs = int(count)
    if pairs > room:
        return None
    rows, columns = listed[:pairs].long().unbind(1)
    over_image, over_caption = contest.over(rows, columns)
    by_image += torch.bincount(rows[over_image], minlength=len(images))
    by_caption += torch.bincount(columns[over_caption], minlength=len(captions))
    return by_image.long(), by_caption.long()


@triton.jit
@no_type_check
def _count_tiles(
    images, captions, image_of_caption,  # [image, dim], [caption, dim], [caption] int64
    image_low, image_high, caption_low, caption_high,  # [image] or [caption] float32, the bands of the open scores
    by_image, by_caption,  # [image], [caption] int32, in and out: the captions, the images clearly ahead
    listed,  # [room, 2] int32, out: image and caption of the open pairs
    count,  # [1] int32, in and out: the open pairs, listed or not
    image_count, caption_count, dim, room, order: tl.constexpr, block: tl.constexpr, depth: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, block)
    columns = (tl.program_id(0) * block + place).to(tl.int64)
    rows = (tl.program_id(1) * block + place).to(tl.int64)
    row_there, column_there = rows < image_count, columns < caption_count
    tile = tile_of_similarities(
        images, captions, rows, columns, row_there, column_there, dim, order, block, depth, precision
    )
    own_image = tl.load(image_of_caption + columns, mask=column_there, other=-1)
    wrong = row_there[:, None] & column_there[None, :] & (own_image[None, :] != rows[:, None])
    over_image = tile > tl.load(image_high + rows, mask=row_there, other=0.0)[:, None]
    under_image = tile < tl.load(image_low + rows, mask=row_there, other=0.0)[:, None]
    over_caption = tile > tl.load(caption_high + columns, mask=column_there, other=0.0)[None, :]
    under_caption = tile < tl.load(caption_low + columns, mask=column_there, other=0.0)[None, :]
    clear = (over_image | under_image) & (over_caption | under_caption)
    tl.atomic_add(by_image + rows, tl.sum((wrong & clear & over_image).to(tl.int32), 1), mask=row_there)
    tl.atomic_add(by_caption + columns, tl.sum((wrong & clear & over_caption).to(tl.int32), 0), mask=column_there)
    unclear = wrong & (clear == 0)
    some = tl.sum(tl.sum(unclear.to(tl.int32), 1), 0) > 0
    if some & (tl.load(count, volatile=True) <= room):  # a full list stays full, and its counter does not overflow
        _list(rows, columns, unclear, listed, count, room, block)


@triton.jit
@no_type_check
def _list(rows, columns, chosen, listed, count, room, block: tl.constexpr):
    """Writes each chosen (row, column) to a place of its own in `listed` while there is room; `count` counts."""
    nowhere = tl.zeros((block, block), tl.int32)
    at = tl.atomic_add(count + nowhere, 1, mask=chosen, sem="relaxed")
    fits = chosen & (at < room)
    tl.store(listed + 2 * at, rows[:, None].to(tl.int32) + nowhere, mask=fits)
    tl.store(listed + 2 * at + 1, columns[None, :].to(tl.int32) + nowhere, mask=fits)
