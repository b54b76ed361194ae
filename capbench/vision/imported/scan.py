"""The layout of VSE++ and SCAN: for each split an array of features, a text file of captions, perhaps one of ids.

`<split>_ims.npy` is [row, dim] (Faghri et al., VSE++) or [row, region, dim] (Lee et al., SCAN); `<split>_caps.txt` has
as many lines as rows, or five lines a row; `<split>_ids.txt` has an id for each row or for each line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from capbench.base.errors import CapbenchError
from capbench.base.files import read_bytes
from capbench.data.captions import CaptionDataset
from capbench.vision.imported.joining import ELSEWHERE, check_complete, joins, plain
from capbench.vision.imported.source import MOST_BYTES, Array, Row, Source, array_header, checked, regions_of

SPLIT_OF = {"train": "train", "dev": "val", "val": "val", "test": "test", "testall": "test"}  # COCO's "test" is the 1K
EACH = 5  # lines a row where rows and lines differ in number
MOST_TEXT = 2**30  # bytes of captions or ids
LINES_SHOWN = 3


def open_scan(dataset: CaptionDataset, folder: Path, beside: Collection[int] = ()) -> Source:
    """The features in `folder`, every line of its captions checked against the data set.

    A line fits a caption if their letters and digits agree, whatever the case, the spaces and the punctuation: each
    release has cut its words in its own way. Rows are joined by their ids; without ids, by their captions.
    Raises CapbenchError naming file and lines.
    """
    names = [name for name in SPLIT_OF if (folder / f"{name}_ims.npy").is_file()]
    said = []
    if "testall" in names and "test" in names:
        names.remove("test")
        said.append("test_ims.npy is left out: testall_ims.npy holds its images too")
    if not names:
        raise CapbenchError(f"{folder} has no {', '.join(f'{name}_ims.npy' for name in SPLIT_OF)}; name their folder")
    captions = _Captions(dataset)
    files = [_Split.open(folder, name) for name in names]
    shapes = {file.array.shape[1:] for file in files}
    if len(shapes) > 1:
        raise CapbenchError(f"{folder}: the arrays have rows of {' and '.join(map(str, sorted(shapes)))}; import one")
    joined = [_images(file, captions, beside) for file in files]
    image_of_row = np.concatenate(joined)
    said += [f"{file.name}: {len(images):,} rows, {len(file.lines):,} captions, all of {dataset.name}"
             for file, images in zip(files, joined, strict=True)]  # fmt: skip
    check_complete(image_of_row, dataset, folder)
    known = image_of_row[image_of_row != ELSEWHERE]
    if len(known) > len(dataset.image_names):
        said.append(f"{len(known):,} rows of {len(dataset.image_names):,} images: equal rows of an image are folded")
    shape = files[0].array.shape[1:]
    regions = regions_of(shape, str(files[0].path))
    span = None if regions is None else (regions, regions)

    def rows() -> Iterator[Row]:
        for file in files:
            yield from file.rows()

    return Source(image_of_row, span, shape[-1], False, rows, tuple(said))


@dataclass(frozen=True)
class _Split:
    """The three files of one split."""

    name: str
    path: Path  # of the array
    array: Array
    lines: list[str]  # of captions
    each: int  # lines a row
    ids: list[str] | None  # one a row

    @classmethod
    def open(cls, folder: Path, name: str) -> _Split:
        path, text = folder / f"{name}_ims.npy", folder / f"{name}_caps.txt"
        with path.open("rb") as file:
            array = array_header(file, str(path), path.stat().st_size)
        if len(array.shape) not in (2, 3):
            raise CapbenchError(f"{path} has the shape {list(array.shape)}, not [row, dim] or [row, region, dim]")
        rows, lines = array.shape[0], _lines(text)
        if len(lines) not in (rows, EACH * rows):
            raise CapbenchError(
                f"{path} has {rows:,} rows and {text.name} {len(lines):,} lines: neither as many nor {EACH} a row; "
                "fetch the two of one release"
            )
        each, ids_file, ids = len(lines) // max(rows, 1), folder / f"{name}_ids.txt", None
        if ids_file.is_file():
            ids = [plain(line) for line in _lines(ids_file)]
            if len(ids) == len(lines) and each > 1:
                uneven = [row for row in range(rows) if len(set(ids[row * each : (row + 1) * each])) > 1]
                if uneven:
                    line = uneven[0] * each + 1
                    raise CapbenchError(
                        f"{ids_file}, lines {line} to {line + each - 1}: other ids for one row of {path}"
                    )
                ids = ids[::each]
            if len(ids) != rows:
                count = f"{len(ids):,} lines for {rows:,} rows and {len(lines):,} captions"
                raise CapbenchError(f"{ids_file} has {count}; give one for each row")
        return cls(name, path, array, lines, each, ids)

    @property
    def captions(self) -> Path:
        return self.path.with_name(f"{self.name}_caps.txt")

    def lines_of(self, row: int) -> range:
        """The lines of a row, from 0."""
        return range(row * self.each, (row + 1) * self.each)

    def rows(self) -> Iterator[Row]:
        shape, size = self.array.shape[1:], self.array.dtype.itemsize
        width = int(np.prod(shape))
        at_once = max(1, MOST_BYTES // 4 // (width * size))
        with self.path.open("rb") as file:
            file.seek(self.array.start)
            for start in range(0, self.array.shape[0], at_once):
                count = min(at_once, self.array.shape[0] - start)
                values = np.frombuffer(file.read(count * width * size), self.array.dtype).reshape(count, *shape)
                for number, row in enumerate(values, start):
                    place = f"{self.path}, row {number}"
                    yield Row(place, checked(row, place))


class _Captions:
    """The captions of a data set, as lines are compared with them."""

    def __init__(self, dataset: CaptionDataset) -> None:
        self.dataset = dataset
        self.of_image: list[list[int]] = [[] for _ in dataset.image_names]
        self.images_of: dict[str, set[int]] = defaultdict(set)
        for caption, image in enumerate(dataset.image_of_caption.tolist()):
            self.of_image[image].append(caption)
            for key in (letters(dataset.captions[caption]), letters("".join(dataset.tokens[caption]))):
                self.images_of[key].add(image)

    def differing(self, file: _Split, images: Int64[np.ndarray, " row"]) -> list[tuple[int, int]]:
        """The lines, from 0, that are no caption of the image of their row, with that image."""
        of_row = ((row, image) for row, image in enumerate(images.tolist()) if image != ELSEWHERE)
        each = ((line, image) for row, image in of_row for line in file.lines_of(row))
        return [(line, image) for line, image in each if image not in self.of(file.lines[line])]

    def of(self, line: str) -> set[int]:
        return self.images_of.get(letters(line), set())

    def refuse(self, file: _Split, differing: list[tuple[int, int]]) -> CapbenchError:
        """The error for lines that differ: the first ones beside a caption of the image that is expected there."""
        shown = []
        for line, image in differing[:LINES_SHOWN]:
            own = self.of_image[image]
            expected = self.dataset.captions[own[line % min(EACH, len(own))]]
            shown.append(f"line {line + 1} is {file.lines[line]!r}, expected one like {expected!r}")
        return CapbenchError(
            f"{file.captions}: {len(differing):,} of {len(file.lines):,} lines are no captions of the images of "
            f"{self.dataset.name}: {'; '.join(shown)}; choose the data set and split file that they were made from"
        )


def letters(text: str) -> str:
    """The letters and digits of a caption, in lower case.

    >>> letters("A man's T-shirt .") == letters("a mans tshirt")
    True
    """
    return "".join(filter(str.isalnum, text.casefold()))


def _images(file: _Split, captions: _Captions, beside: Collection[int]) -> Int64[np.ndarray, " row"]:
    """The image of each row. Raises CapbenchError for lines that do not fit it, and for images of another split."""
    dataset, split = captions.dataset, SPLIT_OF[file.name]
    if file.ids is None:
        images = _by_captions(file, captions, split)
    else:
        ways = joins(file.ids, dataset, file.path.with_name(f"{file.name}_ids.txt"), beside).values()
        images = min(ways, key=lambda way: len(captions.differing(file, way)))
        if differing := captions.differing(file, images):
            raise captions.refuse(file, differing)
    strangers = [row for row, image in enumerate(images.tolist())
                 if image != ELSEWHERE and dataset.split_of_image[image] != split]  # fmt: skip
    if strangers:
        name = dataset.image_names[images[strangers[0]]]
        raise CapbenchError(
            f"{file.path}: {len(strangers):,} rows are images outside the {split} split of {dataset.name}, such as "
            f"row {strangers[0]} ({name}); choose the split file that they were made from"
        )
    return images


def _by_captions(file: _Split, captions: _Captions, split: str) -> Int64[np.ndarray, " row"]:
    """The image of each row whose captions are its lines: the one in the order of the split, else the only one."""
    order = captions.dataset.split(split).image_index.tolist()
    places = {image: place for place, image in enumerate(order)}
    place, used, images, wrong = -1, 0, [], []
    for row in range(file.array.shape[0]):
        lines = file.lines_of(row)
        fitting = set.intersection(*(captions.of(file.lines[line]) for line in lines))
        stays = file.each == 1 and place >= 0 and used < len(captions.of_image[order[place]])
        here = order[place + (not stays) : place + 2] or order[-1:]
        image = next((image for image in here if image in fitting), here[0])
        if image not in fitting and len(fitting) == 1:
            (image,) = fitting
        elif image not in fitting and fitting:
            raise CapbenchError(
                f"{file.captions}, line {lines[0] + 1}: {len(fitting)} images have this caption, and the rows are not "
                f"in the order of {captions.dataset.name}; put an id for each row into {file.name}_ids.txt"
            )
        elif not fitting:
            wrong += [(line, image) for line in lines if image not in captions.of(file.lines[line])]
        now = places.get(image, place)
        used = used + 1 if now == place else 1
        place = now
        images.append(image)
    if wrong:
        raise captions.refuse(file, wrong)
    return np.array(images, np.int64)


def _lines(path: Path) -> list[str]:
    """The lines of a text file. Raises CapbenchError when it is missing, too long or not UTF-8."""
    if path.is_file() and path.stat().st_size > MOST_TEXT:
        raise CapbenchError(
            f"{path} has {path.stat().st_size:,} bytes, more than {MOST_TEXT:,}; it is no list of lines"
        )
    content = read_bytes(path, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CapbenchError(f"{path}, line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    return text.removesuffix("\n").split("\n") if text else []
