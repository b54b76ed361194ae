"""Additive attention in Triton: scores by blocks of locations, then softmax and context by blocks of coordinates.

One program an image would leave most of a GPU idle. The backward pass recomputes tanh(k + q). No sum is atomic:
programs write partial sums, which are then added in order.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from capbench.kernels._triton import interpreted

# ruff: noqa: N803 - compile-time constants are capitals

LOCATIONS, COORDINATES = 32, 64  # a program's block
SOFTMAX = 256  # locations, at most, that the softmax sums at once
BEAMS = 16  # the fewest rows of a matrix product


class TritonScores(torch.autograd.Function):
    """e [image, beam, location] in float32, of keys [image, location, attention] and query [image, beam, attention]."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
        keys, query, v = keys.contiguous(), query.contiguous(), v.contiguous()
        (images, locations, dim), beams = keys.shape, query.shape[1]
        scores = keys.new_empty(images, beams, locations, dtype=torch.float32)
        if scores.numel():
            grid = (images, triton.cdiv(locations, LOCATIONS))
            _scores[grid](keys, query, v, scores, beams, locations, dim, LOCATIONS, 2 * COORDINATES)
        ctx.save_for_backward(keys, query, v)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        keys, query, v = ctx.saved_tensors
        (images, locations, dim), beams = keys.shape, query.shape[1]
        if not gradient.numel():
            return torch.zeros_like(keys), torch.zeros_like(query), torch.zeros_like(v)
        blocks = triton.cdiv(locations, LOCATIONS)
        d_keys = torch.empty_like(keys)
        d_query = keys.new_empty(images, blocks, beams, dim, dtype=torch.float32)
        d_v = keys.new_empty(images, blocks, dim, dtype=torch.float32)
        _d_scores[(images, blocks, triton.cdiv(dim, COORDINATES))](
            keys, query, v, gradient.contiguous(), d_keys, d_query, d_v, beams, locations, dim, LOCATIONS, COORDINATES
        )
        return d_keys, d_query.sum(1).to(query.dtype), d_v.sum((0, 1)).view_as(v).to(v.dtype)


class TritonContext(torch.autograd.Function):
    """The context [image, beam, dim] and the weights [image, beam, location], of scores e and the annotations."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, annotations: Tensor) -> tuple[Tensor, Tensor]:
        scores, annotations = scores.contiguous(), annotations.contiguous()
        (images, locations, dim), beams = annotations.shape, scores.shape[1]
        weights, context = torch.empty_like(scores), annotations.new_empty(images, beams, dim)
        if scores.numel():
            grid = (images, triton.cdiv(beams, BEAMS), triton.cdiv(max(1, dim), COORDINATES))
            _context[grid](
                scores, annotations, weights, context, beams, locations, dim,
                BEAMS=BEAMS, LOCATIONS=LOCATIONS, COORDINATES=COORDINATES,
                SPAN=min(SOFTMAX, triton.next_power_of_2(locations)), WIDEN=interpreted(),
            )  # fmt: skip
        ctx.save_for_backward(weights, annotations)
        return context, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_context: Tensor, d_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        weights, annotations = ctx.saved_tensors
        d_context = d_context.to(annotations.dtype)
        d_alpha = d_weights + d_context @ annotations.mT
        d_scores = weights * (d_alpha - (weights * d_alpha).sum(-1, keepdim=True))
        wanted = ctx.needs_input_grad[1]
        return d_scores, weights.mT.to(annotations.dtype) @ d_context if wanted else None


@triton.jit
@no_type_check
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
@no_type_check
def _scores(
    keys, query, v,  # [image, location, attention], [image, beam, attention], [attention]
    scores,  # [image, beam, location] float32, out
    beams, locations, dim, LOCATIONS: tl.constexpr, COORDINATES: tl.constexpr,
):  # fmt: skip
    """v^T tanh(k_i + q) for a block of locations; after the first beam the keys come from the cache."""
    image = tl.program_id(0).to(tl.int64)
    location = tl.program_id(1) * LOCATIONS + tl.arange(0, LOCATIONS)
    for beam in range(beams):
        e = tl.zeros([LOCATIONS], tl.float32)
        for start in range(0, dim, COORDINATES):
            d = start + tl.arange(0, COORDINATES)
            both = (location < locations)[:, None] & (d < dim)[None, :]
            key = tl.load(keys + (image * locations + location[:, None]) * dim + d[None, :], mask=both, other=0.0)
            q = tl.load(query + (image * beams + beam) * dim + d, mask=d < dim, other=0.0).to(tl.float32)
            weight = tl.load(v + d, mask=d < dim, other=0.0).to(tl.float32)
            e += tl.sum(weight[None, :] * _tanh(key.to(tl.float32) + q[None, :]), 1)
        tl.store(scores + (image * beams + beam) * locations + location, e, mask=location < locations)


@triton.jit
@no_type_check
def _d_scores(
    keys, query, v,  # [image, location, attention], [image, beam, attention], [attention]
    gradient, d_keys,  # [image, beam, location] float32; [image, location, attention], out
    d_query,  # [image, block of locations, beam, attention] float32, out: partial sums
    d_v,  # [image, block of locations, attention] float32, out: partial sums
    beams, locations, dim, LOCATIONS: tl.constexpr, COORDINATES: tl.constexpr,
):  # fmt: skip
    """With t = tanh(k_i + q): v (1 - t^2) de for the keys, its sum over the block for the query, and t de for v."""
    image, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    location = block * LOCATIONS + tl.arange(0, LOCATIONS)
    d = tl.program_id(2) * COORDINATES + tl.arange(0, COORDINATES)
    both = (location < locations)[:, None] & (d < dim)[None, :]
    at = (image * locations + location[:, None]) * dim + d[None, :]
    key = tl.load(keys + at, mask=both, other=0.0).to(tl.float32)
    weight = tl.load(v + d, mask=d < dim, other=0.0).to(tl.float32)
    of_key = tl.zeros([LOCATIONS, COORDINATES], tl.float32)
    of_v = tl.zeros([COORDINATES], tl.float32)
    for beam in range(beams):
        q = tl.load(query + (image * beams + beam) * dim + d, mask=d < dim, other=0.0).to(tl.float32)
        de = tl.load(gradient + (image * beams + beam) * locations + location, mask=location < locations, other=0.0)
        t = _tanh(key + q[None, :])
        of_v += tl.sum(de[:, None] * t, 0)
        of_sum = weight[None, :] * (1 - t * t) * de[:, None]
        of_key += of_sum
        tl.store(d_query + ((image * blocks + block) * beams + beam) * dim + d, tl.sum(of_sum, 0), mask=d < dim)
    tl.store(d_keys + at, of_key, mask=both)
    tl.store(d_v + (image * blocks + block) * dim + d, of_v, mask=d < dim)


@triton.jit
@no_type_check
def _context(
    scores, annotations,  # [image, beam, location] float32, [image, location, dim]
    weights, context,  # out: [image, beam, location] float32, [image, beam, dim]
    beams, locations, dim, BEAMS: tl.constexpr, LOCATIONS: tl.constexpr, COORDINATES: tl.constexpr, SPAN: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """alpha = softmax(e), and sum_i alpha_i a_i for a block of coordinates; the first such block stores alpha."""
    image = tl.program_id(0).to(tl.int64)
    beam = tl.program_id(1) * BEAMS + tl.arange(0, BEAMS)
    d = tl.program_id(2) * COORDINATES + tl.arange(0, COORDINATES)
    rows, beam_there = (image * beams + beam[:, None]) * locations, (beam < beams)[:, None]
    largest = tl.full([BEAMS], float("-inf"), tl.float32)
    total = tl.zeros([BEAMS], tl.float32)
    for start in range(0, locations, SPAN):
        location = start + tl.arange(0, SPAN)
        e = tl.load(scores + rows + location[None, :], mask=beam_there & (location < locations)[None, :], other=0.0)
        e = tl.where((location < locations)[None, :], e, float("-inf"))
        after = tl.maximum(largest, tl.max(e, 1))
        total = total * tl.exp(largest - after) + tl.sum(tl.exp(e - after[:, None]), 1)
        largest = after
    result = tl.zeros([BEAMS, COORDINATES], tl.float32)
    for start in range(0, locations, LOCATIONS):
        location = start + tl.arange(0, LOCATIONS)
        there = beam_there & (location < locations)[None, :]
        e = tl.load(scores + rows + location[None, :], mask=there, other=float("-inf"))
        alpha = tl.exp(e - largest[:, None]) / total[:, None]
        if tl.program_id(2) == 0:
            tl.store(weights + rows + location[None, :], alpha, mask=there)
        at = (image * locations + location[:, None]) * dim + d[None, :]
        a = tl.load(annotations + at, mask=(location < locations)[:, None] & (d < dim)[None, :], other=0.0)
        alpha = alpha.to(a.dtype)
        if WIDEN:  # the interpreter multiplies no bfloat16
            alpha, a = alpha.to(tl.float32), a.to(tl.float32)
        result = tl.dot(alpha, a, result, input_precision="tf32x3")
    at = (image * beams + beam[:, None]) * dim + d[None, :]
    tl.store(context + at, result, mask=beam_there & (d < dim)[None, :])
