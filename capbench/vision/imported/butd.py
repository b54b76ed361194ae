"""Bottom-up attention: its `.tsv` files, or the folders of arrays that captioning codes make of them.

Sources: Anderson et al., "Bottom-up and top-down attention" (CVPR 2018); the folders `<name>_att` of `<id>.npz` and
`<name>_fc` of `<id>.npy` are those of ImageCaptioning.pytorch.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.vision.imported.joining import join, written
from capbench.vision.imported.source import (
    MOST_BYTES,
    File,
    Row,
    Source,
    array_header,
    checked,
    fractions,
    regions_of,
    same_dim,
    span,
)

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
TSV = re.compile(r".*\.tsv(\.\d+)?")
KEYS = ("feat", "features", "x", "z")  # of an .npz file, the first that it has
LONGEST = 2 * MOST_BYTES  # bytes of a line: base64 needs four for three


def open_butd(dataset: CaptionDataset, folder: Path, beside: Collection[int] = ()) -> Source:
    """All `.tsv` files in `folder`; or its `*_att`, else its `*_fc`; or `.npz` or `.npy` files in `folder` itself.

    Raises CapbenchError naming file, line and image.
    """
    if not folder.is_dir():
        raise CapbenchError(f"{folder} is no folder; name the one with the .tsv files, or with cocobu_att or cocobu_fc")
    tables = sorted(path for path in folder.iterdir() if TSV.fullmatch(path.name))
    if tables:
        return _tables(dataset, folder, tables, beside)
    inner = [sorted(path for path in folder.glob(f"*_{kind}") if path.is_dir()) for kind in ("att", "fc")]
    chosen = next((folders for folders in inner if folders), [folder])
    if len(chosen) > 1:
        raise CapbenchError(f"{folder} has {' and '.join(path.name for path in chosen)}; name one of them")
    files = sorted(path for path in chosen[0].iterdir() if path.suffix in (".npz", ".npy"))
    if not files:
        raise CapbenchError(f"{folder} has no .tsv file, no folder *_att or *_fc, and no .npz or .npy files")
    return _arrays(dataset, chosen[0], files, beside)


@dataclass(frozen=True)
class _Line:
    """A line of a table, its arrays still in base64."""

    place: str  # file, line and image, for messages
    image: str
    width: int
    height: int
    regions: int
    boxes: bytes
    features: bytes

    def bytes_of(self, column: str) -> int:
        """How many bytes a column holds, by its length; the padding says how many of the last three are none."""
        text = getattr(self, column)
        return len(text) // 4 * 3 - text[-2:].count(b"=")

    def array(self, column: str) -> NDArray[np.float32]:
        """float32 [region, number]. Raises CapbenchError for damaged base64."""
        try:
            content = base64.b64decode(getattr(self, column), validate=True)
        except binascii.Error as error:
            raise CapbenchError(f"{self.place}: {column} is damaged base64 ({error}); fetch the file again") from error
        return np.frombuffer(content, "<f4").reshape(self.regions, -1)


def _tables(dataset: CaptionDataset, folder: Path, tables: list[Path], beside: Collection[int]) -> Source:
    """Two passes: the first compares what each line announces with its length, the second decodes."""
    ids, counts, dim = [], [], 0
    for line in (line for path in tables for line in _read(path)):
        held = line.bytes_of("features")
        dim = dim or held // (4 * line.regions)
        for column, expected in (("boxes", 4), ("features", dim)):
            if line.bytes_of(column) != 4 * expected * line.regions or not expected:
                raise CapbenchError(
                    f"{line.place}: {line.regions} boxes of {expected:,} numbers are {4 * expected * line.regions:,} "
                    f"bytes, and {column} holds {line.bytes_of(column):,}; fetch the file again"
                )
        ids.append(written(line.image))
        counts.append(line.regions)
    image_of_row, said = join(ids, dataset, folder, beside)

    def rows() -> Iterator[Row]:
        for line in (line for path in tables for line in _read(path)):
            boxes = fractions(line.array("boxes"), float(line.width), float(line.height), line.place)
            yield Row(line.place, checked(line.array("features"), line.place), boxes)

    return Source(
        image_of_row, span(counts, folder), dim, True, rows, (f"{', '.join(p.name for p in tables)}: {said}",)
    )


def _read(path: Path) -> Iterator[_Line]:
    """The lines of a table. Raises CapbenchError for one with other columns, or longer than any image's."""
    with path.open("rb") as file:
        number = 0
        while text := file.readline(LONGEST + 1):
            number += 1
            text = text.removeprefix(codecs.BOM_UTF8) if number == 1 else text
            place = f"{path}, line {number}"
            if len(text) > LONGEST:
                raise CapbenchError(f"{place} is longer than {LONGEST:,} bytes, which no image needs; fetch it again")
            fields = text.rstrip(b"\r\n").split(b"\t")
            if len(fields) != len(COLUMNS):
                raise CapbenchError(f"{place} has {len(fields)} columns, not {len(COLUMNS)}: {', '.join(COLUMNS)}")
            place = f"{place} (image {fields[0].decode('utf-8', 'replace')[:80]})"
            width, height, regions = (int(text) if text.isdigit() and len(text) < 10 else 0 for text in fields[1:4])
            if not width or not height or not regions:
                column = COLUMNS[1 + [width, height, regions].index(0)]
                raise CapbenchError(f"{place}: {column} is no positive whole number; fetch the file again")
            yield _Line(place, fields[0].decode("utf-8", "replace"), width, height, regions, fields[4], fields[5])


def _arrays(dataset: CaptionDataset, folder: Path, files: list[Path], beside: Collection[int]) -> Source:
    shapes = []
    for path in files:
        with _array(path) as (file, place, size):
            shapes.append(array_header(file, place, size).shape)
    counts = [regions_of(shape, str(path)) for shape, path in zip(shapes, files, strict=True)]
    dim = same_dim({shape[-1] for shape in shapes}, folder)
    image_of_row, said = join([path.stem for path in files], dataset, folder, beside)

    def rows() -> Iterator[Row]:
        for path in files:
            with _array(path) as (file, place, size):
                header = array_header(file, place, size)
                values = np.frombuffer(file.read(size), header.dtype).reshape(header.shape)
            yield Row(place, checked(values, place))

    boxes = "; boxes are left out: such files do not say how large the images are"
    return Source(image_of_row, span(counts, folder), dim, False, rows, (f"{folder.name}: {said}{boxes}",))


@contextmanager
def _array(path: Path) -> Iterator[tuple[File, str, int]]:
    """An open .npy file, or the features in an .npz file, with its name and its size."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            yield file, str(path), path.stat().st_size
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            key = next((key for key in KEYS if f"{key}.npy" in names), None)
            if key is None:
                raise CapbenchError(f"{path} has no array {', '.join(KEYS)}; it has {', '.join(sorted(names))}")
            info = archive.getinfo(f"{key}.npy")
            if info.file_size > MOST_BYTES:
                raise CapbenchError(f"{path}, {key}: {info.file_size:,} bytes, more than {MOST_BYTES:,} for one image")
            with archive.open(info) as file:
                yield file, f"{path}, {key}", info.file_size
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
        raise CapbenchError(f"{path} is damaged ({error}); fetch it again") from error
