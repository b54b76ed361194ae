"""Image-caption retrieval: exact ranks by counting, the metrics on them, and the published protocols.

A rank is the number of wrong candidates that score at least as high as the right one, so 0 is first and a tie
counts against the model: a constant similarity matrix has R@1 = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels import ranks as kernel
from capbench.kernels.ranking_loss.reference import MEASURES
from capbench.kernels.ranks.counts import Scores, images_at_once

PROTOCOLS = ("whole", "1K", "5-fold 1K", "5K")
FOLD = 1000

Similarity = Literal["cosine", "order"] | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Rank of each image's best caption, and of each caption's image; 0 is first. They lie on the CPU."""

    image_to_caption: Int[Tensor, " image"]
    caption_to_image: Int[Tensor, " caption"]


def match_ranks(similarity: Float[Tensor, "image caption"], image_of_caption: Int[Tensor, " caption"]) -> Ranks:
    """Ranks from a whole similarity matrix (higher is closer).

    An image's rank counts the captions of other images that score at least as high as the best of its own; a
    caption's rank counts the other images that score at least as high as its own. Raises CapbenchError when a
    similarity is NaN, or an image has no caption.
    """
    _check(len(similarity), similarity.shape[1], image_of_caption)
    order, owner = _by_image(image_of_caption.to(similarity.device))

    def scores(rows: slice, columns: slice) -> Tensor:
        return similarity[rows, columns if order is None else order[columns]]

    return _ranks(scores, order, owner, len(similarity))


def embedding_ranks(
    images: Float[Tensor, "image dim"],
    captions: Float[Tensor, "caption dim"],
    image_of_caption: Int[Tensor, " caption"],
    similarity: Similarity = "cosine",
    chunk: int | None = None,
) -> Ranks:
    """Ranks from embeddings: by the dot product ("cosine"), by the "order" similarity of Vendrov et al. (ICLR 2016),
    or by a function `similarity(images, captions) -> [image, caption]`.

    Equal embeddings tie by name of a similarity: the ranks are those of one exact score, whatever the tile, the threads
    or the device. Those of a function are the same in any tile as far as it gives a pair the same value there.
    No matrix of similarities is held, but one tile, of `chunk` images and as large a share of the captions (5 MB on a
    CPU, unless `chunk` is given), and for a function a copy of the captions where they are not in the order of their
    images. When memory runs out the chunk is halved.
    Raises CapbenchError as `match_ranks` does, for an unknown similarity, and when not even one image fits.
    """
    images, captions = images.detach(), captions.detach()
    _check(len(images), len(captions), image_of_caption)
    image_of_caption = image_of_caption.to(images.device)
    if isinstance(similarity, str):
        if similarity not in MEASURES:
            raise CapbenchError(f"unknown similarity {similarity!r}; choose one of {', '.join(MEASURES)}")
        by_name = kernel.embedding_ranks(images, captions, image_of_caption, similarity == "order", chunk)
        return Ranks(*(ranks.cpu() for ranks in by_name))
    order, owner = _by_image(image_of_caption)
    captions = captions if order is None else captions[order]

    def scores(rows: slice, columns: slice) -> Tensor:
        return similarity(images[rows], captions[columns])

    return _ranks(scores, order, owner, len(images), chunk)


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank (1 is best) in both directions, and the recalls' sum.

    The median of an even number of ranks is rounded down, as in the authors' code.
    Raises CapbenchError when there are no ranks.
    """
    metrics: dict[str, float] = {}
    for direction in ("image_to_caption", "caption_to_image"):
        values: Tensor = getattr(ranks, direction)
        if len(values) == 0:
            raise CapbenchError("there is nothing to rank: the split has no image or no caption")
        ordered, count = values.sort().values, len(values)
        for depth in (1, 5, 10):
            metrics[f"{direction}_r{depth}"] = 100.0 * int((values < depth).sum()) / count
        middle = (ordered[(count - 1) // 2] + ordered[count // 2]) // 2
        metrics[f"{direction}_median_rank"] = float(middle + 1)
        metrics[f"{direction}_mean_rank"] = float(values.to(torch.float64).mean()) + 1.0
    metrics["rsum"] = sum(value for name, value in metrics.items() if not name.endswith("_rank"))
    return metrics


def evaluate_protocol(
    images: Float[Tensor, "image dim"],
    captions: Float[Tensor, "caption dim"],
    image_of_caption: Int[Tensor, " caption"],
    protocol: str = "whole",
    similarity: Similarity = "cosine",
    chunk: int | None = None,
) -> tuple[dict[str, float], Ranks]:
    """Metrics and ranks under a protocol: "whole", "1K" (the first 1,000 images), "5-fold 1K" or "5K".

    "5-fold 1K" is the mean of the metrics over five consecutive blocks of 1,000 images; its ranks, each in
    its own block, come in the order of the images and of the captions.
    Raises CapbenchError for an unknown protocol, or when the number of images does not fit it.
    """
    folds, image_of_caption = _folds(protocol, len(images)), image_of_caption.to(images.device)
    whole = len(folds) == 1 and folds[0].stop == len(images)
    image_ranks, caption_ranks, captions_used, metrics = [], [], [], []
    for fold in folds:
        chosen = torch.nonzero((image_of_caption >= fold.start) & (image_of_caption < fold.stop)).flatten()
        if whole:
            ranks = embedding_ranks(images, captions, image_of_caption, similarity, chunk)
        else:
            own = image_of_caption[chosen] - fold.start
            ranks = embedding_ranks(images[fold], captions[chosen], own, similarity, chunk)
        metrics.append(retrieval_metrics(ranks))
        image_ranks.append(ranks.image_to_caption)
        caption_ranks.append(ranks.caption_to_image)
        captions_used.append(chosen)
    order = torch.cat(captions_used).cpu().argsort()
    mean = {name: sum(fold[name] for fold in metrics) / len(metrics) for name in metrics[0]}
    return mean, Ranks(torch.cat(image_ranks), torch.cat(caption_ranks)[order])


def _folds(protocol: str, images: int) -> list[slice]:
    if protocol not in PROTOCOLS:
        raise CapbenchError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if protocol == "whole":
        return [slice(0, images)]
    if protocol == "1K":
        if images < FOLD:
            raise CapbenchError(f"protocol 1K needs at least {FOLD:,} images; this split has {images:,}")
        return [slice(0, FOLD)]
    if images != 5 * FOLD:
        raise CapbenchError(f"protocol {protocol} needs {5 * FOLD:,} images; this split has {images:,}")
    if protocol == "5K":
        return [slice(0, images)]
    return [slice(start, start + FOLD) for start in range(0, images, FOLD)]


def _check(images: int, captions: int, image_of_caption: Tensor) -> None:
    if len(image_of_caption) != captions:
        raise CapbenchError(f"image_of_caption has {len(image_of_caption)} entries for {captions} captions")
    if captions and (int(image_of_caption.min()) < 0 or int(image_of_caption.max()) >= images):
        raise CapbenchError(f"image_of_caption must lie in 0..{images - 1}, and does not")
    alone = torch.nonzero(torch.bincount(image_of_caption, minlength=images) == 0).flatten()
    if len(alone):
        some = ", ".join(map(str, alone[:10].tolist()))
        raise CapbenchError(f"images without a caption cannot be ranked, leave out {len(alone)}: {some}")


def _by_image(image_of_caption: Tensor) -> tuple[Tensor | None, Tensor]:
    """The order that brings captions into the order of their images, None where they are, and the owners in it."""
    image_of_caption = image_of_caption.long()
    if bool((image_of_caption.diff() >= 0).all()):
        return None, image_of_caption
    owner, order = image_of_caption.sort(stable=True)
    return order, owner


def _ranks(scores: Scores, order: Tensor | None, owner: Tensor, images: int, chunk: int | None = None) -> Ranks:
    at_once = chunk or images_at_once(images, len(owner), owner.device)
    by_image, by_caption = kernel.counted_ranks(scores, owner, images, at_once)
    if order is not None:
        by_caption = torch.empty_like(by_caption).index_copy_(0, order, by_caption)
    return Ranks(by_image.cpu(), by_caption.cpu())
