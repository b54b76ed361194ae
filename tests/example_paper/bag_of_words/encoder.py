"""An encoder: an image as a thumbnail of 4 x 4 pixels."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from capbench.vision.networks import Trunk


def thumbnail(weights: str | Path) -> Trunk:
    """The network of the entry point; it has no weights to load."""
    colours, side = 3, 4
    plain = ((0.0,) * colours, (1.0,) * colours)  # pixels in 0..1 as they are
    body, head = nn.AdaptiveAvgPool2d(side), nn.Flatten()
    return Trunk(body, head, colours, colours * side**2, ("thumbnail", "pixels"), plain, input_size=64)
