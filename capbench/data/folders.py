"""A data set of the user's own: a folder with a split file or a table, and the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.data.images import ImageFolder
from capbench.data.karpathy_split import read_karpathy_split
from capbench.data.registered import Own
from capbench.data.tables import read_table
from capbench.data.tokenizers import KARPATHY, UNICODE, WHITESPACE, tokenize

TABLES = ("captions.csv", "captions.jsonl")
AGREEMENT = 0.99  # of the captions of a split file have the tokens that their tokeniser gives, and more
FORMAT = "dataset*.json in Karpathy's format, captions.csv (columns image, caption, split) or captions.jsonl"


def read_own(own: Own, *, pictures: bool = True) -> CaptionDataset:
    """The data set of a folder that holds one of `FORMAT`, or of such a file, which may have another name.

    Images lie in `images/` or beside the file: where fewer are missing. The tokeniser of a table is `unicode` unless
    another one is named. A split file has tokens: they stay, and their tokeniser is the one that makes them from the
    raw captions, else `whitespace`; if `karpathy` or `unicode` is named, it makes them anew. Without `pictures` they
    need not be there.

    Raises CapbenchError naming file, line and value of a fault, and with a list of the missing images.
    """
    file = _file(own.path)
    root = file.parent
    if file.suffix == ".json":
        dataset = _of_split_file(file, own)
    else:
        dataset = read_table(file, root / "images", own.name, own.tokenizer or UNICODE)
    inside, beside = (ImageFolder(place, dataset.image_names) for place in (root / "images", root))
    try:
        missing = len(inside.missing())
        if not inside.root.is_dir() or (missing and len(beside.missing()) < missing):
            dataset = replace(dataset, images=beside)
        if pictures:
            dataset.images.check()
    except CapbenchError as error:
        raise CapbenchError(f"{error}; put them there, or correct {file}") from error
    return replace(dataset, place=own.place)


def _file(path: Path) -> Path:
    """The one file that says which captions describe which image."""
    if path.is_file():
        if path.suffix not in (".json", ".csv", ".jsonl"):
            raise CapbenchError(f"{path} is no data set; give {FORMAT}")
        return path
    if not path.is_dir():
        raise CapbenchError(f"no such folder: {path}; a data set of your own is a folder with {FORMAT}")
    found = [*sorted(path.glob("dataset*.json")), *(path / name for name in TABLES if (path / name).exists())]
    if not found:
        raise CapbenchError(f"{path} holds no data set; put {FORMAT} there, and the images into {path / 'images'}")
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise CapbenchError(f"{path} holds {names}; name the one that you mean, as in {found[0]}")
    return found[0]


def _of_split_file(file: Path, own: Own) -> CaptionDataset:
    dataset = read_karpathy_split(file, file.parent / "images", own.name, "train")
    tokenizer = own.tokenizer
    if not tokenizer:
        return replace(dataset, tokenizer=_tokenizer_of(dataset.captions, dataset.tokens))
    if tokenizer == WHITESPACE:
        return replace(dataset, tokenizer=tokenizer)
    tokens = tuple(tuple(tokenize(caption, tokenizer)) for caption in dataset.captions)
    return replace(dataset, tokens=tokens, tokenizer=tokenizer)


def _tokenizer_of(captions: Sequence[str], tokens: Sequence[Sequence[str]]) -> str:
    """The tokeniser that makes these tokens of these captions; `whitespace` where none does."""
    for tokenizer in (KARPATHY, UNICODE):
        pairs = zip(captions, tokens, strict=True)
        equal = sum(tokenize(caption, tokenizer) == list(words) for caption, words in pairs)
        if equal >= AGREEMENT * len(captions):
            return tokenizer
    return WHITESPACE
