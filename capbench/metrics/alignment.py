"""Whether attention, or an alignment, lands on the thing that a phrase names; only where the true boxes are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from capbench.data.captions import Box
from capbench.errors import CapbenchError


def locations_inside(boxes: Sequence[Box], locations: int, size: int) -> Bool[np.ndarray, " location"]:
    """Which cells of a square grid over an image of `size` pixels have their centre in one of the boxes.

    Cells go along rows, as the annotations of an encoder do. Raises CapbenchError when the grid is not square.
    """
    side = math.isqrt(locations)
    if side * side != locations:
        raise CapbenchError(f"{locations} locations are no square grid, so where they lie is not known")
    centre = (np.arange(side) + 0.5) * size / side
    y, x = np.meshgrid(centre, centre, indexing="ij")
    hits = [(x0 <= x) & (x < x1) & (y0 <= y) & (y < y1) for x0, y0, x1, y1 in boxes]
    return np.any(hits, axis=0).ravel()


def pointing(
    weights: Float[np.ndarray, "phrase location"], inside: Bool[np.ndarray, "phrase location"]
) -> tuple[Float[np.ndarray, " phrase"], Float[np.ndarray, " phrase"]]:
    """100 where the heaviest location of a phrase lies inside, else 0; and the chance of it in percent.

    Chance is the share of locations that lie inside. Of several that are heaviest, one outside counts: constant
    weights hit only where every location is inside. Source: Zhang et al., ECCV 2016, section 4.2 (pointing game).
    """
    heaviest = weights == weights.max(1, keepdims=True)
    return 100.0 * ~(heaviest & ~inside).any(1), 100.0 * inside.mean(1)
