"""Pictures of one's own: a file or a folder of them, as a trained model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.images import printable
from capbench.runs.loaded import Trained

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Seen:
    """Pictures and their features; what was no picture was passed over."""

    paths: tuple[Path, ...]
    array: Float[np.ndarray, "file ... dim"]  # a row for each file, decodable or not
    rows: tuple[int, ...]  # those of `paths`
    passed_over: tuple[Path, ...]

    def features(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "picture ... dim"]:
        """Those of the pictures from `start` to `stop`."""
        return torch.from_numpy(np.asarray(self.array[list(self.rows[start:stop])]))


def look_at(trained: Trained, place: Path) -> Seen:
    """The picture `place`, or all pictures of that folder and the folders below it, through the feature store.

    A folder's undecodable files, `._*` files, folders and dangling links are passed over. Raises CapbenchError if
    nothing is there, for a single file that cannot be decoded, and for a folder without a picture.
    """
    if not place.is_dir():
        if not place.is_file():
            raise CapbenchError(f"there is no such folder or file: {printable(place)}")
        return Seen((place,), trained.features([place]), (0,), ())
    paths, passed_over = pictures_in(place)
    array = trained.features(paths, tolerant=True, progress=True)
    rows = tuple(row for row in range(len(paths)) if not np.isnan(array[row].flat[0]))
    seen = tuple(paths[row] for row in rows)
    return Seen(seen, array, rows, tuple(sorted({*passed_over, *paths} - {*seen})))


def pictures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files with a picture's suffix in a folder and below it, sorted; and what is named so but is no such file.

    Raises CapbenchError if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise CapbenchError(f"there is no such folder: {printable(folder)}")
    named = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in named if path.is_file() and not path.name.startswith("._")]
    if not files:
        raise CapbenchError(f"no picture in {printable(folder)}; looked for {', '.join(SUFFIXES)}")
    return files, sorted({*named} - {*files})
