"""Picture files, their uint8 RGB pixels, and the crops that an encoder sees."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from capbench.base.errors import CapbenchError, listed
from capbench.base.files import fingerprint, printable, read_bytes, sha256
from capbench.data.captions import Box, CaptionDataset, Images, path_fault

MAX_PIXELS = 50_000_000  # a larger picture is refused before its pixels are decoded
SIXTEEN_BITS = ("PPM", "PNG")  # formats whose pixels of Pillow's mode "I" have 16 bits
SAMPLED = 256  # pictures of a folder whose contents are looked at
MAX_ASPECT = 200  # a thinner one would need gigabytes once its shorter side has the encoder's size


def decode(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB pixels of a picture file, its EXIF rotation applied.

    Grey and palette pictures become RGB, CMYK is converted without a colour profile, 16-bit grey keeps its upper eight
    bits, transparent pixels lie on white. Raises CapbenchError naming the file when it is missing, empty, truncated,
    not a picture, larger than `MAX_PIXELS`, or of numbers whose range is unknown (32 bits, floats).
    """
    place = f"the image {printable(path)}"
    content = read_bytes(path, place)
    if not content:
        raise CapbenchError(f"{place} is an empty file; fetch it again")
    try:
        image = Image.open(io.BytesIO(content))
        size = f"{image.width} x {image.height} pixels"
        if image.width * image.height > MAX_PIXELS:
            raise CapbenchError(f"{place} has {size}, more than the {MAX_PIXELS:,} allowed; shrink it or leave it out")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise CapbenchError(
                f"{place} of {size} is more than {MAX_ASPECT} times as long as wide; crop it or leave it out"
            )
        image.load()
        if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
            kind = "floats" if image.mode == "F" else "whole numbers of 32 bits"
            raise CapbenchError(f"{place} has {kind} for pixels, of an unknown range; save it with 8 or 16 bits")
        return np.array(_rgb(ImageOps.exif_transpose(image)))
    except CapbenchError:
        raise
    except Image.DecompressionBombError as error:
        raise CapbenchError(f"{place} is too large: {error}; shrink it or leave it out") from error
    except UnidentifiedImageError as error:
        raise CapbenchError(f"{place} {_what(content)}; fetch it again") from error
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        raise CapbenchError(f"{place} {_what(content)} ({error}); fetch it again") from error


def _what(content: bytes) -> str:
    if content.lstrip()[:1] == b"<":
        return "holds HTML or XML and no picture"
    if content.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")):
        return "is truncated or damaged"
    return "is not a picture that can be decoded"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


class PictureFiles:
    """Pictures and images of no data set: files anywhere on the disk, decoded on access."""

    name = "the pictures"

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.image_names = tuple(map(printable, paths))

    @property
    def images(self) -> PictureFiles:
        return self

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [height, width, 3]. Raises CapbenchError as `decode` does."""
        return decode(self.paths[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the contents in order: names and places do not count. Raises CapbenchError naming a file."""
        try:
            return fingerprint([sha256(path) for path in self.paths])
        except OSError as error:
            raise CapbenchError(f"cannot read the image {error.filename}: {error.strerror or error}") from error

    def check(self) -> None:
        """A missing file fails where it is read."""


Pictures = CaptionDataset | PictureFiles  # named images


class ImageFolder:
    """The images `names` under the folder `root`, decoded on access.

    `names` are relative paths with forward slashes. Raises CapbenchError for one that leads out of the folder.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = tuple(names)
        outside = [name for name in self.names if path_fault(name)]
        if outside:
            raise CapbenchError(
                f"image names that are no paths inside {root}: {listed(outside)}; correct the split file"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [height, width, 3]. Raises CapbenchError as `decode` does."""
        return decode(self.root / self.names[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and file sizes in order; the folder's place does not count.

        The pixels are not read, so a picture replaced by another of equal size goes unnoticed; see `sample`.
        """
        self.check()
        return fingerprint([(name, (self.root / name).stat().st_size) for name in self.names])

    @cached_property
    def sample(self) -> str:
        """SHA-256 over the contents of at most `SAMPLED` pictures, evenly spaced: it tells equal fingerprints apart."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), SAMPLED)).astype(int)
        return fingerprint([_digest(self.root / self.names[i]) for i in chosen])

    def missing(self) -> list[str]:
        """The names that are no files."""
        return [name for name in self.names if not (self.root / name).is_file()]

    def check(self) -> None:
        """Raises CapbenchError that counts and lists the missing files."""
        if not self.root.is_dir():
            raise CapbenchError(f"there is no image folder {self.root}; put the {len(self):,} images there")
        missing = self.missing()
        if missing:
            raise CapbenchError(
                f"{len(missing):,} of {len(self):,} images are missing from {self.root}: {listed(missing)}"
            )


def sample_of(images: Images) -> str:
    """`ImageFolder.sample`; empty for images whose fingerprint tells any two contents apart."""
    return images.sample if isinstance(images, ImageFolder) else ""


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        return ""  # reading it as a picture says why


def without_images(dataset: CaptionDataset, names: Sequence[str]) -> CaptionDataset:
    """The data set without some images that cannot be decoded, and without their captions; a note lists them."""
    kept = np.array([name not in set(names) for name in dataset.image_names])
    rows, captions = np.flatnonzero(kept), np.flatnonzero(kept[dataset.image_of_caption])

    def of(values: Sequence[Any], places: NDArray[np.int64]) -> tuple[Any, ...]:
        return tuple(values[i] for i in places)

    folder, image_names = dataset.images, of(dataset.image_names, rows)
    assert isinstance(folder, ImageFolder), "drawn scenes are always decodable"
    return replace(
        dataset,
        images=ImageFolder(folder.root, image_names),
        image_names=image_names,
        image_ids=of(dataset.image_ids, rows),
        split_of_image=of(dataset.split_of_image, rows),
        captions=of(dataset.captions, captions),
        tokens=of(dataset.tokens, captions),
        caption_ids=of(dataset.caption_ids, captions),
        image_of_caption=(np.cumsum(kept) - 1)[dataset.image_of_caption[captions]],
        phrases=None if dataset.phrases is None else of(dataset.phrases, captions),
        notes=(*dataset.notes, f"{len(names):,} images left out, not decodable: {listed(names)}"),
    )


def _resized(image: NDArray[np.uint8], width: int, height: int, box: Box | None = None) -> Tensor:
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _shorter_side(image: NDArray[np.uint8], size: int) -> Tensor:
    """Resize bilinearly, with antialiasing, until the shorter side has size * 256 // 224 pixels."""
    side, (height, width) = size * 256 // 224, image.shape[:2]
    return _resized(image, width * side // min(width, height), height * side // min(width, height))


def _crops(resized: Tensor, size: int) -> list[Tensor]:
    """The four corners and the centre."""
    down, across = resized.shape[1] - size, resized.shape[2] - size
    places = [(0, 0), (0, across), (down, 0), (down, across), (round(down / 2), round(across / 2))]
    return [resized[:, top : top + size, left : left + size] for top, left in places]


def one_crop(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "3 size size"]:
    """The centre `size` x `size` pixels, the shorter side resized to size * 256 // 224 ("1C")."""
    return _crops(_shorter_side(image, size), size)[4]


def whole_image(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "3 size size"]:
    """The whole image squeezed to `size` x `size`: it keeps its borders and loses its aspect ("whole")."""
    return _resized(image, size, size)


def ten_crops(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "10 3 size size"]:
    """The four corners and the centre of the resized image, then those of its mirror ("10C")."""
    resized = _shorter_side(image, size)
    return torch.stack([*_crops(resized, size), *_crops(resized.flip(2), size)])


def mirrored(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "2 3 size size"]:
    """The whole image squeezed to `size` x `size`, and its mirror."""
    squeezed = whole_image(image, size)
    return torch.stack([squeezed, squeezed.flip(2)])


def random_crop(image: NDArray[np.uint8], size: int, generator: np.random.Generator) -> UInt8[Tensor, "3 size size"]:
    """A crop of 8 to 100 % of the area and aspect 3/4 to 4/3, resized to `size`, mirrored half the time.

    The same generator state gives the same crop. If ten draws do not fit, it is the largest centre crop of an allowed
    aspect. Source: Szegedy et al., "Going deeper with convolutions", section 6.
    """
    height, width = image.shape[:2]
    ratio = np.log(4 / 3)
    for _ in range(10):
        area = generator.uniform(0.08, 1.0) * height * width
        aspect = np.exp(generator.uniform(-ratio, ratio))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(generator.integers(limit + 1)) for limit in (height - h, width - w))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        top, left = (height - h) // 2, (width - w) // 2
    crop = _resized(image, size, size, (float(left), float(top), float(left + w), float(top + h)))
    return crop.flip(2) if generator.random() < 0.5 else crop
