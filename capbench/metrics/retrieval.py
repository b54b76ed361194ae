"""Image-caption retrieval: exact ranks by counting, the metrics on them, and the published protocols.

A rank is the number of wrong candidates that score at least as high as the right one, or as the best caption of an
image: 0 is first, and a tie counts against the model, so that a constant similarity has R@1 = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.captions import Split
from capbench.kernels import ranks as kernel
from capbench.kernels._arguments import Array, check_unit_length, embeddings, tensors
from capbench.kernels.ranks.cpu import Scores

PROTOCOLS = ("whole", "1K", "5-fold 1K", "5K")
FOLD = 1000
SIMILARITIES = ("cosine", "dot", "order")

Similarity = Literal["cosine", "dot", "order"] | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks both ways, from 0, on the CPU."""

    image_to_caption: Int[Tensor, " image"]  # of each image's best caption
    caption_to_image: Int[Tensor, " caption"]  # of each caption's image


def match_ranks(similarity: Float[Array, "image caption"], image_of_caption: Int[Array, " caption"]) -> Ranks:
    """Ranks from a whole similarity matrix; higher is closer.

    Raises CapbenchError for wrong types or shapes, NaN, or an image without a caption.

    >>> import numpy as np
    >>> from capbench.metrics.retrieval import match_ranks
    >>> similarity = np.array([[0.9, 0.2, 0.1, 0.8], [0.3, 0.1, 0.7, 0.6]])
    >>> match_ranks(similarity, image_of_caption=np.array([0, 0, 1, 1]))
    Ranks(image_to_caption=tensor([0, 0]), caption_to_image=tensor([0, 0, 0, 1]))
    """
    similarity, image_of_caption = tensors(
        similarity=(similarity, "float image caption"), image_of_caption=(image_of_caption, "int caption")
    )
    check_owners(len(similarity), image_of_caption)
    order, sorted_images = _by_image(image_of_caption.to(similarity.device))

    def scores(rows: slice, columns: slice) -> Tensor:
        return similarity[rows, columns if order is None else order[columns]]

    return _ranks(scores, order, sorted_images, len(similarity))


def embedding_ranks(
    images: Float[Array, "image dim"], captions: Float[Array, "caption dim"],
    image_of_caption: Int[Array, " caption"], similarity: Similarity = "cosine", chunk: int | None = None,
) -> Ranks:  # fmt: skip
    """Ranks from embeddings, by a similarity: "cosine", of vectors of unit length; "dot", of any; "order", of Vendrov
    et al. (ICLR 2016); or a function of tensors, `similarity(images, captions) -> [image, caption]`.

    Under a named similarity equal embeddings tie, whatever the tile, the threads or the device; under a function, if a
    pair's value is the same in any tile. Memory is one tile of `chunk` images and as large a share of the captions
    (5 MB on a CPU by default), halved when memory runs out; for a function, also a copy of unsorted captions.
    Raises CapbenchError as `match_ranks` does; for an unknown similarity, vectors whose length is not 1 under "cosine",
    or a function's result of another shape; and when not even one image fits.

    >>> import numpy as np
    >>> from capbench.metrics.retrieval import embedding_ranks
    >>> images, captions = np.eye(2), np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.8, 0.6]])
    >>> embedding_ranks(images, captions, np.array([0, 0, 1, 1]))
    Ranks(image_to_caption=tensor([0, 0]), caption_to_image=tensor([0, 0, 0, 1]))
    """
    images, captions, image_of_caption = embeddings(images, captions, image_of_caption)
    check_owners(len(images), image_of_caption)
    if chunk is not None and chunk < 1:
        raise CapbenchError(f"chunk must be at least 1 image, and is {chunk}")
    if isinstance(similarity, str):
        if similarity not in SIMILARITIES:
            raise CapbenchError(f"similarity must be {', '.join(SIMILARITIES)} or a function, not {similarity!r}")
        if similarity == "cosine":
            check_unit_length(images=images, captions=captions)
        by_name = kernel.embedding_ranks(images, captions, image_of_caption, similarity == "order", chunk)
        return Ranks(*(ranks.cpu() for ranks in by_name))
    order, sorted_images = _by_image(image_of_caption)
    captions = captions if order is None else captions[order]

    def scores(rows: slice, columns: slice) -> Tensor:
        tile, shape = similarity(images[rows], captions[columns]), (len(images[rows]), len(captions[columns]))
        if tile.shape != shape:
            raise CapbenchError(f"the similarity returned {list(tile.shape)}, not [image, caption] = {list(shape)}")
        return tile

    return _ranks(scores, order, sorted_images, len(images), chunk)


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank (1 is best) in both directions, and rsum, the sum of recalls.

    The median of an even number of ranks is rounded down, as in the authors' code.
    Raises CapbenchError when there are no ranks.

    >>> import torch
    >>> from capbench.metrics.retrieval import Ranks, retrieval_metrics
    >>> metrics = retrieval_metrics(Ranks(torch.tensor([0, 6]), torch.tensor([0, 0, 1, 20])))
    >>> metrics["image_to_caption_r1"], metrics["caption_to_image_r5"], metrics["rsum"]
    (50.0, 75.0, 400.0)
    """
    metrics: dict[str, float] = {}
    for direction in ("image_to_caption", "caption_to_image"):
        values: Tensor = getattr(ranks, direction)
        if not len(values):
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
    images: Float[Array, "image dim"], captions: Float[Array, "caption dim"],
    image_of_caption: Int[Array, " caption"], protocol: str = "whole", similarity: Similarity = "cosine",
    chunk: int | None = None,
) -> tuple[dict[str, float], Ranks]:  # fmt: skip
    """Metrics and ranks under a protocol: "whole", "1K" (the first 1,000 images), "5-fold 1K" or "5K".

    "5-fold 1K" averages the metrics of five consecutive blocks of 1,000 images; each rank is that within its block.
    Raises CapbenchError as `embedding_ranks` does, for an unknown protocol, or a number of images that does not fit it.

    >>> import numpy as np
    >>> from capbench.metrics.retrieval import evaluate_protocol
    >>> images, captions = np.eye(2), np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.8, 0.6]])
    >>> metrics, ranks = evaluate_protocol(images, captions, np.array([0, 0, 1, 1]))
    >>> metrics["image_to_caption_r1"], metrics["caption_to_image_r1"]
    (100.0, 75.0)
    """
    images, captions, image_of_caption = embeddings(images, captions, image_of_caption)

    def ranked(rows: slice, columns: slice | Tensor, of_caption: Tensor) -> Ranks:
        return embedding_ranks(images[rows], captions[columns], of_caption, similarity, chunk)

    return _evaluated(ranked, len(images), image_of_caption, protocol)


def evaluate_similarity(
    similarity: Float[Array, "image caption"], image_of_caption: Int[Array, " caption"], protocol: str = "whole"
) -> tuple[dict[str, float], Ranks]:
    """The same from a whole similarity matrix; higher is closer.

    Raises CapbenchError as `match_ranks` does, for an unknown protocol, or a number of images that does not fit it.

    >>> import numpy as np
    >>> from capbench.metrics.retrieval import evaluate_similarity
    >>> similarity = np.array([[0.9, 0.2, 0.1, 0.8], [0.3, 0.1, 0.7, 0.6]])
    >>> metrics, ranks = evaluate_similarity(similarity, image_of_caption=np.array([0, 0, 1, 1]))
    >>> metrics["image_to_caption_r1"], metrics["caption_to_image_r1"]
    (100.0, 75.0)
    """
    similarity, image_of_caption = tensors(
        similarity=(similarity, "float image caption"), image_of_caption=(image_of_caption, "int caption")
    )

    def ranked(rows: slice, columns: slice | Tensor, of_caption: Tensor) -> Ranks:
        return match_ranks(similarity[rows][:, columns], of_caption)

    return _evaluated(ranked, len(similarity), image_of_caption, protocol)


def metrics_of_ranks(ranks: Ranks, image_of_caption: Int[Tensor, " caption"], protocol: str) -> dict[str, float]:
    """The metrics of ranks that were counted under a protocol: over "5-fold 1K" the mean of its folds.

    Raises CapbenchError when there are no ranks.

    >>> import torch
    >>> from capbench.metrics.retrieval import Ranks, metrics_of_ranks
    >>> ranks = Ranks(torch.tensor([0, 6]), torch.tensor([0, 0, 1, 20]))
    >>> metrics_of_ranks(ranks, torch.tensor([0, 0, 1, 1]), "whole")["caption_to_image_r5"]
    75.0
    """
    if protocol != "5-fold 1K":
        return retrieval_metrics(ranks)
    fold_of_caption = image_of_caption.cpu() // FOLD
    by_fold = enumerate(ranks.image_to_caption.split(FOLD))
    folds = [Ranks(of_images, ranks.caption_to_image[fold_of_caption == fold]) for fold, of_images in by_fold]
    metrics = [retrieval_metrics(fold) for fold in folds]
    return {name: sum(fold[name] for fold in metrics) / len(metrics) for name in metrics[0]}


def scored(split: Split, protocol: str) -> Split:
    """The part of a split that a protocol scores: under "1K" its first 1,000 images, else all.

    Raises CapbenchError when there are fewer images, or when captions of other images lie between theirs.

    >>> from capbench.data.scenes import scenes
    >>> from capbench.metrics.retrieval import scored
    >>> len(scored(scenes().split("test"), "whole").image_index)
    500
    """
    return split.first(FOLD) if protocol == "1K" else split


def check_protocol(protocol: str, images: int) -> None:
    """Raises CapbenchError for an unknown protocol, or a number of images that does not fit it.

    >>> from capbench.metrics.retrieval import check_protocol
    >>> check_protocol("1K", images=5000)
    """
    if protocol not in PROTOCOLS:
        raise CapbenchError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if protocol == "1K" and images < FOLD:
        raise CapbenchError(f"protocol 1K needs at least {FOLD:,} images; this split has {images:,}")
    if protocol in ("5-fold 1K", "5K") and images != 5 * FOLD:
        raise CapbenchError(f"protocol {protocol} needs {5 * FOLD:,} images; this split has {images:,}")


def check_owners(images: int, image_of_caption: Tensor) -> None:
    """Raises CapbenchError for a caption of no image, and for images without a caption.

    >>> import torch
    >>> from capbench.metrics.retrieval import check_owners
    >>> check_owners(2, torch.tensor([1, 0, 1]))
    """
    wrong = torch.nonzero((image_of_caption < 0) | (image_of_caption >= images)).flatten()
    if len(wrong):
        row = int(wrong[0])
        allowed = (
            f"must lie in 0..{images - 1}, the rows of the {images} images" if images else "names one of the 0 images"
        )
        raise CapbenchError(f"image_of_caption {allowed}, and its row {row} is {int(image_of_caption[row])}")
    alone = torch.nonzero(torch.bincount(image_of_caption, minlength=images) == 0).flatten()
    if len(alone):
        some = ", ".join(map(str, alone[:10].tolist()))
        raise CapbenchError(f"images without a caption cannot be ranked, leave out {len(alone)}: {some}")


def _evaluated(
    ranked: Callable[[slice, slice | Tensor, Tensor], Ranks], images: int, image_of_caption: Tensor, protocol: str
) -> tuple[dict[str, float], Ranks]:
    """Metrics and ranks, given the ranks of any images among any captions."""
    check_protocol(protocol, images)
    if protocol in ("whole", "5K"):
        ranks = ranked(slice(None), slice(None), image_of_caption)
        return retrieval_metrics(ranks), ranks
    folds, used = [], []
    for start in range(0, FOLD if protocol == "1K" else images, FOLD):
        used.append(((image_of_caption >= start) & (image_of_caption < start + FOLD)).nonzero()[:, 0])
        folds.append(ranked(slice(start, start + FOLD), used[-1], image_of_caption[used[-1]] - start))
    caption_ranks = torch.cat([ranks.caption_to_image for ranks in folds])[torch.cat(used).cpu().argsort()]
    merged = Ranks(torch.cat([ranks.image_to_caption for ranks in folds]), caption_ranks)
    return metrics_of_ranks(merged, image_of_caption, protocol), merged


def _by_image(image_of_caption: Tensor) -> tuple[Tensor | None, Tensor]:
    """The order that sorts captions by image, None where they are sorted, and their images in that order."""
    if bool((image_of_caption.diff() >= 0).all()):
        return None, image_of_caption
    sorted_images, order = image_of_caption.sort(stable=True)
    return order, sorted_images


def _ranks(scores: Scores, order: Tensor | None, sorted_images: Tensor, images: int, chunk: int | None = None) -> Ranks:
    by_image, by_caption = kernel.counted_ranks(scores, sorted_images, images, chunk)
    if order is not None:
        by_caption = torch.empty_like(by_caption).index_copy_(0, order, by_caption)
    return Ranks(by_image.cpu(), by_caption.cpu())
