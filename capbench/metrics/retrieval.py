"""Image-caption retrieval: exact ranks by counting, the metrics on them, and the published protocols.

A rank is the number of wrong candidates that score at least as high as the right one, so 0 is first and a tie
counts against the model: a constant similarity matrix has R@1 = 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.errors import CapbenchError
from capbench.kernels.ranks import captions_of, counted_ranks, image_ranks, product_ranks

PROTOCOLS = ("whole", "1K", "5-fold 1K", "5K")
WHOLE_MATRIX_BYTES = 2**30
FOLD = 1000

Similarity = Callable[[Tensor, Tensor], Tensor]
log = logging.getLogger(__name__)


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
    by_image, by_caption = counted_ranks(similarity, image_of_caption)
    return Ranks(by_image.cpu(), by_caption.cpu())


def embedding_ranks(
    images: Float[Tensor, "image dim"],
    captions: Float[Tensor, "caption dim"],
    image_of_caption: Int[Tensor, " caption"],
    similarity: Similarity | None = None,
    chunk: int | None = None,
) -> Ranks:
    """Ranks from embeddings, by the dot product or by `similarity(images, captions) -> [image, caption]`.

    Dot products on a GPU are counted as they are made, and no matrix is held. Elsewhere it is kept whole up to
    1 GiB, filled `chunk` images at a time; a larger one is never held: it is made twice in pieces, by rows and by
    columns. When memory runs out the chunk is halved and the ranks stay the same, as far as `similarity` gives a
    pair the same value in any chunk.
    Raises CapbenchError as `match_ranks` does, and when one image at a time still does not fit.
    """
    images, captions = images.detach(), captions.detach()
    count, total = len(images), len(captions)
    _check(count, total, image_of_caption)
    image_of_caption = image_of_caption.to(images.device)
    if similarity is None and (counted := product_ranks(images, captions, image_of_caption)):
        return Ranks(counted[0].cpu(), counted[1].cpu())
    measure = similarity or _dot
    size = chunk or max(1, min(count, 2**24 // max(total, 1)))
    if count * total * images.element_size() <= WHOLE_MATRIX_BYTES:
        try:
            whole = images.new_empty(count, total)
            _in_pieces(count, size, lambda part: whole[part].copy_(measure(images[part], captions)))
            return match_ranks(whole, image_of_caption)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            log.warning("%d x %d similarities do not fit in memory at once; going on in pieces", count, total)
    return _ranks_in_two_passes(images, captions, image_of_caption, measure, size)


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
    similarity: Similarity | None = None,
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
        chosen = captions_of(fold, image_of_caption)
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


def _dot(images: Tensor, captions: Tensor) -> Tensor:
    return images @ captions.T


def _ranks_in_two_passes(
    images: Tensor, captions: Tensor, image_of_caption: Tensor, measure: Similarity, size: int
) -> Ranks:
    total = len(captions)

    def rows(part: slice) -> Tensor:
        block = measure(images[part], captions)
        own = captions_of(part, image_of_caption)
        matched = block.new_zeros(total)
        matched[own] = block[image_of_caption[own] - part.start, own]
        return image_ranks(block, matched, image_of_caption, part)

    def columns(part: slice) -> Tensor:
        block = measure(images, captions[part])
        matched = block[image_of_caption[part], torch.arange(block.shape[1], device=block.device)]
        return (block >= matched).sum(0) - 1

    by_row = _in_pieces(len(images), size, rows)
    by_column = _in_pieces(total, max(1, size * total // len(images)), columns)
    return Ranks(torch.cat(by_row).cpu(), torch.cat(by_column).cpu())


def _in_pieces(total: int, size: int, work: Callable[[slice], Tensor]) -> list[Tensor]:
    """The results of `work` on consecutive slices of `size` items, halved each time memory runs out in it."""
    done, start = [], 0
    while start < total:
        part = slice(start, min(start + size, total))
        try:
            done.append(work(part))
            start = part.stop
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if size == 1:
                raise CapbenchError("the similarities of one item do not fit in memory; free some") from error
            size = max(1, (part.stop - part.start) // 2)
            log.warning("out of memory in evaluation: the chunk is halved to %d", size)
    return done


def _out_of_memory(error: Exception) -> bool:
    """Whether torch, on any device, or Python says that memory ran out."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(word in str(error).lower() for word in words)
