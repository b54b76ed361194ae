"""How metrics are shown: name, unit, digits, order, and which way better lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`head` is for columns, `name` for axes; one that is not `shown` needs a paper that prints it."""

    key: str
    head: str
    name: str
    unit: str = ""
    digits: int = 1
    lower_is_better: bool = False
    shown: bool = True


def _retrieval(key: str, head: str, name: str) -> list[Metric]:
    recalls = [Metric(f"{key}_r{k}", f"{head} R@{k}", f"{name} R@{k}", "%") for k in (1, 5, 10)]
    median = Metric(f"{key}_median_rank", f"{head} med r", f"{name} median rank", lower_is_better=True)
    mean = Metric(f"{key}_mean_rank", f"{head} mean r", f"{name} mean rank", lower_is_better=True, shown=False)
    return [*recalls, median, mean]


_KNOWN = (
    *_retrieval("image_to_caption", "i→c", "image to caption"),
    *_retrieval("caption_to_image", "c→i", "caption to image"),
    Metric("rsum", "rsum", "rsum, the sum of the six recalls", "points"),
    *(Metric(f"bleu{n}", f"BLEU-{n}", f"BLEU-{n}") for n in (1, 2, 3, 4)),
    Metric("meteor", "METEOR", "METEOR"),
    Metric("rouge_l", "ROUGE-L", "ROUGE-L"),
    Metric("cider", "CIDEr-D", "CIDEr-D", digits=3),
    Metric("spice", "SPICE", "SPICE"),
    Metric("perplexity", "perplexity", "perplexity of a word", digits=2, lower_is_better=True),
)
_ORDER = {metric.key: place for place, metric in enumerate(_KNOWN)}


def metric(key: str) -> Metric:
    """A known metric, or one that is shown under its own key."""
    return _KNOWN[_ORDER[key]] if key in _ORDER else Metric(key, key, key.replace("_", " "), digits=2)


def columns(keys: Iterable[str], lesser: bool = False) -> list[Metric]:
    """The metrics of a table in their order, unknown ones last; `lesser` keeps those that are not `shown`."""
    found = [metric(key) for key in sorted(set(keys), key=lambda key: (_ORDER.get(key, len(_ORDER)), key))]
    return [entry for entry in found if lesser or entry.shown]


def explained(keys: Iterable[str]) -> list[str]:
    """Sentences that say what the metrics are, for those that occur."""
    found = set(keys)
    sentences = []
    if any(key.startswith(("image_to_caption", "caption_to_image")) for key in found):
        sentences.append(
            "**i→c** asks for the captions of an image, **c→i** for the image of a caption. **R@K** is the "
            "percentage of queries with a right answer among the first K, higher is better; **med r** is the "
            "median rank of the first right answer, 1 is best; **rsum** is the sum of the six recalls. Ties count "
            "against the model."
        )
    if "cider" in found:
        sentences.append("**CIDEr-D** is the variant that coco-caption computes.")
    if any(key.startswith("bleu") for key in found):
        sentences.append("**BLEU** is that of coco-caption, with brevity penalty, unless a row says otherwise.")
    return sentences
