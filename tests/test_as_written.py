"""BLEU and METEOR as written: without a tokeniser, as the released code of Show, Attend and Tell scores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.meteor.meteor import Meteor

from capbench.captioners.experiment import captions_of_images
from capbench.data.datasets import load_dataset
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import load_arrays, load_results
from capbench.metrics.captioning import CaptionScorer
from capbench.metrics.jars import find_java

RESULTS = Path(__file__).parents[1] / "leaderboards" / "results"
REFERENCES = [
    ["A dog runs on the grass .", "The brown dog is running , fast .", "a dog running through grass"],
    ["Two men talk .", "Two men in hats are talking to each other ."],
    ["A girl jumps into the pool .", "Girl jumping"],
]
CANDIDATES = ["a dog runs on the grass", "two men are talking to a dog", "girl jumping into A pool"]
LINES = ["A dog runs on the grass .", "Two men are talking to a dog .", "Girl jumping into A pool ."]

needs_java = pytest.mark.skipif(find_java() is None, reason="needs Java")


@needs_java
def test_the_scorers_see_the_lines_that_the_released_code_would_give_them():
    lines = dict(enumerate(REFERENCES)), {image: [line] for image, line in enumerate(LINES)}
    bleu, scorer = 100 * np.array(Bleu(4).compute_score(*lines, verbose=0)[0]), Meteor()
    meteor = 100 * scorer.compute_score(*lines)[0]
    scorer.meteor_p.communicate()
    metrics = CaptionScorer(REFERENCES).score(CANDIDATES).metrics
    assert [metrics[f"bleu{n}_as_written"] for n in (1, 2, 3, 4)] == pytest.approx(bleu.tolist())
    assert metrics["meteor_as_written"] == pytest.approx(meteor)
    assert metrics["bleu1_as_written"] != pytest.approx(metrics["bleu1"])


def test_capitals_and_the_full_stop_count_by_hand():
    """Of "A dog ." against "a dog runs .", two of three words match; the penalty is exp(1 - 4 / 3)."""
    metrics = CaptionScorer([["a dog runs ."]]).score(["a dog"]).metrics
    assert metrics["bleu1_as_written_no_bp"] == pytest.approx(100 * 2 / 3)
    assert metrics["bleu1_as_written"] == pytest.approx(100 * 2 / 3 * np.exp(-1 / 3))
    assert metrics["bleu1_no_bp"] == pytest.approx(100)


KEYS = (*(f"bleu{n}_as_written_no_bp" for n in (1, 2, 3, 4)), "meteor_as_written")


@needs_java
@pytest.mark.skipif("CAPBENCH_DATA" not in os.environ, reason="needs Flickr8K")
def test_recorded_captions_have_the_scores_that_their_record_has():
    record = next(record for record in load_results(RESULTS, "show_attend_tell") if record.dataset == "flickr8k")
    dataset = load_dataset("flickr8k")
    vocabulary, split = Vocabulary.build(dataset.split("train").tokens, 5), dataset.split("test")
    references = [[split.captions[i] for i in own] for own in captions_of_images(split)]
    best = load_arrays(record, RESULTS)["captions"][:, 0].tolist()
    metrics = CaptionScorer(references).score([" ".join(vocabulary.decode(words)) for words in best]).metrics
    assert [metrics[key] for key in KEYS] == pytest.approx([record.metrics[key] for key in KEYS], abs=0.005)
