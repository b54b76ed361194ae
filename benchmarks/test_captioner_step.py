"""One training step of the captioners and of the alignment: ours against plain PyTorch.

Plain: batches in random order, padded to the longest caption of the data set, in fp32, Adam as torch has it by default;
the alignment with the whole tensor [image, caption, region, word]. Ours: length-grouped batches for the captioners, the
blocked kernel for the alignment, fused Adam, and bf16 where the processor multiplies in it. Features are noise: the
time does not depend on what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capbench.captioning import cross_entropy
from capbench.data.batches import length_grouped, padded, shuffled
from capbench.data.captions import CaptionDataset
from capbench.data.vocabulary import PAD, Vocabulary
from capbench.kernels.maxsim import maxsim, reference_maxsim
from capbench.paper import paper
from capbench.training import bf16_where_native
from reproductions.karpathy.alignment import AlignmentModel
from reproductions.karpathy.objective import structured_margin
from reproductions.show_and_tell import recipe as show_and_tell
from reproductions.show_and_tell.model import ShowAndTell
from reproductions.show_attend_tell import recipe as show_attend_tell
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.translational import recipe as translational
from reproductions.translational.model import Translator

BATCH, FEATURE, LOCATIONS, REGIONS, STEPS = 64, 1280, 49, 20, 6
Captions = tuple[Vocabulary, list[list[int]]]
PAPERS: dict[str, tuple[tuple[int, ...], Callable[[Vocabulary], nn.Module]]] = {
    "Show and Tell": (
        (BATCH, FEATURE),
        lambda words: ShowAndTell(show_and_tell.presets("flickr8k")["adam"], len(words), FEATURE),
    ),
    "Show, Attend and Tell, soft": (
        (BATCH, LOCATIONS, FEATURE),
        lambda words: ShowAttendTell(show_attend_tell.presets("flickr8k")["soft"], len(words), FEATURE),
    ),
    "translational, LSTM": (
        (BATCH, LOCATIONS, FEATURE),
        lambda words: Translator(translational.presets("flickr8k")["lstm"], words, FEATURE),
    ),
    "alignment": (
        (BATCH, REGIONS, FEATURE),
        lambda words: AlignmentModel(paper("karpathy").recipe("brnn", "flickr8k"), len(words), FEATURE),
    ),
}


class Step:
    """A training step of one paper in one style."""

    def __init__(self, paper: str, words: Vocabulary, ours: bool) -> None:
        torch.manual_seed(0)
        shape, build = PAPERS[paper]
        self.model, self.features, self.ours = build(words), torch.randn(shape).relu(), ours
        self.optimizer = torch.optim.Adam(self.model.parameters(), 2e-4, fused=ours or None)

    def loss(self, captions: Tensor) -> Tensor:
        if not isinstance(self.model, AlignmentModel):
            return cross_entropy(self.model(self.features, captions), captions)
        words = captions[:, 1:]
        lengths = (words != PAD).sum(1) - 1  # START and END are no words of a picture
        with patch("reproductions.karpathy.alignment.maxsim", maxsim if self.ours else reference_maxsim):
            similarity = self.model(self.features, words, lengths)
        return structured_margin(similarity, torch.arange(BATCH), 1.0)

    def __call__(self, captions: Tensor) -> float:
        self.optimizer.zero_grad()
        with bf16_where_native(torch.device("cpu"), "auto" if self.ours else "full"):
            loss = self.loss(captions)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


@pytest.fixture(scope="module")
def captions(dataset: CaptionDataset) -> Captions:
    tokens = dataset.split("train").tokens
    vocabulary = Vocabulary.build(tokens, 4)
    return vocabulary, [vocabulary.encode(words) for words in tokens]


def batches(captions: list[list[int]], paper: str, ours: bool) -> Iterator[Tensor]:
    """Whole batches, again and again; plain ones as long as the longest caption of all."""
    lengths = np.array([len(caption) for caption in captions])
    grouped = ours and paper != "alignment"
    found = length_grouped(lengths, BATCH, 0, 0) if grouped else shuffled(len(lengths), BATCH, 0, 0)
    made = [padded([captions[i] for i in batch])[0] for batch in found if len(batch) == BATCH]
    if ours:
        return cycle(made[: 2 * STEPS])
    return cycle([nn.functional.pad(ids, (0, int(lengths.max()) - ids.shape[1]), value=PAD) for ids in made[:STEPS]])


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "plain"])
@pytest.mark.parametrize("paper", PAPERS)
def test_training_step(benchmark, captions: Captions, paper: str, ours: bool) -> None:
    vocabulary, encoded = captions
    batch = next(batches(encoded, paper, True))
    longer = nn.functional.pad(batch, (0, 5), value=PAD)
    losses = []
    for style, ids in ((True, batch), (False, longer)):  # parity before speed, without dropout and in full precision
        built = Step(paper, vocabulary, style)
        built.model.eval()
        losses.append(float(built.loss(ids).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    step, source = Step(paper, vocabulary, ours), batches(encoded, paper, ours)
    benchmark.group = f"training step, {paper}, batch {BATCH}"
    benchmark.pedantic(step, setup=lambda: ((next(source),), {}), rounds=STEPS if ours else STEPS // 2, warmup_rounds=1)
    benchmark.extra_info.update(ours=ours, variant="ours" if ours else "plain: padded to the longest, fp32")
