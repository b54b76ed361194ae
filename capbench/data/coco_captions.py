"""COCO's own caption files, such as captions_val2014.json (Chen et al., arXiv 1504.00325)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.data.checked_json import Checked, Line, read_json
from capbench.data.images import ImageFolder
from capbench.data.tokenizers import tokenize


def read_coco_captions(path: Path, image_folder: Path, split: str, name: str = "coco") -> CaptionDataset:
    """The images and captions of a file in COCO's format, all in `split` (train, val or test).

    For COCO's own division; published numbers are on Karpathy's split of these images (`load_dataset("coco")`).

        val = read_coco_captions(Path("captions_val2014.json"), Path("val2014"), "val").split("val")

    Images keep the file's order; captions are grouped by image. Tokens are those of `tokenize`; line breaks become
    spaces. Raises CapbenchError naming file and field when the file is missing, malformed or contradicts itself.
    """
    file = read_json(path, _File)
    index = {image.id: position for position, image in enumerate(file.images)}
    stray = [annotation for annotation in file.annotations if annotation.image_id not in index]
    if stray:
        raise CapbenchError(
            f"{path}: annotation {stray[0].id} is of image_id {stray[0].image_id}, which is not among the "
            f"images ({len(stray):,} such annotations)"
        )
    annotations = sorted(file.annotations, key=lambda annotation: index[annotation.image_id])
    names = tuple(image.file_name for image in file.images)
    try:
        return CaptionDataset(
            name=name,
            images=ImageFolder(image_folder, names),
            image_names=names,
            image_ids=tuple(image.id for image in file.images),
            split_of_image=(split,) * len(names),
            captions=tuple(annotation.caption for annotation in annotations),
            tokens=tuple(tuple(tokenize(annotation.caption)) for annotation in annotations),
            caption_ids=tuple(annotation.id for annotation in annotations),
            image_of_caption=np.array([index[a.image_id] for a in annotations], dtype=np.int64),
        )
    except CapbenchError as error:
        raise CapbenchError(f"{path}: {error}") from error


class _Image(Checked):
    id: int
    file_name: str


class _Annotation(Checked):
    id: int
    image_id: int
    caption: Line


class _File(Checked):
    images: list[_Image]
    annotations: list[_Annotation]
