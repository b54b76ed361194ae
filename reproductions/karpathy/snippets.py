"""Snippets: the runs of words that the alignment gives to one region (CVPR 2015, section 3.1.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from capbench.data.captions import Split
from capbench.data.vocabulary import END, START
from capbench.kernels.chain import viterbi_decode
from capbench.metrics.alignment import label_spans

from .experiment import AlignmentExperiment


class Snippet(NamedTuple):
    """Words of a caption that belong to one region."""

    image: int  # index into the data set
    region: int
    words: list[int]  # START to END


@torch.no_grad()
def snippets(alignment: AlignmentExperiment, split: Split, beta: float) -> Iterator[Snippet]:
    """Equations 10 to 12: each word's region, where neighbours that agree gain `beta`, and the runs of one region."""
    alignment.model.eval()
    encoded = alignment.inputs.encoded(split.name)
    for numbers, scores, lengths in alignment.word_scores(split):
        labels, _ = viterbi_decode(scores, lengths, beta)
        for row, caption in enumerate(numbers):
            image = int(split.images_of(numbers[row : row + 1])[0])
            words = encoded[caption][1:-1]
            for region, start, end in label_spans(labels[row, : len(words)].tolist()):
                yield Snippet(image, region, [START, *words[start:end], END])
