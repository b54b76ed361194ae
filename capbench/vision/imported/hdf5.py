"""HDF5 files: one data set of all images with one of ids, or data sets or groups named by ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.vision.imported.joining import join, written
from capbench.vision.imported.source import Row, Source, checked, fractions, regions_of, same_dim, span

FEATURES = ("features", "image_features", "feats", "feat")
IDS = ("image_id", "image_ids", "ids", "id")
BOXES = ("boxes", "image_bb", "bboxes")
WIDTHS, HEIGHTS = ("image_w", "width", "widths"), ("image_h", "height", "heights")
SUFFIXES = (".h5", ".hdf5")


def open_h5(dataset: CaptionDataset, folder: Path, beside: Collection[int] = ()) -> Source:
    """The features in an HDF5 file, or in all those of a folder.

    Either `features` is [image, dim] or [image, region, dim] and `image_id` has an id for each, with `boxes` [image,
    region, 4] and `image_w`, `image_h` [image] if it has them; or the data set `<id>`, `<id>_features` or
    `<id>/features` is [dim] or [region, dim]. Raises CapbenchError naming file and key; and without h5py.
    """
    paths = [folder] if folder.is_file() else sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES)
    if not paths:
        raise CapbenchError(f"{folder} has no file that ends in {' or '.join(SUFFIXES)}")
    with ExitStack() as stack:
        entries = [entry for path in paths for entry in _entries(path, stack.enter_context(_opened(path)))]
    counts = [regions_of(entry.shape, entry.place) for entry in entries]
    dim = same_dim({entry.shape[-1] for entry in entries}, folder)
    image_of_row, said = join([entry.image for entry in entries], dataset, folder, beside)

    def rows() -> Iterator[Row]:
        for path in paths:
            with _opened(path) as file:
                for entry in (entry for entry in entries if entry.path == path):
                    yield entry.read(file)

    names, boxed = ", ".join(path.name for path in paths), all(entry.size for entry in entries)
    return Source(image_of_row, span(counts, folder), dim, boxed, rows, (f"{names}: {said}",))


@dataclass(frozen=True)
class _Entry:
    """One image in a file."""

    path: Path
    key: str  # of the data set
    row: int | None  # in it; None where it is all the image's
    image: str  # its id
    shape: tuple[int, ...]
    boxes: str = ""  # the data set of boxes
    size: tuple[float, float] | None = None  # of the image, where its boxes are known

    @property
    def place(self) -> str:
        return f"{self.path}, {self.key}" + ("" if self.row is None else f"[{self.row}]") + f" (image {self.image})"

    def values(self, file: Any, key: str) -> NDArray[np.generic]:
        try:
            return np.asarray(file[key][() if self.row is None else self.row])
        except OSError as error:
            raise CapbenchError(f"{self.place} cannot be read ({error}); fetch the file again") from error

    def read(self, file: Any) -> Row:
        values = self.values(file, self.key)
        features = checked(values, self.place)
        boxes = None if self.size is None else fractions(self.values(file, self.boxes), *self.size, self.place)
        return Row(self.place, features, boxes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise CapbenchError(f"reading {path} needs h5py: pip install 'capbench[h5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CapbenchError(f"{path} is no whole HDF5 file ({error}); fetch it again") from error
    with file:
        try:
            yield file
        except (OSError, KeyError, RuntimeError) as error:
            raise CapbenchError(f"{path} is damaged ({error}); fetch it again") from error


def _entries(path: Path, file: Any) -> Iterator[_Entry]:
    key = _first(FEATURES, file)
    return _of_table(path, file, key) if key else _by_key(path, file)


def _of_table(path: Path, file: Any, key: str) -> Iterator[_Entry]:
    features, ids = _floats(path, file, key), _first(IDS, file)
    if not ids:
        raise CapbenchError(f"{path} has {key} and no ids; add a data set {IDS[0]} with the id of each image")
    if features.ndim < 2:
        raise CapbenchError(f"{path}: {key} is {list(features.shape)}, not [image, dim] or [image, region, dim]")
    names = [written(name) for name in _column(path, file, ids, len(features))]
    boxes, widths, heights = (_first(names_of, file) for names_of in (BOXES, WIDTHS, HEIGHTS))
    sizes: list[tuple[float, float] | None] = [None] * len(names)  # boxes in pixels of an unknown size say nothing
    if boxes and widths and heights:
        expected = (*features.shape[:-1], 4)
        if _floats(path, file, boxes).shape != expected:
            raise CapbenchError(f"{path}: {boxes} is {list(file[boxes].shape)}, not {list(expected)}")
        both = (_column(path, file, side, len(features)) for side in (widths, heights))
        sizes = [(float(w), float(h)) for w, h in zip(*both, strict=True)]
    for row, (name, size) in enumerate(zip(names, sizes, strict=True)):
        yield _Entry(path, key, row, name, features.shape[1:], boxes, size)


def _by_key(path: Path, file: Any) -> Iterator[_Entry]:
    """`<id>_features` if there are such data sets, else `<id>` or `<id>/features`."""
    suffix = f"_{FEATURES[0]}"
    suffixed = any(key.endswith(suffix) for key in file)
    for key in file:
        if suffixed and not key.endswith(suffix):
            continue
        inner = "" if suffixed else _first(FEATURES, _node(path, file, key))
        full = f"{key}/{inner}" if inner else key
        yield _Entry(path, full, None, written(key.removesuffix(suffix)), _floats(path, file, full).shape)


def _first(names: tuple[str, ...], group: Any) -> str:
    """The first of `names` in a group; empty if none is, and in what is no group."""
    return next((name for name in names if name in group), "") if hasattr(group, "keys") else ""


def _node(path: Path, file: Any, key: str) -> Any:
    """A member of the file itself. Raises CapbenchError for a link, which could lead to any file."""
    import h5py

    parts = key.split("/")
    for end in range(1, len(parts) + 1):
        if not isinstance(file.get("/".join(parts[:end]), getlink=True), h5py.HardLink):
            raise CapbenchError(f"{path}, {key} is a link to elsewhere; copy the features into the file")
    return file[key]


def _array(path: Path, file: Any, key: str) -> Any:
    """An array of the file itself. Raises CapbenchError for a group, and for values that lie in another file."""
    node = _node(path, file, key)
    if not hasattr(node, "dtype"):
        raise CapbenchError(f"{path}, {key} is no array ({node}); features are [dim] or [region, dim]")
    if node.external or node.is_virtual:
        raise CapbenchError(f"{path}, {key} lies in another file; copy it into this one")
    return node


def _floats(path: Path, file: Any, key: str) -> Any:
    node = _array(path, file, key)
    if node.dtype.kind != "f":
        raise CapbenchError(f"{path}, {key} is no array of floats ({node}); features are [dim] or [region, dim]")
    return node


def _column(path: Path, file: Any, key: str, rows: int) -> list[Any]:
    """The value of each row of the features. Raises CapbenchError where there are not as many."""
    node = _array(path, file, key)
    if node.shape != (rows,):
        raise CapbenchError(
            f"{path}: the features have {rows:,} rows, and {key} is {list(node.shape)}; give one for each"
        )
    return list(node[()].tolist())
