"""The hinge ranking losses as their equations, over a whole matrix of similarities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Negatives = Literal["hardest", "sum"]
Similarity = Literal["cosine", "order"]
ELEMENTS_AT_ONCE = 2**20  # of a block of the product or, for the order, of [image, caption, dim]


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
    return loss(measure(widened(images), widened(captions)), matched_pairs(owner), margin)


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


def widened(embeddings: Tensor) -> Tensor:
    return embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
