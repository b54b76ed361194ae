"""Snippets: the stretches of a caption that the alignment gives to one region (CVPR 2015, section 3.1.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from capbench.data.captions import Split
from capbench.data.vocabulary import END, START
from capbench.kernels.chain import viterbi_decode
from capbench.metrics.alignment import runs
from reproductions.karpathy.experiment import AlignmentExperiment


class Snippet(NamedTuple):
    """Words, START to END, of region `region` of image `image`, a number in the data set."""

    image: int
    region: int
    words: list[int]


@torch.no_grad()
def snippets(alignment: AlignmentExperiment, part: Split, beta: float) -> Iterator[Snippet]:
    """Equations 10 to 12: the best region of every word, where neighbours like to agree; runs of one region."""
    alignment.model.eval()
    encoded = alignment.inputs.encoded(part.name)
    for numbers, scores, lengths in alignment.word_scores(part):
        labels, _ = viterbi_decode(scores, lengths, beta)
        for row, caption in enumerate(numbers):
            image = int(part.image_index[part.image_of_caption[caption]])
            words = encoded[caption][1:-1]
            for region, start, end in runs(labels[row, : len(words)].tolist()):
                yield Snippet(image, region, [START, *words[start:end], END])
