"""COCO's own caption files, such as captions_val2014.json (Chen et al., arXiv 1504.00325)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.data.checked_json import Checked, Line, read_json
from capbench.data.images import ImageFolder
from capbench.data.vocabulary import tokenize


def read_coco_captions(path: Path, image_folder: Path, split: str, name: str = "coco") -> CaptionDataset:
    """The images and captions of one file, all of them in `split` (train, val or test).

    The published captioning and retrieval numbers are on Karpathy's split of these images (`load_dataset("coco")`);
    this is for those of COCO's own division, and for any file of its format:

        dataset = read_coco_captions(Path("captions_val2014.json"), Path("val2014"), "val")
        val = dataset.split("val")

    Images keep the order of the file; captions are grouped by image, each image's in the order of the file. Tokens
    are those of `tokenize`; line breaks in a caption become spaces.
    Raises CapbenchError naming file and field when the file is missing, malformed or contradicts itself.
    """
    file = read_json(path, _File)
    index = {image.id: position for position, image in enumerate(file.images)}
    strange = [annotation for annotation in file.annotations if annotation.image_id not in index]
    if strange:
        raise CapbenchError(
            f"{path}: annotation {strange[0].id} is of image_id {strange[0].image_id}, which is not among the "
            f"images ({len(strange):,} such annotations)"
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
