"""Pictures of one's own: a file or a folder of them, as a trained model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.base.files import printable
from capbench.base.progress import Report
from capbench.data.picture_folder import pictures_in
from capbench.runs.loaded import Trained


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


def look_at(trained: Trained, place: Path, store: Path | None = None, progress: Report | bool = True) -> Seen:
    """The picture `place`, or all pictures of that folder and the folders below it.

    A folder's undecodable files, `._*` files, folders and dangling links are passed over. The features are kept in
    `store` (default: the cache folder); `progress` is that of `capbench.vision.features.features`. Raises CapbenchError
    if nothing is there, for a single file that cannot be decoded, and for a folder without a picture.
    """
    if not place.is_dir():
        if not place.is_file():
            raise CapbenchError(f"there is no such folder or file: {printable(place)}")
        return Seen((place,), trained.features([place], store=store), (0,), ())
    return look_at_files(trained, *pictures_in(place), store, progress)


def look_at_files(
    trained: Trained,
    paths: Sequence[Path],
    passed_over: Sequence[Path] = (),
    store: Path | None = None,
    progress: Report | bool = True,
) -> Seen:
    """These files, of which the undecodable ones join what was `passed_over`. Raises CapbenchError if all do."""
    array = trained.features(paths, tolerant=True, progress=progress, store=store)
    rows = tuple(row for row in range(len(paths)) if not np.isnan(array[row].flat[0]))
    seen = tuple(paths[row] for row in rows)
    return Seen(seen, array, rows, tuple(sorted({*passed_over, *paths} - {*seen})))
