"""rsum, the sum of six recalls, from counts an image, so that its images can be drawn anew."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Num

from capbench.base.errors import CapbenchError

DEPTHS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{n}" for direction in ("image_to_caption", "caption_to_image") for n in DEPTHS)


def rsum_statistics(
    image_ranks: Int[np.ndarray, " image"],
    caption_ranks: Int[np.ndarray, " caption"],
    image_of_caption: Int[np.ndarray, " caption"],
) -> Int[np.ndarray, "image 8"]:
    """What rsum counts for each image: hits at 1, 5 and 10 and 1 for itself, hits at 1, 5 and 10 and all its captions.

    Ranks count from 0; the first image is that of the lowest number in `image_of_caption`.
    Raises CapbenchError where the images of the captions are not as many as those ranked.

    >>> rsum_statistics(np.array([0, 7]), np.array([0, 2, 9]), np.array([0, 0, 1])).tolist()
    [[1, 1, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 0, 0, 1, 1]]
    """
    images, place = np.unique(image_of_caption, return_inverse=True)
    if len(images) != len(image_ranks):
        raise CapbenchError(f"captions of {len(images):,} images beside the ranks of {len(image_ranks):,}")
    of_image = [image_ranks < depth for depth in DEPTHS]
    of_captions = [np.bincount(place[caption_ranks < depth], minlength=len(images)) for depth in DEPTHS]
    counts = [*of_image, np.ones(len(images)), *of_captions, np.bincount(place)]
    return np.stack(counts, axis=1).astype(np.int64)


def rsum(statistics: Num[np.ndarray, "*sample 8"]) -> Float[np.ndarray, "*sample"]:
    """The sum of the six recalls in percent, from `rsum_statistics` summed over images.

    >>> float(rsum(np.array([1, 1, 2, 2, 1, 2, 2, 4])))
    325.0
    """
    counts = statistics.astype(np.float64)
    recalls = counts[..., 0:3] / counts[..., 3:4] + counts[..., 4:7] / counts[..., 7:8]
    return np.asarray(100.0 * recalls.sum(-1))
