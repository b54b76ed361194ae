"""The captions of a record: word numbers of a run's vocabulary, or the text itself of another system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import Result

NUMBERS, TEXT, ENDS = "captions", "captions_utf8", "captions_end"  # arrays of a record


def encoded(captions: Sequence[str]) -> dict[str, np.ndarray]:
    """Captions as numbers: their UTF-8 bytes one after another, and where each ends.

    >>> encoded(["a dog", "é"])["captions_end"].tolist()
    [5, 7]
    """
    texts = [caption.encode() for caption in captions]
    ends = np.array(list(accumulate(map(len, texts))), np.int64)
    return {TEXT: np.frombuffer(b"".join(texts), np.uint8), ENDS: ends}


def decoded(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The captions that `encoded` made numbers of."""
    text = arrays[TEXT].astype(np.uint8).tobytes()
    return [text[start:end].decode() for start, end in pairwise([0, *arrays[ENDS].tolist()])]


def captions_of(record: Result, arrays: Mapping[str, np.ndarray], dataset: CaptionDataset) -> list[str] | None:
    """The caption of each image that a record scored; None for a record without captions.

    Numbers are words of the vocabulary that the run's recipe makes of the training captions.
    Raises CapbenchError where the vocabulary has another size than the run's.
    """
    if TEXT in arrays:
        return decoded(arrays)
    if NUMBERS not in arrays:
        return None
    min_count = int(str(record.recipe.get("min_count", 5)))
    vocabulary = Vocabulary.build(dataset.split("train").tokens, min_count, dataset.tokenizer)
    if len(vocabulary) != record.vocabulary_size:
        raise CapbenchError(
            f"{record.file}: its captions are of a vocabulary of {record.vocabulary_size:,} words, and {dataset.name} "
            f"makes {len(vocabulary):,} of min_count {min_count}; give the data that it was run on"
        )
    numbers = arrays[NUMBERS]
    best = numbers[:, 0] if numbers.ndim == 3 else numbers
    return [" ".join(vocabulary.decode(words)) for words in best.tolist()]
