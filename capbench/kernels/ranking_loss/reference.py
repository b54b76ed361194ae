"""The ranking losses of VSE++ (Faghri, Fleet, Kiros, Fidler, BMVC 2018, section 2) over a matrix of similarities.

S[i, c] = s(i, c) is the similarity of image i and caption c, and S[k, k] that of a matched pair; alpha is the margin;
[x]+ = max(0, x); c' and i' are the captions and images of the batch that do not belong to i and to c.

    (5)  l_SH(i, c) = sum_c' [alpha - s(i, c) + s(i, c')]+  +  sum_i' [alpha - s(i, c) + s(i', c)]+
    (6)  l_MH(i, c) = max_c' [alpha - s(i, c) + s(i, c')]+  +  max_i' [alpha - s(i, c) + s(i', c)]+
"""

# ruff: noqa: N803, N806 - S is the papers' letter

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Loss = Literal["sum_of_hinges", "max_of_hinges"]
Similarity = Literal["dot", "order"]
Matrix = Float[Tensor, "pair pair"]
Mask = Bool[Tensor, "pair pair"]
Best = tuple[Tensor, Tensor]  # [pair], the score and the index of each row's or column's closest negative
ELEMENTS_AT_ONCE = 2**20  # of a block of the product or, for the order, of [image, caption, dim]


def sum_of_hinges(S: Matrix, excluded: Mask, alpha: float) -> Float[Tensor, ""]:
    """Equation 5, the loss of VSE0, summed over the pairs of a batch; `excluded` as `excluded_pairs` gives it."""
    over_captions, over_images = hinges(S, excluded, alpha)
    return over_captions.sum() + over_images.sum()


def max_of_hinges(S: Matrix, excluded: Mask, alpha: float) -> Float[Tensor, ""]:
    """Equation 6, the loss of VSE++, summed over the pairs of a batch."""
    over_captions, over_images = hinges(S, excluded, alpha)
    return over_captions.amax(1).sum() + over_images.amax(0).sum()


def hinges(S: Matrix, excluded: Mask, alpha: float) -> tuple[Matrix, Matrix]:
    """[alpha - s(i, c) + s(i, c')]+ at [i, c'], and [alpha - s(i, c) + s(i', c)]+ at [i', c]; 0 where `excluded`."""
    matched = S.diagonal()
    over_captions = (alpha + S - matched[:, None]).clamp(min=0).masked_fill(excluded, 0)
    over_images = (alpha + S - matched[None, :]).clamp(min=0).masked_fill(excluded, 0)
    return over_captions, over_images


def excluded_pairs(image_ids: Int[Tensor, " pair"], negatives: int | None = None) -> Mask:
    """Which (image, caption) of a batch is not a negative: those of equal `image_ids`, the image of each pair.

    With `negatives` = n (figure 2b), an image also excludes all but the n captions that follow its own in the batch,
    cyclically, and a caption all but the n images before its own. The order of a batch is random, and so is the set.

    >>> import torch
    >>> from capbench.kernels.ranking_loss.reference import excluded_pairs
    >>> excluded_pairs(torch.tensor([7, 7, 9])).int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    same = image_ids[:, None] == image_ids[None, :]
    if negatives is None:
        return same
    place = torch.arange(len(image_ids), device=image_ids.device)
    ahead = (place[None, :] - place[:, None]) % len(image_ids)
    return same | (ahead > negatives)


def dot_similarity(
    images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
) -> Float[Tensor, "image caption"]:
    """s(i, c) = i . c, section 2.1: a cosine where both have unit length. VSE0 leaves images as they are."""
    return images @ captions.T


def order_similarity(
    images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
) -> Float[Tensor, "image caption"]:
    """s(i, c) = -||max(0, c - i)||: how far c is from lying below i in every coordinate (Vendrov et al., ICLR 2016).

    The norm is that of the released code; Vendrov et al. square it. Without a gradient, memory holds `ELEMENTS_AT_ONCE`
    of [image, caption, dim], or one image's.
    """
    rows = max(1, ELEMENTS_AT_ONCE // max(1, captions.numel()))
    return torch.cat([negative_norm(captions[None] - block[:, None]) for block in images.split(rows)])


def negative_norm(difference: Float[Tensor, "*pair dim"]) -> Float[Tensor, "*pair"]:
    """-||max(0, c - i)|| of the differences c - i."""
    return -(difference.clamp(min=0).square().sum(-1) + 1e-12).sqrt()


LOSSES: dict[str, Callable[..., Tensor]] = {"sum_of_hinges": sum_of_hinges, "max_of_hinges": max_of_hinges}
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"dot": dot_similarity, "order": order_similarity}


def reference_ranking_loss(
    images: Float[Tensor, "pair dim"], captions: Float[Tensor, "pair dim"], image_ids: Int[Tensor, " pair"],
    margin: float, loss: Loss, similarity: Similarity = "dot",
) -> Float[Tensor, ""]:  # fmt: skip
    """A loss from the embeddings by way of the whole matrix; also the CPU path of a small batch of the order."""
    S = SIMILARITIES[similarity](widened(images), widened(captions))
    return LOSSES[loss](S, excluded_pairs(image_ids), margin)


def widened(embeddings: Tensor) -> Tensor:
    """Half precision as float32."""
    return embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
