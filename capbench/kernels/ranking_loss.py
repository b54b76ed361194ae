"""The hinge ranking losses of a joint embedding: as their equations, and without the matrix of a large batch.

Legend: S[i, c] = s(i, c), the similarity of image i and caption c, of which S[k, k] is a matched pair; alpha, the
margin. The equations are those of VSE++ (Faghri et al., BMVC 2018, section 2).

A small batch on a CPU takes the whole matrix. A larger one is streamed by blocks of rows: the hardest negatives are
found without a gradient, and the loss is then a function of the winners alone, so that its backward pass costs
O(pair x dim); for the sum the gradient of a block is made with the block. A GPU has Triton kernels for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._triton import runs_triton

Negatives = Literal["hardest", "sum"]
Similarity = Literal["cosine", "order"]
DENSE_UP_TO = {  # pairs; beyond, blocks save memory and time
    ("hardest", "cosine"): 640, ("sum", "cosine"): 1024, ("hardest", "order"): 128, ("sum", "order"): 128,
}  # fmt: skip
ELEMENTS_AT_ONCE = 2**20  # of a block of the product or, for the order, of [image, caption, dim]


def ranking_loss(
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    owner: Int[Tensor, " pair"],
    margin: float,
    negatives: Negatives,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """Equation 6 (`negatives` = "hardest") or equation 5 ("sum") over a batch of pairs, in single precision at least.

    `owner` is the image id of each pair: pairs of equal id are no negatives of each other. The whole [pair, pair]
    matrix is held for a small batch on a CPU only. Values are those of `reference_ranking_loss` up to rounding.
    A hinge of exactly zero has no gradient, and of equally hard negatives the first has all of it, where the reference,
    which a small batch of the order on a CPU takes, shares it among them. Forward and backward are deterministic: on a
    CPU for a given number of threads, and in the Triton kernels, which add no floating-point numbers atomically;
    float64 on a GPU, which has no kernels, is as deterministic as torch is set to be.
    Half-precision embeddings are multiplied exactly, or subtracted in float32, and added in float32. Autocast counts
    for the cosine on a GPU alone. Raises CapbenchError for an unknown option, an empty batch, or unequal numbers of
    pairs.
    """
    _check(images, captions, owner, negatives, similarity)
    owner = owner.to(images.device)
    if runs_triton(images):
        from capbench.kernels import ranking_loss_triton

        return ranking_loss_triton.ranking_loss(images, captions, owner, margin, negatives, similarity)
    small = len(images) <= DENSE_UP_TO[negatives, similarity]
    with torch.autocast(images.device.type, enabled=False):
        if small and similarity == "order":
            return reference_ranking_loss(images, captions, owner, margin, negatives, similarity)
        images, captions = _widened(images), _widened(captions)
        if small:
            of_matrix = _HardestOfMatrix if negatives == "hardest" else _SumOfMatrix
            loss: Tensor = of_matrix.apply(images, captions, owner, margin)
            return loss
        streamed = streamed_hardest if negatives == "hardest" else streamed_sum
        return streamed(images, captions, owner, margin, similarity)


def reference_ranking_loss(
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    owner: Int[Tensor, " pair"],
    margin: float,
    negatives: Negatives,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """The same as its equation, with the whole matrix: the oracle, and the CPU path of a small batch of the order."""
    measure = MEASURES[similarity]
    loss = max_of_hinges if negatives == "hardest" else sum_of_hinges
    return loss(measure(_widened(images), _widened(captions)), matched_pairs(owner), margin)


class _HardestOfMatrix(torch.autograd.Function):
    """Equation 6 of the cosine from the whole matrix, with the gradient at hand: S has one at the winners alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, owner: Tensor, margin: float) -> Tensor:
        S = cosine_similarity(images, captions)  # noqa: N806
        raised = margin - S.diagonal()
        S = S.masked_fill(matched_pairs(owner), -torch.inf)  # noqa: N806
        (over_captions, caption), (over_images, image) = S.max(1), S.max(0)
        hinges = torch.stack([over_captions + raised, over_images + raised])
        ctx.save_for_backward(images, captions, caption, image, hinges)
        return hinges.clamp(min=0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, caption, image, hinges = ctx.saved_tensors
        active = torch.where(hinges <= 0, 0, gradient)  # so that NaN is active
        dS = torch.diag(-active.sum(0))  # noqa: N806
        dS.scatter_add_(1, caption[:, None], active[0, :, None]).scatter_add_(0, image[None], active[1, None])
        return dS @ captions, dS.T @ images, None, None


class _SumOfMatrix(torch.autograd.Function):
    """Equation 5 of the cosine likewise: the gradient by S counts the hinges."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor, owner: Tensor, margin: float) -> Tensor:
        S = cosine_similarity(images, captions)  # noqa: N806
        positive = S.diagonal()
        raised = (S + margin).masked_fill_(matched_pairs(owner), -torch.inf)
        hinges = (raised - positive[:, None]).clamp_(min=0), (raised - positive).clamp_(min=0)
        ctx.save_for_backward(images, captions, *hinges)
        return hinges[0].sum() + hinges[1].sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, captions, *hinges = ctx.saved_tensors
        over_captions, over_images = (x.ne(0).to(x.dtype) for x in hinges)
        dS = over_captions + over_images  # noqa: N806
        dS.diagonal().sub_(over_captions.sum(1) + over_images.sum(0))
        dS.mul_(gradient)
        return dS @ captions, dS.T @ images, None, None


def streamed_hardest(
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    owner: Int[Tensor, " pair"],
    margin: float,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """Equation 6 by blocks of rows: the winners first, then a loss over them alone."""
    with torch.no_grad():
        positive = paired_similarity(images, captions, similarity)
        (caption_score, caption), (image_score, image) = hardest_negatives(images, captions, owner, similarity)
        # Not above zero or NaN: a diverged model must not pass for one without violations.
        over_captions = (~(margin + caption_score - positive <= 0)).nonzero()[:, 0]
        over_images = (~(margin + image_score - positive <= 0)).nonzero()[:, 0]
    positive = paired_similarity(images, captions, similarity)
    wrong_captions = paired_similarity(images[over_captions], captions[caption[over_captions]], similarity)
    wrong_images = paired_similarity(images[image[over_images]], captions[over_images], similarity)
    return (margin + wrong_captions - positive[over_captions]).clamp(min=0).sum() + (
        margin + wrong_images - positive[over_images]
    ).clamp(min=0).sum()


def hardest_negatives(
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    owner: Int[Tensor, " pair"],
    similarity: Similarity = "cosine",
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Score and index, [pair] each, of every image's closest wrong caption, and of every caption's closest wrong image.

    The score is -inf where a batch holds no negative. Of equals the first wins.
    """
    by_row = []
    score, index = images.new_full((len(images),), -torch.inf), owner.new_zeros(len(images), dtype=torch.int64)
    for part in _parts(images, similarity):
        block = MEASURES[similarity](images[part], captions).masked_fill_(owner[part, None] == owner, -torch.inf)
        by_row.append(block.max(1))
        block_score, block_index = block.max(0)
        closer = block_score > score
        score = torch.where(closer, block_score, score)
        index = torch.where(closer, block_index + part.start, index)
    return (torch.cat([row[0] for row in by_row]), torch.cat([row[1] for row in by_row])), (score, index)


def streamed_sum(
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    owner: Int[Tensor, " pair"],
    margin: float,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """Equation 5 by blocks of rows, each with its part of the gradient; no block is kept."""

    wanted = torch.is_grad_enabled() and (images.requires_grad or captions.requires_grad)
    total: Tensor = _StreamedSum.apply(images, captions, owner, margin, similarity, wanted)
    return total


class _StreamedSum(torch.autograd.Function):
    """With a block of hinges at hand its gradient is too, since it only counts them: both are made together."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        captions: Tensor,
        owner: Tensor,
        margin: float,
        similarity: Similarity,
        wanted: bool,
    ) -> Tensor:
        images, captions = (x.detach().requires_grad_(wanted) for x in (images, captions))
        gradients = [torch.zeros_like(x, requires_grad=False) for x in (images, captions)] if wanted else []
        with torch.set_grad_enabled(wanted):
            positive = paired_similarity(images, captions, similarity)
        own, d_positive, total = positive.detach(), torch.zeros_like(positive), images.new_zeros(())
        for part in _parts(images, similarity):
            with torch.set_grad_enabled(wanted):
                rows = images[part]
                block = MEASURES[similarity](rows, captions)
            raised = (block.detach() + margin).masked_fill_(owner[part, None] == owner, -torch.inf)
            over_captions = (raised - own[part, None]).clamp_(min=0)
            over_images = raised.sub_(own).clamp_(min=0)
            total += over_captions.sum() + over_images.sum()
            if wanted:
                d_positive[part] -= over_captions.gt_(0).sum(1)
                d_positive -= over_images.gt_(0).sum(0)
                d_rows, d_captions = torch.autograd.grad(block, (rows, captions), over_captions.add_(over_images))
                gradients[0][part] += d_rows
                gradients[1] += d_captions
        if wanted:
            matched = torch.autograd.grad(positive, (images, captions), d_positive)
            gradients = [wrong + right for wrong, right in zip(gradients, matched, strict=True)]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_images, d_captions = ctx.saved_tensors
        return gradient * d_images, gradient * d_captions, None, None, None, None


def sum_of_hinges(
    S: Float[Tensor, "pair pair"],  # noqa: N803 (the paper's letter)
    matched: Bool[Tensor, "pair pair"],
    margin: float,
) -> Float[Tensor, ""]:
    """Equation 5, VSE0: [alpha - s(i, c) + s(i, c')]+ and [alpha - s(i, c) + s(i', c)]+, summed over all negatives."""
    over_captions, over_images = hinges(S, matched, margin)
    return over_captions.sum() + over_images.sum()


def max_of_hinges(
    S: Float[Tensor, "pair pair"],  # noqa: N803
    matched: Bool[Tensor, "pair pair"],
    margin: float,
) -> Float[Tensor, ""]:
    """Equation 6, VSE++: the hardest negative alone, max over c' of [.]+ and max over i' of [.]+, for each pair."""
    over_captions, over_images = hinges(S, matched, margin)
    return over_captions.amax(1).sum() + over_images.amax(0).sum()


def hinges(
    S: Float[Tensor, "pair pair"],  # noqa: N803
    matched: Bool[Tensor, "pair pair"],
    margin: float,
) -> tuple[Float[Tensor, "pair pair"], Float[Tensor, "pair pair"]]:
    """Violations of the margin by caption c of image i's own caption, and by image i of caption c's own image.

    Where `matched` there is no negative, and no violation.
    """
    positive = S.diagonal()
    over_captions = (margin + S - positive[:, None]).clamp(min=0).masked_fill(matched, 0)
    over_images = (margin + S - positive[None, :]).clamp(min=0).masked_fill(matched, 0)
    return over_captions, over_images


def matched_pairs(images: Int[Tensor, " pair"], negatives: int | None = None) -> Bool[Tensor, "pair pair"]:
    """Which (image, caption) of a batch is no negative: captions of the same image, by the image id of each pair.

    With `negatives` = n (figure 2b), each image sees only the n captions that follow its own in the batch, in a
    circle, and each caption only the n images before its own: the order of a batch is random, and so is the set.
    """
    same = images[:, None] == images[None, :]
    if negatives is None:
        return same
    place = torch.arange(len(images), device=images.device)
    ahead = (place[None, :] - place[:, None]) % len(images)
    return same | (ahead > negatives)


def cosine_similarity(
    images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
) -> Float[Tensor, "image caption"]:
    """Equation 1's inner product; a cosine where both embeddings have length one (VSE0 leaves the image's as it is)."""
    return images @ captions.T


def order_similarity(
    images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
) -> Float[Tensor, "image caption"]:
    """-||max(0, c - i)||: how far a caption is from lying below its image in every coordinate (Vendrov et al., 2016).

    The norm, as the released code has it; Vendrov et al. square it. Without a gradient no more than
    `ELEMENTS_AT_ONCE` of [image, caption, dim], or one image's, are held.
    """
    rows = max(1, ELEMENTS_AT_ONCE // max(1, captions.numel()))
    return torch.cat([_order(some, captions) for some in images.split(rows)])


def _order(images: Tensor, captions: Tensor) -> Tensor:
    violation = (captions[None, :, :] - images[:, None, :]).clamp(min=0)
    return -(violation.square().sum(2) + 1e-12).sqrt()


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine_similarity, "order": order_similarity}


def paired_similarity(
    images: Float[Tensor, "pair dim"], captions: Float[Tensor, "pair dim"], similarity: Similarity = "cosine"
) -> Float[Tensor, " pair"]:
    """s(i, c) of each row of `images` and the same row of `captions`."""
    if similarity == "cosine":
        return torch.einsum("pd,pd->p", images, captions)
    return -((captions - images).clamp(min=0).square().sum(1) + 1e-12).sqrt()


def _parts(images: Tensor, similarity: Similarity) -> Iterator[slice]:
    pairs, dim = images.shape
    rows = max(1, ELEMENTS_AT_ONCE // (pairs * (dim if similarity == "order" else 1)))
    yield from (slice(start, min(start + rows, pairs)) for start in range(0, pairs, rows))


def _widened(embeddings: Tensor) -> Tensor:
    return embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings


def _check(images: Tensor, captions: Tensor, owner: Tensor, negatives: str, similarity: str) -> None:
    if negatives not in ("hardest", "sum"):
        raise CapbenchError(f"the negatives are hardest or sum, not {negatives!r}")
    if similarity not in MEASURES:
        raise CapbenchError(f"the similarity is cosine or order, not {similarity!r}")
    if not 0 < len(images) == len(captions) == len(owner):
        raise CapbenchError(
            f"a batch needs pairs: {len(images)} images, {len(captions)} captions and {len(owner)} owners are none"
        )
    if images.dtype != captions.dtype:
        raise CapbenchError(f"images are {images.dtype} and captions {captions.dtype}: bring them to one type")
