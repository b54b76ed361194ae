"""Split files in the format of Karpathy and Fei-Fei (CVPR 2015): Flickr8K, Flickr30K and COCO."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, field_validator, model_validator

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset, duplicates, one_line, path_fault
from capbench.data.checked_json import Checked, Line, read_json
from capbench.data.images import ImageFolder

Restval = Literal["train", "drop", "error"]


def read_karpathy_split(path: Path, image_folder: Path, name: str, restval: Restval) -> CaptionDataset:
    """The data set of a split file, in its order and with its tokens.

    Images lie in `image_folder`, in the subfolder that COCO's `filepath` names; an id is a `cocoid` or else an `imgid`.
    `restval` decides on COCO's 30,504 validation images outside the published val and test: "train" trains on them, as
    most papers do, "drop" leaves them out, "error" refuses them; `notes` records it. A caption may be empty; line
    breaks become spaces. Raises CapbenchError naming file and field when it is missing, malformed or contradictory.
    """
    if restval not in get_args(Restval):
        raise CapbenchError(f"restval is {restval!r}; choose one of {', '.join(get_args(Restval))}")
    file = read_json(path, _File)
    _refuse_twice(path, "imgid", (image.imgid for image in file.images))
    _refuse_twice(path, "sentid", (sentence.sentid for image in file.images for sentence in image.sentences))
    rest = sum(image.split == "restval" for image in file.images)
    if rest and restval == "error":
        raise CapbenchError(
            f"{path}: {rest:,} images are in the split 'restval'; choose restval='train' to train on them too, "
            "or restval='drop' to leave them out"
        )
    note = f"{rest:,} restval images {'in train' if restval == 'train' else 'left out'}"
    images = [image for image in file.images if image.split != "restval" or restval == "train"]
    sentences = [(index, sentence) for index, image in enumerate(images) for sentence in image.sentences]
    names = tuple(image.path for image in images)
    try:
        dataset = CaptionDataset(
            name=name,
            images=ImageFolder(image_folder, names),
            image_names=names,
            image_ids=tuple(image.imgid if image.cocoid is None else image.cocoid for image in images),
            split_of_image=tuple("train" if image.split == "restval" else image.split for image in images),
            captions=tuple(sentence.raw for _, sentence in sentences),
            tokens=tuple(tuple(sentence.tokens) for _, sentence in sentences),
            caption_ids=tuple(sentence.sentid for _, sentence in sentences),
            image_of_caption=np.array([index for index, _ in sentences], dtype=np.int64),
            notes=(note,) if rest else (),
        )
    except CapbenchError as error:
        raise CapbenchError(f"{path}: {error}") from error
    _refuse_twice(path, "the image", (image.path for image in file.images))  # those left out, too
    return dataset


def _clean_tokens(value: Any) -> Any:
    """Tokens without white space or lone surrogates; anything but a list of strings is left to the type check."""
    try:
        return one_line(" ".join(value)).split() if isinstance(value, list) else value
    except TypeError:
        return value


class _Sentence(Checked):
    tokens: Annotated[list[str], BeforeValidator(_clean_tokens)]
    raw: Line
    sentid: int
    imgid: int | None = None


class _Image(Checked):
    filename: str
    filepath: str | None = None
    imgid: int
    cocoid: int | None = None
    split: Literal["train", "val", "test", "restval"]
    sentences: list[_Sentence]
    sentids: list[int] | None = None

    @property
    def path(self) -> str:
        return f"{self.filepath}/{self.filename}" if self.filepath else self.filename

    @field_validator("filename", "filepath")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (fault := path_fault(value)):
            raise ValueError(f"it {fault}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> _Image:
        for sentence in self.sentences:
            if sentence.imgid not in (None, self.imgid):
                where = f"imgid {self.imgid} holds sentid {sentence.sentid}"
                raise ValueError(f"{where}, which says imgid {sentence.imgid}")
        ids = [sentence.sentid for sentence in self.sentences]
        if self.sentids is not None and sorted(self.sentids) != sorted(ids):
            raise ValueError(f"imgid {self.imgid} lists the sentids {self.sentids} and holds {ids}")
        return self


class _File(Checked):
    images: list[_Image]


def _refuse_twice(path: Path, field: str, values: Iterable[int | str]) -> None:
    twice = duplicates(list(values))
    if twice:
        raise CapbenchError(f"{path}: {field} {twice[0]} is given twice ({len(twice):,} such); correct the file")
