"""The regions of images: the whole image and 19 boxes, from a fixed grid, a file, the true boxes or a detector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from pydantic import PlainValidator, model_validator
from torch import nn

from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError, listed
from capbench.base.files import atomic_write, check_writable, fingerprint, locked
from capbench.base.progress import Report, reporter
from capbench.data.captions import Box, CaptionDataset
from capbench.data.checked_json import Checked, read_json
from capbench.data.images import ImageFolder, Pictures, sample_of
from capbench.vision.networks import Detector, load_detector
from capbench.vision.weights import hash_tensors

Provider = Literal["multiscale", "objects", "file", Detector]
PROVIDERS: tuple[str, ...] = get_args(Provider)
REGIONS = 20
FILE = "regions.json"
VERSION = 1  # of the path from pixels or a file to boxes: a change makes new boxes
LOCK_SECONDS = 24 * 3600.0  # longest wait for another process that makes the same boxes: detectors are slow
WHOLE = (0.0, 0.0, 1.0, 1.0)
HALVES = tuple((x, 0.0, x + 0.5, 1.0) for x in (0.0, 0.25, 0.5))
SQUARES = tuple((x / 5, y / 5, (x + 2) / 5, (y + 2) / 5) for y in range(4) for x in range(4))
GRID = (*HALVES, *SQUARES)  # the 19 boxes of "multiscale", the largest first


@dataclass(frozen=True, eq=False)
class Boxes:
    """The regions of every image of a data set, in its order.

    x0, y0, x1, y1 are fractions of the image's width and height; region 0 is the whole image, 0, 0, 1, 1.
    """

    array: Float32[np.ndarray, "image region 4"]  # 20 regions, but for those of imported features
    provider: str
    count: Int64[np.ndarray, " image"]  # an image's boxes from the provider, the whole image included; then fillers

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the provider's name and all values."""
        return fingerprint([self.provider, sha256(self.array.tobytes() + self.count.tobytes()).hexdigest()])

    def pixels(
        self, dataset: CaptionDataset, images: Int64[np.ndarray, " some"]
    ) -> Float32[np.ndarray, "some region 4"]:
        """The boxes of some images of the data set in pixels."""
        sizes = np.array([dataset.images[int(i)].shape[1::-1] for i in images], np.float32).reshape(-1, 1, 2)
        return self.array[images] * np.concatenate([sizes, sizes], 2)


def region_boxes(
    dataset: Pictures, provider: str, store: Path | None = None, progress: Report | bool | None = None
) -> Boxes:
    """The whole image and up to 19 boxes of every image, filled up to 20 regions with the multi-scale grid.

    - "multiscale": the grid alone, a fixed one: three upright halves of the image (left, middle, right), then 4 x 4
      boxes of two fifths of its width and height, one fifth apart, row by row;
    - "objects": the distinct true boxes of the phrases of an image's captions, the largest first: a perfect detector,
      so an upper bound;
    - "file": `regions.json` beside the data set's split file (see `read_regions`);
    - a name of `capbench.vision.networks.DETECTORS`: the distinct boxes with the highest scores of those that
      torchvision's detector with COCO weights reports by default.

    Boxes from a file or a detector are kept in `<store>/boxes/<fingerprint>.npz`, keyed by images, file or weights,
    kind of device and code version; `store`, `progress`, damage and two processes are as for `features`. Raises
    CapbenchError for an unknown provider, one that has no boxes for this data set, a bad file, and missing weights or
    images. Source: Karpathy and Fei-Fei (CVPR 2015), section 3.1.1.
    """
    if provider not in PROVIDERS:
        raise CapbenchError(f"no provider of regions {provider!r}; there is {', '.join(PROVIDERS)}")
    if provider == "multiscale":
        return _boxes([GRID] * len(dataset.images), provider)
    if provider == "objects":
        return _boxes(_objects(dataset), provider)
    spec = {"images": dataset.images.fingerprint, "provider": provider, "version": VERSION}
    if provider == "file":
        regions_file = _regions_file(dataset)
        spec |= {"file": sha256(regions_file.read_bytes()).hexdigest()}
        proposed: Iterator[Sequence[Box]] = read_regions(regions_file, dataset)
    else:
        detector = _detector(provider)
        device = next(detector.parameters()).device.type
        spec |= {"weights": hash_tensors(detector.state_dict()), "computed_in": f"float32 on {device}"}
        proposed = (_detect(detector, dataset.images[i]) for i in range(len(dataset.images)))
    path, total = (store or cache_folder()) / "boxes" / f"{fingerprint(spec)}.npz", len(dataset.images)
    sample = sample_of(dataset.images)
    if boxes := _read(path, provider, total, sample):
        return boxes
    check_writable(path.parent)
    with locked(path.with_suffix(".lock"), LOCK_SECONDS):
        if boxes := _read(path, provider, total, sample):
            return boxes
        dataset.images.check()
        with reporter(progress, f"regions of {dataset.name}") as report:
            boxes = _boxes(proposed, provider, lambda done: report(done, total))
        atomic_write(path, partial(np.savez, array=boxes.array, count=boxes.count, pictures=sample))
        return boxes


def _boxes(
    boxes_of_images: Iterable[Sequence[Box]], provider: str, done: Callable[[int], None] = lambda images: None
) -> Boxes:
    rows, count = [], []
    for boxes in boxes_of_images:
        rows.append(np.array([WHOLE, *boxes[: REGIONS - 1], *GRID][:REGIONS], np.float32))
        count.append(min(1 + len(boxes), REGIONS))
        done(len(rows))
    return Boxes(np.stack(rows), provider, np.array(count, np.int64))


def _read(path: Path, provider: str, images: int, sample: str) -> Boxes | None:
    """The stored boxes; None if there are none, damaged ones (a zip archive has checksums) or those of other pictures.

    `sample` is that of the pictures; files of old have none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            boxes = Boxes(stored["array"], provider, stored["count"])
            others = "pictures" in stored and str(stored["pictures"]) != sample
    except FileNotFoundError:
        return None
    except Exception as error:  # BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError
        warnings.warn(f"the boxes in {path} are damaged ({error}); they are made again", stacklevel=3)
        return None
    if others:
        warnings.warn(f"the boxes in {path} are of other pictures; they are made again", stacklevel=3)
        return None
    intact = boxes.array.shape == (images, REGIONS, 4) and boxes.array.dtype == np.float32
    return boxes if intact and boxes.count.shape == (images,) else None


def _objects(dataset: Pictures) -> Iterator[Sequence[Box]]:
    if not isinstance(dataset, CaptionDataset) or dataset.objects is None:
        raise CapbenchError(f"{dataset.name} has no boxes of objects; take regions of multiscale, file or a detector")
    for i, boxes in enumerate(dataset.objects):
        height, width = dataset.images[i].shape[:2]
        yield _fractions(boxes, width, height)


def _fractions(boxes: Iterable[Box], width: int, height: int) -> list[Box]:
    return [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes]


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise ValueError(f"{field} is no finite number of pixels: {value!r}"[:120])
    return float(value)


def _scored(value: Any) -> tuple[Box, float]:
    """A box of the file in any of its styles, and its score. Raises ValueError naming the field."""
    if isinstance(value, list):
        names = ("x0", "y0", "x1", "y1")
        if len(value) != 4:
            raise ValueError(f"a box is [x0, y0, x1, y1], found {len(value)} values")
        value = dict(zip(names, value, strict=True))
    elif not isinstance(value, dict):
        raise ValueError("a box is a list of four numbers or an object")
    elif "x" in value or "y" in value:
        names = ("x", "y", "w" if "w" in value else "width", "h" if "h" in value else "height")
    else:
        names = ("xmin", "ymin", "xmax", "ymax")
    for name in names:
        if name not in value:
            raise ValueError(f"{name} is missing; a box has x, y, width, height or xmin, ymin, xmax, ymax")
    x0, y0, x1, y1 = (_number(value[name], name) for name in names)
    if names[0] == "x":
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{names[2] if x1 <= x0 else names[3]} makes the box empty or reversed")
    score = -math.inf if value.get("score") is None else _number(value["score"], "score")
    return (x0, y0, x1, y1), score


class _RegionFile(Checked):
    images: dict[str, list[Annotated[tuple[Box, float], PlainValidator(_scored)]]]

    @model_validator(mode="before")
    @classmethod
    def _wrap(cls, value: Any) -> Any:
        return {"images": value}


def read_regions(path: Path, dataset: Pictures) -> Iterator[list[Box]]:
    """The boxes of each image of `dataset` in a `regions.json`, as fractions, at most 19.

    The file is a JSON object from image names as in the data set ("val2014/COCO_val2014_....jpg") to lists of boxes in
    pixels of the upright image. A box is `[x0, y0, x1, y1]` or an object with `x`, `y`, and `width` and `height` or
    `w` and `h` (as in Visual Genome), or with `xmin`, `ymin`, `xmax`, `ymax` (as in Flickr30K Entities), and
    optionally a `score`. The highest scores come first, then boxes without a score in their order. Other fields and
    other images are ignored; up to a pixel outside the image is cut off. Raises CapbenchError naming the file, the
    image, the number of the box (from 0) and the field.
    """
    known = read_json(path, _RegionFile).images
    missing = [name for name in dataset.image_names if name not in known]
    if missing:
        raise CapbenchError(
            f"{path} has no entry for {len(missing):,} of {len(dataset.image_names):,} images: {listed(missing)}; "
            "add them, with an empty list where there is no box"
        )
    for i, name in enumerate(dataset.image_names):
        height, width = dataset.images[i].shape[:2]
        boxes = [
            (_clipped(box, width, height, f"{path}: {name}[{n}]"), score) for n, (box, score) in enumerate(known[name])
        ]
        boxes.sort(key=lambda scored: -scored[1])
        yield _fractions((box for box, _ in boxes[: REGIONS - 1]), width, height)


def _clipped(box: Box, width: int, height: int, place: str) -> Box:
    limits = (width, height, width, height)
    size = f"the image of {width} x {height} pixels"
    for field, value, limit in zip(("x0", "y0", "x1", "y1"), box, limits, strict=True):
        if not -1 <= value <= limit + 1:
            raise CapbenchError(f"{place}: {field} is {value:g}, outside {size}")
    x0, y0, x1, y1 = (min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True))
    if x1 <= x0 or y1 <= y0:
        raise CapbenchError(f"{place}: the box lies outside {size}")
    return x0, y0, x1, y1


def _regions_file(dataset: Pictures) -> Path:
    if not isinstance(dataset.images, ImageFolder):
        raise CapbenchError(f"there is no folder for a {FILE} of {dataset.name}; take regions of multiscale or objects")
    root = dataset.images.root
    places = [folder / FILE for folder in ([root.parent, root] if root.name == "images" else [root])]
    for path in places:
        if path.is_file():
            return path
    raise CapbenchError(f"{places[0]} is missing; put a JSON object from image names to lists of boxes there")


@lru_cache(maxsize=1)
def _detector(name: str) -> nn.Module:
    return load_detector(name).to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def _detect(detector: nn.Module, pixels: UInt8[np.ndarray, "height width 3"]) -> list[Box]:
    """The up to 19 distinct boxes of highest score in a picture, as fractions."""
    height, width = pixels.shape[:2]
    image = torch.tensor(pixels, device=next(detector.parameters()).device).permute(2, 0, 1).float() / 255
    (detected,) = detector([image])
    boxes = detected["boxes"][detected["scores"].argsort(descending=True, stable=True)].double().cpu()
    clamped = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height))).tolist()
    kept = [box for box in dict.fromkeys(map(tuple, clamped)) if box[0] < box[2] and box[1] < box[3]]
    return _fractions(kept[: REGIONS - 1], width, height)
