"""maxsim in Triton: the regions of an image pass in turn, and their maximum stays in registers.

A program multiplies each region of a block of images with a block of words and folds the product into the running
maximum (or sum): regions need no padding, and no product leaves the chip. The backward pass gets the best region of
each image and word, or a bit for each region under the sum. The words of all captions stand in a row without padding:
`rows` says where each lies among the padded words, `offsets` where each caption starts; both are made on the device, so
that nothing waits. Every sum has one order, without atomics: forward and backward are deterministic.
"""

# ruff: noqa: N803 - compile-time constants are capitals

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from capbench.kernels._triton import interpreted

LARGE_FROM = 128  # programs; below, large blocks leave processors of a GPU idle
WINNERS, BITS = torch.int16, torch.int32


class Blocks(NamedTuple):
    """What a program holds."""

    images: int
    words: int
    coordinates: int  # of a gradient
    at_once: int  # coordinates of one product
    warps: int


LARGE, SMALL = Blocks(64, 128, 128, 64, 8), Blocks(32, 32, 64, 128, 4)


class TritonMaxSim(torch.autograd.Function):
    """S, [caption, image] in float32, of `regions` [image, region, dim] and padded `words` [caption, word, dim]."""

    @staticmethod
    def forward(ctx: Any, regions: Tensor, words: Tensor, lengths: Tensor, largest: bool) -> Tensor:
        regions, words = regions.contiguous(), words.contiguous()
        (images, count, dim), (captions, room, _) = regions.shape, words.shape
        places = captions * room
        similarity = words.new_empty(captions, images, dtype=torch.float32)
        if not similarity.numel() or not room:
            ctx.save_for_backward(regions, words)
            return similarity.zero_()
        rows, offsets = (words.new_empty(size, dtype=torch.int32) for size in (places, captions + 1))
        _place_words[(captions,)](lengths.to(torch.int32), rows, offsets, room, BLOCK=256)
        best = words.new_empty(places, images, dtype=torch.float32)
        wanted = any(ctx.needs_input_grad)
        planes, kind = (1, WINNERS) if largest else (triton.cdiv(count, 32), BITS)
        saved = words.new_empty((places, planes, images) if wanted else 0, dtype=kind)
        block = _blocks(images, places, regions.dtype)
        grid = (triton.cdiv(images, block.images) * triton.cdiv(places, block.words),)
        _fold_regions[grid](
            regions, words, rows, offsets[captions:], best, saved, images, count, dim, planes,
            LARGEST=largest, SAVE=wanted, IMAGES=block.images, WORDS=block.words, AT_ONCE=block.at_once,
            WIDEN=interpreted(), num_warps=block.warps,
        )  # fmt: skip
        _sum_words[(captions, triton.cdiv(images, 128))](best, offsets, similarity, images, IMAGES=128)
        ctx.save_for_backward(regions, words, rows, offsets, saved)
        ctx.largest, ctx.planes, ctx.block = largest, planes, block
        return similarity

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        regions, words = ctx.saved_tensors[:2]
        d_regions = d_words = None
        if not gradient.numel() or not words.shape[1]:
            return torch.zeros_like(regions), torch.zeros_like(words), None, None
        if ctx.needs_input_grad[0]:
            d_regions = _backward(_d_regions, ctx, torch.empty_like(regions), gradient.contiguous())
        if ctx.needs_input_grad[1]:
            d_words = _backward(_d_words, ctx, torch.zeros_like(words), gradient.contiguous())
        return d_regions, d_words, None, None


def _backward(kernel: Any, ctx: Any, result: Tensor, gradient: Tensor) -> Tensor:
    regions, words, rows, offsets, saved = ctx.saved_tensors
    (images, count, dim), (captions, room, _) = regions.shape, words.shape
    block: Blocks = ctx.block
    over_images = kernel is _d_regions
    if over_images:
        other, at_once, held = words, (block.images, min(block.words, 64)), (triton.cdiv(images, block.images), count)
    else:
        other, at_once, held = regions, (32, block.words), (triton.cdiv(captions * room, block.words), 1)
    kernel[*held, triton.cdiv(dim, block.coordinates)](
        other, rows, offsets[captions:], saved, gradient, result, images, count, dim, room, ctx.planes,
        ctx.largest, *at_once, block.coordinates, WIDEN=interpreted(), num_warps=block.warps,
    )  # fmt: skip
    return result


def _blocks(images: int, words: int, dtype: torch.dtype) -> Blocks:
    programs = triton.cdiv(images, LARGE.images) * triton.cdiv(words, LARGE.words)
    block = LARGE if programs >= LARGE_FROM else SMALL
    return block._replace(at_once=block.at_once // 2) if dtype is torch.float32 else block


@triton.jit
@no_type_check
def _multiply(left, right, result, WIDEN: tl.constexpr):
    """result + left right, float32 at about its precision. WIDEN serves the interpreter, which lacks bfloat16."""
    if WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, result, input_precision="tf32x3")


@triton.jit
@no_type_check
def _place_words(
    lengths,  # [caption] int32
    rows,  # [caption * room] int32, out: the place of each word among the padded ones; only the words present
    offsets,  # [caption + 1] int32, out: the first word of each caption, and the number of words
    room, BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts the words of one caption behind those of all captions before it."""
    caption = tl.program_id(0)
    counts = tl.zeros([BLOCK], tl.int32)
    for start in range(0, caption, BLOCK):
        index = start + tl.arange(0, BLOCK)
        counts += tl.load(lengths + index, mask=index < caption, other=0)
    before = tl.sum(counts, 0)
    length = tl.load(lengths + caption)
    tl.store(offsets + caption, before)
    tl.store(offsets + caption + 1, before + length)  # the next program writes the same
    for start in range(0, length, BLOCK):
        word = start + tl.arange(0, BLOCK)
        tl.store(rows + before + word, caption * room + word, mask=word < length)


@triton.jit
@no_type_check
def _fold_regions(
    regions, words,  # [image, region, dim], [caption * room, dim]
    rows, total,  # [word] int32; [1] int32, the number of words
    best,  # [word, image] float32, out
    saved,  # [word, image] int16, out: the best region; without LARGEST, bits: [word, plane, image] int32
    images, count, dim, planes, LARGEST: tl.constexpr, SAVE: tl.constexpr, IMAGES: tl.constexpr, WORDS: tl.constexpr,
    AT_ONCE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """max_i v_i . s_t or sum_i max(0, v_i . s_t) of a block of words and images, and the regions with a gradient."""
    blocks = tl.cdiv(images, IMAGES)
    image = tl.program_id(0) % blocks * IMAGES + tl.arange(0, IMAGES)
    place = tl.program_id(0) // blocks * WORDS + tl.arange(0, WORDS)
    end = tl.load(total)
    if tl.program_id(0) // blocks * WORDS >= end:
        return
    row = tl.load(rows + place, mask=place < end, other=0).to(tl.int64)
    word_there, image_there = (place < end)[:, None], (image < images)[None, :]
    both = word_there & image_there
    image64, place64 = image.to(tl.int64), place.to(tl.int64)
    folded = tl.full([WORDS, IMAGES], float("-inf") if LARGEST else 0.0, tl.float32)
    kept = tl.zeros([WORDS, IMAGES], tl.int32)
    for i in range(count):
        product = tl.zeros([WORDS, IMAGES], tl.float32)
        for start in range(0, dim, AT_ONCE):
            d = start + tl.arange(0, AT_ONCE)
            s = tl.load(words + row[:, None] * dim + d[None, :], mask=word_there & (d < dim)[None, :], other=0.0)
            at = (image64[None, :] * count + i) * dim + d[:, None]
            v = tl.load(regions + at, mask=image_there & (d < dim)[:, None], other=0.0)
            product = _multiply(s, v, product, WIDEN)
        if LARGEST:
            better = (product > folded) | (product != product)  # the first of ties; NaN stays
            folded = tl.where(better, product, folded)
            kept = tl.where(better, i, kept)
        else:
            folded += tl.where(product < 0, 0.0, product)
            kept = kept | ((product > 0).to(tl.int32) << (i % 32))
            if (i % 32 == 31) | (i == count - 1):
                if SAVE:
                    tl.store(saved + (place64[:, None] * planes + i // 32) * images + image[None, :], kept, mask=both)
                kept = tl.zeros([WORDS, IMAGES], tl.int32)
    if LARGEST and SAVE:
        tl.store(saved + place64[:, None] * images + image[None, :], kept.to(tl.int16), mask=both)
    tl.store(best + place64[:, None] * images + image[None, :], folded, mask=both)


@triton.jit
@no_type_check
def _sum_words(
    best, offsets,  # [word, image] float32, [caption + 1] int32
    similarity,  # [caption, image] float32, out
    images, IMAGES: tl.constexpr,
):  # fmt: skip
    """The sum over the words of one caption, in their order."""
    caption = tl.program_id(0)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    inside = image < images
    total = tl.zeros([IMAGES], tl.float32)
    for place in range(tl.load(offsets + caption), tl.load(offsets + caption + 1)):
        total += tl.load(best + tl.cast(place, tl.int64) * images + image, mask=inside, other=0.0)
    tl.store(similarity + tl.cast(caption, tl.int64) * images + image, total, mask=inside)


@triton.jit
@no_type_check
def _d_words(
    regions,  # [image, region, dim]
    rows, total,  # [word] int32; [1] int32, the number of words
    saved,  # [word, image] int16, or [word, plane, image] int32: see `_fold_regions`
    gradient, d_words,  # [caption, image] float32; [caption * room, dim], out
    images, count, dim, room, planes, LARGEST: tl.constexpr, IMAGES: tl.constexpr, WORDS: tl.constexpr,
    COORDINATES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """sum_k sum_i g[k, caption of t] v_ki over the regions that won or were positive, for a block of words."""
    place = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    d = tl.program_id(2) * COORDINATES + tl.arange(0, COORDINATES)
    end = tl.load(total)
    if tl.program_id(0) * WORDS >= end:
        return
    row = tl.load(rows + place, mask=place < end, other=0)
    caption, place64 = (row // room).to(tl.int64), place.to(tl.int64)
    result = tl.zeros([WORDS, COORDINATES], tl.float32)
    for first in range(0, images, IMAGES):
        image = first + tl.arange(0, IMAGES)
        both = (place < end)[:, None] & (image < images)[None, :]
        g = tl.load(gradient + caption[:, None] * images + image[None, :], mask=both, other=0.0)
        if LARGEST:
            won = tl.load(saved + place64[:, None] * images + image[None, :], mask=both, other=0).to(tl.int32)
        for i in range(count):
            if LARGEST:
                active = won == i
            else:
                at = (place64[:, None] * planes + i // 32) * images + image[None, :]
                active = ((tl.load(saved + at, mask=both, other=0) >> (i % 32)) & 1) != 0
            at = (image.to(tl.int64)[:, None] * count + i) * dim + d[None, :]
            v = tl.load(regions + at, mask=(image < images)[:, None] & (d < dim)[None, :], other=0.0)
            result = _multiply(tl.where(active, g, 0.0).to(v.dtype), v, result, WIDEN)
    at = row.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(d_words + at, result, mask=(place < end)[:, None] & (d < dim)[None, :])


@triton.jit
@no_type_check
def _d_regions(
    words,  # [caption * room, dim]
    rows, total,  # [word] int32; [1] int32, the number of words
    saved,  # [word, image] int16, or [word, plane, image] int32: see `_fold_regions`
    gradient, d_regions,  # [caption, image] float32; [image, region, dim], out
    images, count, dim, room, planes, LARGEST: tl.constexpr, IMAGES: tl.constexpr, WORDS: tl.constexpr,
    COORDINATES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """sum_t g[k, caption of t] s_t over the words that region i won or was positive for, for a block of images k."""
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    i = tl.program_id(1)
    d = tl.program_id(2) * COORDINATES + tl.arange(0, COORDINATES)
    end = tl.load(total)
    result = tl.zeros([IMAGES, COORDINATES], tl.float32)
    for first in range(0, end, WORDS):
        place = first + tl.arange(0, WORDS)
        both = (image < images)[:, None] & (place < end)[None, :]
        row = tl.load(rows + place, mask=place < end, other=0)
        caption = (row // room).to(tl.int64)
        g = tl.load(gradient + caption[None, :] * images + image[:, None], mask=both, other=0.0)
        if LARGEST:
            won = tl.load(saved + place.to(tl.int64)[None, :] * images + image[:, None], mask=both, other=0)
            active = won.to(tl.int32) == i
        else:
            at = (place.to(tl.int64)[None, :] * planes + i // 32) * images + image[:, None]
            active = ((tl.load(saved + at, mask=both, other=0) >> (i % 32)) & 1) != 0
        at = row.to(tl.int64)[:, None] * dim + d[None, :]
        s = tl.load(words + at, mask=(place < end)[:, None] & (d < dim)[None, :], other=0.0)
        result = _multiply(tl.where(active, g, 0.0).to(s.dtype), s, result, WIDEN)
    at = (image.to(tl.int64)[:, None] * count + i) * dim + d[None, :]
    tl.store(d_regions + at, result, mask=(image < images)[:, None] & (d < dim)[None, :])
