"""One line that says how a number came about, in the manner of sacrebleu (Post, WMT 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from capbench import __version__
from capbench.data.captions import Split
from capbench.evidence.records import SIGNED
from capbench.metrics.jars import java_version
from capbench.metrics.registry import AS_WRITTEN, COCO, NO_PENALTY

RULES = {  # of scoring captions, by their names on the command line
    "coco-caption": COCO,
    "coco-caption-no-bp": f"{COCO}, {NO_PENALTY}",
    "as-written": AS_WRITTEN,
    "as-written-no-bp": f"{AS_WRITTEN}, {NO_PENALTY}",
}


def of_captions(split: Split, protocol: str, rule: str, notes: Sequence[str] = ()) -> str:
    """ "captions|data:flickr8k:ae3df9a0|split:test|...|refs:5|tok:ptb|java:17.0.15|rule:coco-caption|version:0.1.0"."""
    own = split.dataset.metric_tokenizer
    java = "" if own else java_version()
    replaced = any(note.startswith("tokeniser: simple_tokenize") for note in notes)
    tokenizer = own or ("ptb" if java and not replaced else "simple")
    how = {"refs": _each(split.image_of_caption), "tok": tokenizer, "java": java or "none"}
    return _line("captions", split, protocol, how | {"rule": rule})


def of_retrieval(
    split: Split, image_of_caption: Int[np.ndarray, " caption"], protocol: str, how: dict[str, str]
) -> str:
    """ "retrieval|data:coco:...|split:test|protocol:5K|images:5000|captions:25000|ties:against|...|version:0.1.0"."""
    return _line("retrieval", split, protocol, {"captions": f"{len(image_of_caption)}", "ties": "against"} | how)


def noted(signature: str) -> str:
    """The note of an evaluation, and of its record, that holds the signature."""
    return SIGNED + signature


def renewed(signature: str) -> str:
    """The signature with the version of today, which has scored the same outputs again."""
    kept = [field for field in signature.split("|") if not field.startswith("version:")]
    return "|".join([*kept, f"version:{__version__}"])


def _line(group: str, split: Split, protocol: str, how: dict[str, str]) -> str:
    data = f"{split.dataset.name}:{split.dataset.fingerprint[:8]}"
    fields = {"data": data, "split": split.name, "protocol": protocol, "images": f"{len(split.image_index)}", **how}
    return "|".join([group, *(f"{name}:{value}" for name, value in fields.items()), f"version:{__version__}"])


def _each(image_of_caption: Int[np.ndarray, " caption"]) -> str:
    """How many captions an image has: "5", or "5-7"."""
    counts = np.bincount(image_of_caption)
    return f"{counts.min()}" + (f"-{counts.max()}" if counts.max() > counts.min() else "")
