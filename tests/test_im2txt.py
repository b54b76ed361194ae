"""The preset nic against im2txt, the code that the authors of Show and Tell released (tensorflow/models).

The release's equations are written anew here: the layers and the loss of show_and_tell_model.py with the BasicLSTMCell
of TensorFlow 1, the rates of configuration.py and train.py, the search of inference_utils/caption_generator.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capbench.captioners.decoding import State, beam_search
from capbench.data.batches import padded
from capbench.data.scenes import scenes
from capbench.data.vocabulary import END, START, Vocabulary
from capbench.runs.paper import paper
from capbench.training.experiment import Inputs
from capbench.training.loop import learning_rate, make_optimizer
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from reproductions.show_and_tell.model import ShowAndTell
from reproductions.show_and_tell.objective import objective
from reproductions.show_and_tell.recipe import presets

NIC = presets("flickr8k")["nic"]
FEATURE, EMBEDDING, HIDDEN, WORDS = 9, 6, 5, 14
CAPTIONS = [[START, 5, 6, 7, 6, END], [START, 9, END], [START, 8, 5, 13, END], [START, 6, 10, 11, 12, 4, END]]


@dataclass
class Released:
    """The variables of im2txt, in its layout: x W with the gates i, j, f, o side by side."""

    image_embedding: Tensor  # [feature, embedding]; no bias
    embedding_map: Tensor  # [word, embedding]
    kernel: Tensor  # [embedding + hidden, 4 hidden]
    bias: Tensor  # [4 hidden]
    logits: Tensor  # [hidden, word]
    logits_bias: Tensor

    @classmethod
    def random(cls) -> Released:
        shapes = (FEATURE, EMBEDDING), (WORDS, EMBEDDING), (EMBEDDING + HIDDEN, 4 * HIDDEN), (4 * HIDDEN,)
        generator = torch.Generator().manual_seed(0)
        drawn = (torch.randn(shape, generator=generator).double() for shape in (*shapes, (HIDDEN, WORDS), (WORDS,)))
        return cls(*(0.3 * value for value in drawn))

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def cell(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """BasicLSTMCell, with its forget bias of 1."""
        i, j, f, o = (torch.cat([x, h], 1) @ self.kernel + self.bias).split(HIDDEN, 1)
        c = c * torch.sigmoid(f + 1.0) + torch.sigmoid(i) * torch.tanh(j)
        return torch.tanh(c) * torch.sigmoid(o), c

    def loss(self, images: Tensor, captions: list[list[int]]) -> Tensor:
        """The sum of the weighted losses, divided by the sum of the weights, with padding of weight 0."""
        h = c = images.new_zeros(len(images), HIDDEN)
        h, c = self.cell(images @ self.image_embedding, h, c)
        longest = max(map(len, captions)) - 1
        losses, weights = [], []
        for t in range(longest):
            present = torch.tensor([float(t + 1 < len(caption)) for caption in captions], dtype=torch.float64)
            words = torch.tensor([caption[t] if t < len(caption) else 0 for caption in captions])
            target = torch.tensor([caption[t + 1] if t + 1 < len(caption) else 0 for caption in captions])
            h, c = self.cell(self.embedding_map[words], h, c)
            scores = h @ self.logits + self.logits_bias
            losses.append(nn.functional.cross_entropy(scores, target, reduction="none") * present)
            weights.append(present)
        return torch.cat(losses).sum() / torch.cat(weights).sum()

    def in_our_layout(self) -> dict[str, Tensor]:
        """Values or gradients as the parameters that ShowAndTell learns: W x, with the gates i, f, g (their j), o."""
        kernel, bias = (
            torch.cat([value.split(HIDDEN, -1)[k] for k in (0, 2, 1, 3)], -1) for value in (self.kernel, self.bias)
        )
        return {
            "image.1.weight": self.image_embedding.T,
            "W_e.weight": self.embedding_map,
            "lstm.weight_ih_l0": kernel[:EMBEDDING].T,
            "lstm.weight_hh_l0": kernel[EMBEDDING:].T,
            "lstm.bias_ih_l0": bias,
            "word.weight": self.logits.T,
            "word.bias": self.logits_bias,
        }


def ours(released: Released) -> ShowAndTell:
    """nic with the weights of the release, in float64 and without dropout."""
    model = ShowAndTell(replace(NIC, embedding_dim=EMBEDDING, hidden_dim=HIDDEN), WORDS, FEATURE).double().eval()
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learnt == set(released.in_our_layout())
    model.load_state_dict(released.in_our_layout(), strict=False)
    return model


IMAGES = torch.randn(len(CAPTIONS), FEATURE, generator=torch.Generator().manual_seed(1)).double()


def test_the_loss_and_its_gradients_are_those_of_the_release():
    released = Released.random()
    model = ours(released)
    loss = objective(model, IMAGES, padded(CAPTIONS)[0])
    loss.backward()
    variables = [value.requires_grad_() for value in released.tensors()]
    of_release = released.loss(IMAGES, CAPTIONS)
    gradients = Released(*torch.autograd.grad(of_release, variables)).in_our_layout()
    assert loss.item() == pytest.approx(of_release.item(), abs=1e-12)
    for name, gradient in gradients.items():
        found = model.get_parameter(name).grad
        assert found is not None, name
        assert torch.allclose(found, gradient, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_step_is_that_of_the_release_with_its_gradient_clipped_or_not(scale):
    """Of one caption without a repeated word: clip_by_global_norm counts each use of a word apart."""
    released, images, captions = Released.random(), IMAGES[:1], [[START, 5, 6, 7, END]]
    released.logits *= scale
    model = ours(released)
    optimizer = make_optimizer(NIC.training, [value for value in model.parameters() if value.requires_grad])
    objective(model, images, padded(captions)[0]).backward()
    assert NIC.training.clip_norm == 5
    nn.utils.clip_grad_norm_(model.parameters(), NIC.training.clip_norm)
    optimizer.step()
    variables = [value.requires_grad_() for value in released.tensors()]
    gradients = torch.autograd.grad(released.loss(images, captions), variables)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    assert (norm > 5) == (scale > 1)
    after = [
        value - 2.0 * gradient * min(1.0, 5.0 / norm) for value, gradient in zip(variables, gradients, strict=True)
    ]
    for name, value in Released(*after).in_our_layout().items():
        assert torch.allclose(model.get_parameter(name), value, rtol=1e-6, atol=1e-6), name


def test_the_rate_is_2_and_halves_every_8_epochs():
    rates = [learning_rate(NIC.training, epoch, [], "log_likelihood") for epoch in (0, 7, 8, 15, 16, 23)]
    assert rates == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]


def test_weights_start_within_eight_hundredths_and_biases_at_0_but_for_the_forget_gate():
    torch.manual_seed(0)
    model = ShowAndTell(replace(NIC, embedding_dim=40, hidden_dim=30), 60, 50)
    for name, value in model.named_parameters():
        if value.dim() == 2:
            assert value.abs().max() <= 0.08, name
            assert value.std().item() == pytest.approx(0.08 / math.sqrt(3), rel=0.1), name
        elif name == "lstm.bias_hh_l0":
            assert value.tolist() == 30 * [0.0] + 30 * [1.0] + 60 * [0.0]
        else:
            assert value.count_nonzero() == 0, name


@pytest.fixture(scope="module")
def experiments(tmp_path_factory) -> Any:
    dataset = scenes(train=40, val=5, test=5)
    encoder = Encoder("scenes", "vector")
    stored = features(dataset, encoder, store=tmp_path_factory.mktemp("features"))
    inputs = Inputs(dataset, encoder, stored, Vocabulary.build(dataset.split("train").tokens, 1))
    owner = paper("show_and_tell")
    return lambda preset: owner.prepare(owner.recipe(preset, "scenes"), inputs, 0, torch.device("cpu"))


def test_a_batch_has_captions_of_any_length_and_an_epoch_has_each_caption_once(experiments):
    def spread(preset: str) -> float:
        made = experiments(preset)
        lengths = np.array([len(caption) for caption in made.inputs.encoded("train")])
        batches = made.batches(0)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        return float(np.mean([np.ptp(lengths[batch]) for batch in batches]))

    assert spread("nic") > 2 * spread("nic-ours")


# the search


def released_search(probabilities: dict[tuple[int, ...], dict[int, float]], beam_size: int, longest: int) -> list[int]:
    """The likeliest caption by caption_generator.py, the words after START.

    Of each partial caption the `beam_size` likeliest next words are tried. Ended captions go to a list of their own,
    others to the next beam, and of both the best `beam_size` stay.
    """
    partial: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    complete: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(longest):
        longer: list[tuple[float, tuple[int, ...]]] = []
        for log_p, words in partial:
            following = sorted(probabilities[words].items(), key=lambda item: -item[1])[:beam_size]
            for word, p in following:
                (complete if word == END else longer).append((log_p + math.log(p), (*words, word)))
        partial = sorted(longer, reverse=True)[:beam_size]
    return list(max(complete)[1])


def test_the_search_follows_the_paper_where_the_release_ends_captions_sooner():
    """ "a" may end with .1, which is its second-best word; the two best captions of two words have .25 and .2.

    The paper keeps the k best captions of each length: "a" is not among them. In the release it is enough that END is
    among the k best words after "a", and nothing longer is as likely.
    """
    a, b, c, d = 4, 5, 6, 7
    probabilities = {
        (): {a: 0.5, b: 0.4, c: 0.1},
        (a,): {c: 0.5, END: 0.2, b: 0.15, d: 0.15},
        (b,): {c: 0.5, d: 0.45, END: 0.05},
        (a, c): {d: 0.3, END: 0.3, a: 0.2, b: 0.2},
        (b, c): {END: 0.3, a: 0.25, b: 0.25, d: 0.2},
    }

    def step(words: Tensor, state: State) -> tuple[Tensor, State]:
        so_far = torch.cat([state["words"], words[..., None]], -1)
        log_probs = torch.full((*words.shape, 8), -torch.inf)
        for beam, path in enumerate(so_far[0].tolist()):
            for word, p in probabilities.get(tuple(path[1:]), {END: 1.0}).items():
                log_probs[0, beam, word] = math.log(p)
        return log_probs, {"words": so_far}

    state = {"words": torch.zeros(1, 1, 0, dtype=torch.int64)}
    found = beam_search(step, state, 1, 2, 3, start=START, end=END)
    everywhere = {(x, y): {END: 1.0} for x in (a, b, c, d) for y in (a, b, c, d)} | probabilities
    assert found.words[0, 0].tolist() == [a, c, END]
    assert found.log_probs.exp().item() == pytest.approx(0.075)
    assert released_search(everywhere, 2, 3) == [a, END]
