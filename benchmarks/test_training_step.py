"""One training step of VSE++: ours against the style of the original code.

The original: batches in random order, packed sequences through nn.GRU in fp32, Adam as torch has it by default. Ours:
length-grouped batches, the prefix tree, fused Adam, and bf16 where the processor multiplies in it. Both take the same
number of captions at every step, so the ratio of times is that of whole epochs. Later in training the max of hinges
leaves more and more captions without a gradient, which the prefix tree makes use of: `half silent` shows a step in
which half of the captions have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from capbench.data.batches import length_grouped, padded
from capbench.data.captions import CaptionDataset
from capbench.data.vocabulary import Vocabulary
from capbench.kernels.gru import Embedding, prefix_tree_last_hidden, reference_last_hidden
from capbench.training import bf16_where_native
from reproductions.vsepp.objective import matched_pairs, max_of_hinges

BATCH, WORD, HIDDEN, FEATURE, STEPS = 128, 300, 1024, 1280, 12
LastHidden = Callable[[nn.GRU, Embedding, Tensor, Tensor], Tensor]


class Step:
    """A training step on stored features of noise: the time does not depend on what they hold."""

    def __init__(self, vocabulary: int, encode: LastHidden, fused: bool, silent: float = 0.0) -> None:
        torch.manual_seed(0)
        self.words, self.gru = nn.Embedding(vocabulary, WORD), nn.GRU(WORD, HIDDEN, batch_first=True)
        self.image = nn.Linear(FEATURE, HIDDEN)
        self.parameters = [*self.words.parameters(), *self.gru.parameters(), *self.image.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, 2e-4, fused=fused or None)
        self.encode, self.fused = encode, fused
        self.features = torch.randn(BATCH, FEATURE)
        self.heard = (torch.arange(BATCH) >= silent * BATCH)[:, None]

    def loss(self, captions: Tensor, lengths: Tensor) -> Tensor:
        g = normalize(self.encode(self.gru, self.words, captions, lengths), dim=1)
        g = torch.where(self.heard[: len(g)], g, g.detach())
        f = normalize(self.image(self.features[: len(g)]), dim=1)
        return max_of_hinges(f.float() @ g.float().T, matched_pairs(torch.arange(len(g))), 0.2)

    def __call__(self, captions: Tensor, lengths: Tensor) -> float:
        self.optimizer.zero_grad()
        with bf16_where_native(torch.device("cpu"), "auto" if self.fused else "full"):
            loss = self.loss(captions, lengths)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 2.0)
        self.optimizer.step()
        return float(loss.detach())


@pytest.fixture(scope="module")
def captions(dataset: CaptionDataset) -> tuple[int, list[list[int]]]:
    tokens = dataset.split("train").tokens
    vocabulary = Vocabulary.build(tokens, 4)
    return len(vocabulary), [vocabulary.encode(words) for words in tokens]


def batches(captions: list[list[int]], grouped: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches, again and again."""
    lengths = np.array([len(caption) for caption in captions])
    if grouped:
        chosen = [batch for batch in length_grouped(lengths, BATCH, 0, 0) if len(batch) == BATCH]
    else:
        order = np.random.default_rng(0).permutation(len(captions))
        chosen = np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH)
    return cycle([padded([captions[i] for i in batch]) for batch in chosen[: 2 * STEPS]])


VARIANTS = {
    "original: packed sequences, fp32": (reference_last_hidden, False, 0.0),
    "prefix tree": (prefix_tree_last_hidden, True, 0.0),
    "prefix tree, half silent": (prefix_tree_last_hidden, True, 0.5),
}


@pytest.fixture(scope="module")
def parity(captions: tuple[int, list[list[int]]]) -> None:
    """Parity before speed: the same loss on the first batch, in full precision."""
    size, encoded = captions
    batch = next(batches(encoded, True))
    losses = [float(Step(size, encode, False).loss(*batch).detach()) for encode, _, _ in VARIANTS.values()]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)


@pytest.mark.benchmark(group="VSE++ training step, GRU 1024, batch 128")
@pytest.mark.usefixtures("parity")
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step(benchmark, captions: tuple[int, list[list[int]]], variant: str) -> None:
    size, encoded = captions
    encode, ours, silent = VARIANTS[variant]
    step, source = Step(size, encode, ours, silent), batches(encoded, ours)
    benchmark.pedantic(step, setup=lambda: (next(source), {}), rounds=STEPS, warmup_rounds=2)
    benchmark.extra_info.update(ours=ours, variant=variant)
    benchmark.extra_info["epoch_seconds"] = benchmark.stats.stats.mean * len(encoded) / BATCH
