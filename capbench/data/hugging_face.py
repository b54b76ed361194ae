"""A data set of Hugging Face as a folder of the user's own: `images/` and `captions.jsonl`. Needs `capbench[hf]`."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.base.progress import reporter
from capbench.data.captions import SPLITS, one_line

SPLIT_OF = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
CAPTIONS = ("caption", "captions", "text", "sentences", "sentences_raw", "raw")
SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None where it is found by type and name."""

    image: str | None = None
    caption: str | None = None
    split: str | None = None


def import_dataset(source: str, folder: Path, columns: Columns, split: str | None = None) -> None:
    """Write the images and captions of `source` into a new folder.

    `source` is OWNER/NAME on the hub, a folder of `save_to_disk`, or a folder of parquet or arrow files. Pictures are
    written as they are stored; one that several rows have is written once, with all their captions. An image's split is
    `split`, or what its split column says, or the name of the source's own split.

    Raises CapbenchError without the extra, for a folder that is there already, a source that cannot be opened, a column
    that is missing or ambiguous, an unknown split, and a row without a picture or a caption. Nothing is written then.
    """
    if folder.exists():
        raise CapbenchError(f"{folder} is there already; name a new folder")
    parts = _opened(source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise CapbenchError(f"cannot write to {folder.parent}: {error.strerror or error}") from error
    try:
        (part / "images").mkdir()
        with (part / "captions.jsonl").open("w", encoding="utf-8") as file:
            for image, captions, where in _written(parts, part / "images", columns, split):
                entry = {"image": image, "caption": captions, "split": where}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        part.chmod(0o755)
        part.rename(folder)
    except OSError as error:
        raise CapbenchError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _opened(source: str) -> Mapping[str, Any]:
    """The data set of each split of a source; "" is the name of the only one of a source without splits."""
    try:
        import datasets
    except ImportError as error:
        raise CapbenchError(f"data sets of Hugging Face need an extra: pip install 'capbench[hf]' ({error})") from error
    path = Path(source).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            opened = datasets.load_from_disk(str(path))
        elif path.is_dir():
            opened = datasets.load_dataset(_format(path), data_dir=str(path))
        else:
            opened = datasets.load_dataset(source)
    except CapbenchError:
        raise
    except Exception as error:  # the library raises its own errors, and those of pyarrow and of the network
        said = " ".join(str(error).split())[:300]
        raise CapbenchError(f"cannot open the data set {source}: {type(error).__name__}: {said}") from error
    return dict(opened) if isinstance(opened, dict) else {"": opened}


def _format(path: Path) -> str:
    for name in ("parquet", "arrow"):
        if next(path.rglob(f"*.{name}"), None):
            return name
    raise CapbenchError(f"{path} holds no data set of Hugging Face: no dataset_info.json, *.parquet or *.arrow")


def _written(
    parts: Mapping[str, Any], images: Path, columns: Columns, split: str | None
) -> Iterator[tuple[str, list[str], str]]:
    """Write the pictures; yield the name, captions and split of the image of each row."""
    import datasets

    names: dict[tuple[str, str], str] = {}  # of the images, by split and content
    total, done = sum(len(part) for part in parts.values()), 0
    with reporter(True, "images of the data set") as report:
        for own, part in parts.items():
            image, caption, column = _columns(part, columns)
            kept = [image, caption, *([column] if column and not split else [])]
            stored = part.select_columns(kept).cast_column(image, datasets.Image(decode=False))
            for number, row in enumerate(stored):
                place = f"row {number}{f' of {own}' if own else ''}"
                where = split or _split(row[column] if column else own, place, column)
                content, captions = _content(row[image], place), _captions(row[caption], place, caption)
                key = (where, hashlib.sha256(content).hexdigest())
                if key not in names:
                    names[key] = f"{where}/{len(names):07d}{_suffix(content, place)}"
                    (images / where).mkdir(exist_ok=True)
                    (images / names[key]).write_bytes(content)
                yield names[key], captions, where
                done += 1
                report(done, total)


def _columns(part: Any, asked: Columns) -> tuple[str, str, str | None]:
    """The columns of images, of captions and, if there is one, of splits."""
    have = part.column_names
    for name in (asked.image, asked.caption, asked.split):
        if name is not None and name not in have:
            raise CapbenchError(f"the data set has no column {name!r}; it has {', '.join(have)}")
    pictures = [name for name, kind in part.features.items() if type(kind).__name__ == "Image"]
    if asked.image is None and len(pictures) != 1:
        found = ", ".join(pictures) or "none"
        raise CapbenchError(f"columns of images: {found}, among {', '.join(have)}; choose with --image-column")
    texts = [name for name in CAPTIONS if name in have]
    if asked.caption is None and len(texts) != 1:
        found = ", ".join(texts) or "none"
        raise CapbenchError(f"columns of captions: {found}, among {', '.join(have)}; choose with --caption-column")
    split = asked.split or ("split" if "split" in have else None)
    return asked.image or pictures[0], asked.caption or texts[0], split


def _split(name: object, place: str, column: str | None) -> str:
    if name not in SPLIT_OF:
        known = ", ".join(SPLIT_OF)
        fault = f"its {column or 'split'} is {name!r}, which is none of {known}" if name != "" else "it names no split"
        raise CapbenchError(f"{place}: {fault}; choose one of {', '.join(SPLITS)} for all with --split")
    return SPLIT_OF[str(name)]


def _content(value: Any, place: str) -> bytes:
    """The bytes of the picture file."""
    content = value.get("bytes") if isinstance(value, dict) else None
    if content is None and isinstance(value, dict) and value.get("path"):
        with suppress(OSError):
            content = Path(value["path"]).read_bytes()
    if not content:
        raise CapbenchError(f"{place} has no picture, nor a file that can be read; leave the row out")
    return bytes(content)


def _suffix(content: bytes, place: str) -> str:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return SUFFIX[picture.format or ""]
    except Exception as error:  # Pillow's readers raise OSError, ValueError, SyntaxError and more
        raise CapbenchError(f"{place} is no picture in {', '.join(SUFFIX)}; leave the row out") from error


def _captions(value: Any, place: str, column: str) -> list[str]:
    captions = [value] if isinstance(value, str) else value
    whole = isinstance(captions, list) and captions and all(isinstance(each, str) and each.strip() for each in captions)
    if not whole:
        shown = repr(value)[:80]
        raise CapbenchError(f"{place}: its {column} is {shown}; a caption is a text, or a list of texts, not empty")
    return [one_line(caption) for caption in captions]
