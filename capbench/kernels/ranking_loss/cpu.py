"""The ranking losses on a CPU: the whole matrix of a small batch, blocks of rows of a larger one."""

# ruff: noqa: N806 - S is the papers' letter

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from capbench.kernels._blocks import slices
from capbench.kernels.ranking_loss.reference import (
    ELEMENTS_AT_ONCE,
    SIMILARITIES,
    Best,
    Loss,
    Similarity,
    dot_similarity,
    excluded_pairs,
    negative_norm,
    reference_ranking_loss,
    widened,
)

DENSE_UP_TO = {  # pairs; beyond, blocks save memory and time
    ("max_of_hinges", "dot"): 640, ("sum_of_hinges", "dot"): 1024,
    ("max_of_hinges", "order"): 128, ("sum_of_hinges", "order"): 128,
}  # fmt: skip


def ranking_loss(
    images: Tensor, captions: Tensor, image_ids: Tensor, margin: float, loss: Loss, similarity: Similarity
) -> Tensor:
    """`capbench.kernels.ranking_loss.ranking_loss`, unchecked, on any device."""
    small = len(images) <= DENSE_UP_TO[loss, similarity]
    with torch.autocast(images.device.type, enabled=False):
        if small and similarity == "order":
            return reference_ranking_loss(images, captions, image_ids, margin, loss, similarity)
        images, captions = widened(images), widened(captions)
        if small:
            of_matrix = _MaxOfMatrix if loss == "max_of_hinges" else _SumOfMatrix
            value: Tensor = of_matrix.apply(images, captions, image_ids, margin)
            return value
        if loss == "max_of_hinges":
            return streamed_max(images, captions, image_ids, margin, similarity)
        wanted = torch.is_grad_enabled() and (images.requires_grad or captions.requires_grad)
        total: Tensor = _StreamedSum.apply(images, captions, image_ids, margin, similarity, wanted)
        return total


class _MaxOfMatrix(torch.autograd.Function):
    """Equation 6 of the dot product from the whole matrix; only the winners of S have a gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, image_ids: Tensor, margin: float) -> Tensor:
        S = dot_similarity(images, captions)
        raised = margin - S.diagonal()
        S = S.masked_fill(excluded_pairs(image_ids), -torch.inf)
        (over_captions, caption), (over_images, image) = S.max(1), S.max(0)
        hinges = torch.stack([over_captions + raised, over_images + raised])
        ctx.save_for_backward(images, captions, caption, image, hinges)
        return hinges.clamp(min=0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, caption, image, hinges = ctx.saved_tensors
        active = torch.where(hinges <= 0, 0, gradient)  # NaN is active
        dS = torch.diag(-active.sum(0))
        dS.scatter_add_(1, caption[:, None], active[0, :, None]).scatter_add_(0, image[None], active[1, None])
        return dS @ captions, dS.T @ images, None, None


class _SumOfMatrix(torch.autograd.Function):
    """Equation 5 of the dot product from the whole matrix; the gradient by S counts the hinges."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, image_ids: Tensor, margin: float) -> Tensor:
        S = dot_similarity(images, captions)
        positive = S.diagonal()
        raised = (S + margin).masked_fill_(excluded_pairs(image_ids), -torch.inf)
        hinges = (raised - positive[:, None]).clamp_(min=0), (raised - positive).clamp_(min=0)
        ctx.save_for_backward(images, captions, *hinges)
        return hinges[0].sum() + hinges[1].sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, *hinges = ctx.saved_tensors
        over_captions, over_images = (x.ne(0).to(x.dtype) for x in hinges)
        dS = over_captions + over_images
        dS.diagonal().sub_(over_captions.sum(1) + over_images.sum(0))
        dS.mul_(gradient)
        return dS @ captions, dS.T @ images, None, None


def streamed_max(images: Tensor, captions: Tensor, image_ids: Tensor, margin: float, similarity: Similarity) -> Tensor:
    """Equation 6 by blocks of rows: first the winners, then a loss over them alone."""
    with torch.no_grad():
        positive = paired_similarity(images, captions, similarity)
        (caption_score, caption), (image_score, image) = hardest_negatives(images, captions, image_ids, similarity)
        # Written so that NaN is kept: a diverged model must not look like one without violations.
        over_captions = (~(margin + caption_score - positive <= 0)).nonzero()[:, 0]
        over_images = (~(margin + image_score - positive <= 0)).nonzero()[:, 0]
    positive = paired_similarity(images, captions, similarity)
    wrong_captions = paired_similarity(images[over_captions], captions[caption[over_captions]], similarity)
    wrong_images = paired_similarity(images[image[over_images]], captions[over_images], similarity)
    caption_hinges = (margin + wrong_captions - positive[over_captions]).clamp(min=0)
    image_hinges = (margin + wrong_images - positive[over_images]).clamp(min=0)
    return caption_hinges.sum() + image_hinges.sum()


def hardest_negatives(images: Tensor, captions: Tensor, image_ids: Tensor, similarity: Similarity) -> tuple[Best, Best]:
    """Score and index [pair] of each image's closest wrong caption, and of each caption's closest wrong image.

    Without a negative the score is -inf. The first of ties wins.
    """
    by_row = []
    score, index = images.new_full((len(images),), -torch.inf), torch.zeros_like(image_ids)
    for rows in _blocks(images, similarity):
        block = SIMILARITIES[similarity](images[rows], captions)
        block.masked_fill_(image_ids[rows, None] == image_ids, -torch.inf)
        by_row.append(block.max(1))
        block_score, block_index = block.max(0)
        closer = block_score > score
        score = torch.where(closer, block_score, score)
        index = torch.where(closer, block_index + rows.start, index)
    scores, indices = zip(*by_row, strict=True)
    return (torch.cat(scores), torch.cat(indices)), (score, index)


class _StreamedSum(torch.autograd.Function):
    """Equation 5 by blocks of rows; the gradient, where `wanted`, counts the hinges of each block, and none is kept."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, captions: Tensor, image_ids: Tensor, margin: float, similarity: Similarity,
        wanted: bool,
    ) -> Tensor:  # fmt: skip
        images, captions = (x.detach().requires_grad_(wanted) for x in (images, captions))
        gradients = [torch.zeros_like(x, requires_grad=False) for x in (images, captions)] if wanted else []
        with torch.set_grad_enabled(wanted):
            positive = paired_similarity(images, captions, similarity)
        matched, d_positive, total = positive.detach(), torch.zeros_like(positive), images.new_zeros(())
        for rows in _blocks(images, similarity):
            with torch.set_grad_enabled(wanted):
                some = images[rows]
                block = SIMILARITIES[similarity](some, captions)
            raised = (block.detach() + margin).masked_fill_(image_ids[rows, None] == image_ids, -torch.inf)
            over_captions = (raised - matched[rows, None]).clamp_(min=0)
            over_images = raised.sub_(matched).clamp_(min=0)
            total += over_captions.sum() + over_images.sum()
            if wanted:
                d_positive[rows] -= over_captions.gt_(0).sum(1)
                d_positive -= over_images.gt_(0).sum(0)
                d_some, d_captions = torch.autograd.grad(block, (some, captions), over_captions.add_(over_images))
                gradients[0][rows] += d_some
                gradients[1] += d_captions
        if wanted:
            of_matched = torch.autograd.grad(positive, (images, captions), d_positive)
            gradients = [wrong + right for wrong, right in zip(gradients, of_matched, strict=True)]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_images, d_captions = ctx.saved_tensors
        return gradient * d_images, gradient * d_captions, None, None, None, None


def paired_similarity(images: Tensor, captions: Tensor, similarity: Similarity) -> Tensor:
    """s(i, c), [pair], of each row of `images` and the same row of `captions`."""
    if similarity == "dot":
        return torch.einsum("pd,pd->p", images, captions)
    return negative_norm(captions - images)


def _blocks(images: Tensor, similarity: Similarity) -> Iterator[slice]:
    pairs, dim = images.shape
    return slices(0, pairs, max(1, ELEMENTS_AT_ONCE // (pairs * (dim if similarity == "order" else 1))))
