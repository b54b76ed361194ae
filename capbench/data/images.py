"""From picture files to uint8 RGB pixels, and the crops that an encoder sees."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.data.captions import stays_inside

MAX_PIXELS = 50_000_000
"""A picture larger than this is refused before its pixels are decoded."""

LISTED = 20  # names spelled out in an error message


def decode(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture file as uint8 RGB [height, width, 3].

    The EXIF rotation is applied. Grey and palette pictures become RGB, CMYK is converted without a colour
    profile, 16-bit grey keeps its upper eight bits, and what is transparent lies on white.
    Raises CapbenchError naming the file when it is missing, empty, truncated, not a picture, or larger than
    `MAX_PIXELS`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CapbenchError(f"cannot read the image {path}: {error.strerror or error}") from error
    if not content:
        raise CapbenchError(f"the image {path} is an empty file; fetch it again")
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise CapbenchError(
                f"the image {path} has {image.width} x {image.height} pixels, more than the "
                f"{MAX_PIXELS:,} allowed; shrink it or leave it out"
            )
        image.load()
        return np.array(_rgb(ImageOps.exif_transpose(image)))
    except CapbenchError:
        raise
    except Image.DecompressionBombError as error:
        raise CapbenchError(f"the image {path} is too large: {error}; shrink it or leave it out") from error
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        raise CapbenchError(f"the image {path} {_what(content)} ({error}); fetch it again") from error


def _what(content: bytes) -> str:
    if content.lstrip()[:1] == b"<":
        return "holds HTML or XML and no picture"
    if content.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")):
        return "is truncated or damaged"
    return "is not a picture that can be decoded"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class ImageFolder:
    """The pictures `names` under the folder `root`: an `Images` that decodes when asked for.

    `names` are relative paths with forward slashes. Raises CapbenchError when one leads out of the folder.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = tuple(names)
        outside = [name for name in self.names if not stays_inside(name)]
        if outside:
            raise CapbenchError(f"image names that lead out of {root}: {_listed(outside)}; correct the split file")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [height, width, 3]. Raises CapbenchError naming the file; see `decode`."""
        return decode(self.root / self.names[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and file sizes in order, not over the pixels.

        It costs one look at each file's size, so a picture that is replaced by another of equal size is not
        noticed. The folder's place does not count.
        """
        self.check()
        return fingerprint([(name, (self.root / name).stat().st_size) for name in self.names])

    def check(self) -> None:
        """Raises CapbenchError that counts the missing files and lists them."""
        if not self.root.is_dir():
            raise CapbenchError(f"there is no image folder {self.root}; put the {len(self):,} images there")
        missing = [name for name in self.names if not (self.root / name).is_file()]
        if missing:
            raise CapbenchError(
                f"{len(missing):,} of {len(self):,} images are missing from {self.root}: {_listed(missing)}"
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED:,} more"


def _resized(
    image: NDArray[np.uint8], width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Tensor:
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _shorter_side(image: NDArray[np.uint8], size: int) -> Tensor:
    """Bilinear and antialiased, the shorter side to size * 256 // 224 (256 pixels where `size` is 224)."""
    side = size * 256 // 224
    height, width = image.shape[:2]
    if height < width:
        return _resized(image, width * side // height, side)
    return _resized(image, side, height * side // width)


def one_crop(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "3 size size"]:
    """The centre `size` x `size` pixels after the shorter side is made size * 256 / 224 ("1C")."""
    resized = _shorter_side(image, size)
    top, left = round((resized.shape[1] - size) / 2), round((resized.shape[2] - size) / 2)
    return resized[:, top : top + size, left : left + size]


def whole_image(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "3 size size"]:
    """The whole image squeezed to `size` x `size`: nothing at its borders is lost, its aspect is ("whole")."""
    return _resized(image, size, size)


def ten_crops(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "10 3 size size"]:
    """Top left, top right, bottom left, bottom right and centre of the resized image, then of its mirror ("10C")."""
    resized = _shorter_side(image, size)
    down, across = resized.shape[1] - size, resized.shape[2] - size
    places = [(0, 0), (0, across), (down, 0), (down, across), (round(down / 2), round(across / 2))]
    sides = (resized, resized.flip(2))
    return torch.stack([side[:, top : top + size, left : left + size] for side in sides for top, left in places])


def mirrored(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "2 3 size size"]:
    """The whole image squeezed to `size` x `size`, and its mirror."""
    squeezed = whole_image(image, size)
    return torch.stack([squeezed, squeezed.flip(2)])


def random_crop(image: NDArray[np.uint8], size: int, generator: np.random.Generator) -> UInt8[Tensor, "3 size size"]:
    """A part of 8 to 100 % of the area and of aspect 3/4 to 4/3, resized to `size`, mirrored half the time.

    The same generator state gives the same crop. After ten tries that do not fit, the largest centre part of
    an allowed aspect is taken. Source: Szegedy et al., "Going deeper with convolutions", section 6.
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
