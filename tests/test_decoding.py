"""Captions against exhaustive and plain beam search, the paths that are traced, and how often captions are drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.captioners import decoding
from capbench.captioners.decoding import Captions, Step, beam_search, ensemble, greedy, join_states, sample
from capbench.data.vocabulary import END, PAD, START, UNKNOWN

MARKS: dict[str, Any] = {"start": START, "end": END}


@dataclass
class Recurrent:
    """A random recurrent captioner in float64 whose next word depends on the image and on all words before."""

    images: int
    size: int
    seed: int
    calls: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.image = random.normal(size=(self.images, 4))
        self.embedding = random.normal(size=(self.size, 4))
        self.recurrent = random.normal(size=(4, 4))
        self.output = 2 * random.normal(size=(4, self.size))
        self.bias = np.zeros(self.size)

    def state(self) -> dict[str, Tensor]:
        zeros = torch.zeros(self.images, 1, 4, dtype=torch.float64)
        return {"hidden": zeros, "seen": torch.zeros(self.images, 1, dtype=torch.int64)}

    def step(self, words: Tensor, state: decoding.State) -> tuple[Tensor, dict[str, Tensor]]:
        """`seen` is the words taken in so far as the digits of a number; `attention` is the hidden state again."""
        self.calls.append((words.shape[0], words.shape[1]))
        image, embedding = torch.from_numpy(self.image)[:, None], torch.from_numpy(self.embedding)
        hidden = (state["hidden"] @ torch.from_numpy(self.recurrent) + embedding[words] + image).tanh()
        log_probs = (hidden @ torch.from_numpy(self.output) + torch.from_numpy(self.bias)).log_softmax(-1)
        return log_probs, {"hidden": hidden, "seen": state["seen"] * 10 + words, "attention": hidden}

    def hidden_and_log_probs(self, image: int, words: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The same after START and `words`, for one image, in numpy and from the first word on."""
        hidden = np.zeros(4)
        for word in (START, *words):
            hidden = np.tanh(hidden @ self.recurrent + self.embedding[word] + self.image[image])
        scores = hidden @ self.output + self.bias
        return hidden, scores - scores.max() - math.log(np.exp(scores - scores.max()).sum())

    def log_prob(self, image: int, words: Sequence[int]) -> float:
        """Of a caption, END included: the sum of its words."""
        return sum(self.hidden_and_log_probs(image, words[:at])[1][word] for at, word in enumerate(words))


def markov(table: Tensor) -> Step:
    """A captioner whose next word depends on the last alone: `table` [last, next] of probabilities."""

    def step(words: Tensor, state: decoding.State) -> tuple[Tensor, decoding.State]:
        return table.log()[words], state

    return step


def markov_state(images: int = 1) -> dict[str, Tensor]:
    return {"nothing": torch.zeros(images, 1, dtype=torch.float64)}


def every_caption(size: int, max_length: int, never: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every one that ends, of up to `max_length` words with END."""
    words = [word for word in range(size) if word not in never and word != END]
    for length in range(max_length):
        for caption in itertools.product(words, repeat=length):
            yield (*caption, END)


def plain_beam_search(
    model: Recurrent, image: int, beam_size: int, max_length: int, length_power: float, never: Sequence[int]
) -> list[tuple[float, tuple[int, ...], bool]]:
    """The definition in lists, for one image and without an early end: (log_prob, words, finished), best first."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(max_length):
        extensions = []
        for log_prob, words in live:
            scores = model.hidden_and_log_probs(image, words)[1]
            extensions += [(log_prob + scores[w], (*words, w)) for w in range(model.size) if w not in never]
        extensions.sort(key=lambda one: -one[0])
        ended += [one for one in extensions[:beam_size] if one[1][-1] == END]
        live = [one for one in extensions if one[1][-1] != END][:beam_size]
    ended.sort(key=lambda one: -one[0] / len(one[1]) ** length_power)
    return [(*one, True) for one in ended[:beam_size]] + [(*one, False) for one in live]


def written(captions: Captions, image: int, rank: int = 0) -> tuple[int, ...]:
    """The words of one caption; there must be nothing but padding after END or after the first padding."""
    words = captions.words[image, rank].tolist()
    length = words.index(PAD) if PAD in words else len(words)
    assert set(words[length:]) <= {PAD}
    assert (END in words) == bool(captions.finished[image, rank])
    assert END not in words[: length - 1]
    return tuple(words[:length])


def assert_same(left: Captions, right: Captions) -> None:
    assert torch.equal(left.words, right.words)
    assert torch.equal(left.finished, right.finished)
    torch.testing.assert_close(left.log_probs, right.log_probs, check_dtype=False)
    assert left.traces.keys() == right.traces.keys()
    for name, trace in left.traces.items():
        torch.testing.assert_close(trace, right.traces[name])


def test_padding_is_the_padding_of_the_vocabulary():
    assert decoding.PADDING == PAD


def test_a_hand_worked_example():
    """Greedy takes 3 (0.5), then END (0.4): 0.2. A beam of two keeps 4 (0.4) too, which END surely follows: 0.4."""
    table = torch.zeros(6, 6, dtype=torch.float64)
    table[START, [3, 4, END]] = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    table[3, [3, 4, END]] = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    table[4, END] = 1.0
    first = greedy(markov(table), markov_state(), 1, 5, **MARKS)
    assert first.words.tolist() == [[[3, END, PAD, PAD, PAD]]]
    assert first.log_probs.item() == pytest.approx(math.log(0.2))
    best = beam_search(markov(table), markov_state(), 1, 2, 5, n_best=2, **MARKS)
    assert best.words.tolist() == [[[4, END, PAD, PAD, PAD], [3, END, PAD, PAD, PAD]]]
    assert best.log_probs.exp().tolist()[0] == pytest.approx([0.4, 0.2])
    assert best.finished.tolist() == [[True, True]]


def test_a_length_power_prefers_the_longer_caption():
    table = torch.zeros(5, 5, dtype=torch.float64)
    table[START, [END, 3]] = torch.tensor([0.6, 0.4], dtype=torch.float64)
    table[3, 4] = table[4, END] = 1.0
    plain = beam_search(markov(table), markov_state(), 1, 2, 4, **MARKS)
    assert written(plain, 0) == (END,)
    normalised = beam_search(markov(table), markov_state(), 1, 2, 4, length_power=1.0, n_best=2, **MARKS)
    assert written(normalised, 0) == (3, 4, END)
    assert normalised.log_probs.exp().tolist()[0] == pytest.approx([0.4, 0.6])
    overtaken = beam_search(markov(table), markov_state(), 1, 1, 4, length_power=1.0, **MARKS)
    assert written(overtaken, 0) == (3, 4, END)


def test_as_many_hypotheses_live_on_as_the_beam_is_wide_besides_end_and_what_is_never_wanted():
    table = torch.zeros(60, 60, dtype=torch.float64)
    table[START, [PAD, START, END, UNKNOWN]] = 0.2
    table[START, [4, 5, 6, 7]] = torch.tensor([0.04, 0.03, 0.02, 0.01], dtype=torch.float64)
    table[4:7, 9] = table[7, END] = 1.0
    found = beam_search(markov(table), markov_state(), 1, 4, 2, n_best=4, never=(UNKNOWN,), **MARKS)
    assert [written(found, 0, rank) for rank in range(4)] == [(END,), (7, END), (4, 9), (5, 9)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length_power", [0.0, 0.7, 1.0, 2.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_captions_of_all(seed, length_power):
    model = Recurrent(images=3, size=6, seed=seed)
    found = beam_search(
        model.step, model.state(), 3, 200, 4, n_best=40, length_power=length_power, never=(UNKNOWN,), **MARKS
    )
    for image in range(3):
        scored = [(model.log_prob(image, words), words) for words in every_caption(6, 4, (PAD, START, UNKNOWN))]
        scored.sort(key=lambda one: -one[0] / len(one[1]) ** length_power)
        assert len(scored) == 1 + 2 + 4 + 8
        assert [written(found, image, rank) for rank in range(len(scored))] == [words for _, words in scored]
        assert found.log_probs[image, :15].tolist() == pytest.approx([log_prob for log_prob, _ in scored])
        assert not found.finished[image, 15:].any()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(4, 40),
    beam_size=st.integers(1, 9),
    max_length=st.integers(1, 6),
    length_power=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    data=st.data(),
)
def test_the_batched_search_is_the_plain_one(seed, size, beam_size, max_length, length_power, data):
    model = Recurrent(images=3, size=size, seed=seed)
    n_best = data.draw(st.integers(1, beam_size))
    never = data.draw(st.sampled_from([(), (UNKNOWN,), (PAD, START), (END,)]))
    found = beam_search(
        model.step,
        model.state(),
        3,
        beam_size,
        max_length,
        n_best=n_best,
        length_power=length_power,
        never=never,
        trace=("seen", "attention"),
        **MARKS,
    )
    assert found.words.shape == (3, n_best, max_length)
    for image in range(3):
        expected = plain_beam_search(model, image, beam_size, max_length, length_power, (PAD, START, *never))
        for rank in range(n_best):
            words = written(found, image, rank)
            if rank >= len(expected):
                assert words == ()
                assert found.log_probs[image, rank] == -torch.inf
                continue
            assert (words, bool(found.finished[image, rank])) == expected[rank][1:]
            assert float(found.log_probs[image, rank]) == pytest.approx(expected[rank][0])
            assert float(found.log_probs[image, rank]) == pytest.approx(model.log_prob(image, words))
            assert_traced(model, found, image, rank)


def assert_traced(model: Recurrent, found: Captions, image: int, rank: int) -> None:
    """Each entry is that of the step which predicted the word: it has seen START and the words before."""
    words = written(found, image, rank)
    for at in range(found.words.shape[2]):
        seen, attention = (found.traces[name][image, rank, at] for name in ("seen", "attention"))
        if at < len(words):
            digits = 0
            for word in (START, *words[:at]):
                digits = digits * 10 + word
            assert int(seen) == digits
            assert attention.numpy() == pytest.approx(model.hidden_and_log_probs(image, words[:at])[0])
        else:
            assert int(seen) == 0
            assert not attention.any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(4, 60), max_length=st.integers(1, 8))
def test_greedy_takes_the_likeliest_word_and_is_a_beam_of_one(seed, size, max_length):
    model = Recurrent(images=4, size=size, seed=seed)
    found = greedy(model.step, model.state(), 4, max_length, trace=("seen",), **MARKS)
    assert_same(found, beam_search(model.step, model.state(), 4, 1, max_length, trace=("seen",), **MARKS))
    for image in range(4):
        words: list[int] = []
        while len(words) < max_length and END not in words:
            scores = model.hidden_and_log_probs(image, words)[1]
            words.append(max(range(2, size), key=lambda word: scores[word]))
        assert written(found, image) == tuple(words)
        assert float(found.log_probs[image, 0]) == pytest.approx(model.log_prob(image, words))


@pytest.mark.fault("no END in any beam")
def test_where_no_caption_ends_the_best_unfinished_ones_are_given():
    model = Recurrent(images=2, size=7, seed=1)
    found = beam_search(model.step, model.state(), 2, 4, 5, n_best=4, never=(END,), **MARKS)
    assert not found.finished.any()
    assert (found.words > END).all()
    assert (found.log_probs.diff(dim=1) <= 0).all()


def test_finished_captions_come_before_better_unfinished_ones():
    table = torch.zeros(4, 4, dtype=torch.float64)
    table[START, [END, 3]] = torch.tensor([0.01, 0.99], dtype=torch.float64)
    table[3, 3] = 1.0
    found = beam_search(markov(table), markov_state(), 1, 3, 6, n_best=2, **MARKS)
    assert found.finished.tolist() == [[True, False]]
    assert found.words[0].tolist() == [[END, 0, 0, 0, 0, 0], [3] * 6]


def test_captions_that_do_not_exist_have_no_word_and_no_probability():
    table = torch.zeros(4, 4, dtype=torch.float64)
    table[START, END] = table[3, END] = 1.0
    for found in (
        beam_search(markov(table), markov_state(), 1, 30, 3, n_best=3, trace=("nothing",), **MARKS),
        beam_search(markov(table[:3, :3]), markov_state(), 1, 30, 3, n_best=3, trace=("nothing",), **MARKS),
    ):
        assert found.words[0].tolist() == [[END, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert found.log_probs[0].tolist() == [0.0, -math.inf, -math.inf]
        assert found.finished[0].tolist() == [True, False, False]
    nothing = beam_search(markov(table), markov_state(), 1, 2, 3, never=(END, 3), **MARKS)
    assert nothing.words.tolist() == [[[0, 0, 0]]]
    assert nothing.log_probs.item() == -math.inf


def test_equals_go_by_the_lower_beam_and_the_lower_word():
    size = 300
    found = beam_search(markov(torch.full((size, size), 1 / size)), markov_state(), 1, 3, 3, n_best=3, **MARKS)
    assert [written(found, 0, rank) for rank in range(3)] == [(END,), (3, END), (3, 3, END)]
    unfinished = beam_search(markov(torch.ones(size, size)), markov_state(), 1, 3, 2, n_best=3, never=(END,), **MARKS)
    assert [written(unfinished, 0, rank) for rank in range(3)] == [(3, 3), (3, 4), (3, 5)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 700), st.integers(1, 12), st.sampled_from([2, 30, 10**6]))
def test_the_largest_are_those_of_a_stable_sort(seed, size, count, levels):
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (2, 3, size)).astype(np.float32))
    values = values.masked_fill(values == 0, -torch.inf)
    count = min(count, size)
    found, indices = decoding._largest(values, count)
    expected = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found, expected.values[..., :count])
    assert torch.equal(indices, expected.indices[..., :count])


def test_nan_is_among_the_largest_wherever_it_stands():
    for at in range(500):
        values = torch.zeros(1, 500)
        values[0, at] = math.nan
        assert decoding._largest(values, 3)[1][0, 0] == at


@pytest.mark.parametrize("length_power", [0.0, 1.0])
def test_an_image_alone_has_the_captions_it_has_in_the_batch(length_power):
    model = Recurrent(images=12, size=30, seed=5)
    options = {"n_best": 3, "length_power": length_power, "trace": ("seen", "attention"), **MARKS}
    together = beam_search(model.step, model.state(), 12, 4, 9, **options)
    for image in range(12):
        alone = Recurrent(images=1, size=30, seed=5)
        for name in ("embedding", "recurrent", "output"):
            setattr(alone, name, getattr(model, name))
        alone.image = model.image[image : image + 1]
        own = {name: trace[image : image + 1] for name, trace in together.traces.items()}
        words, log_probs, finished = (
            part[image : image + 1] for part in (together.words, together.log_probs, together.finished)
        )
        found = beam_search(alone.step, alone.state(), 1, 4, 9, **options)
        assert_same(found, Captions(words, log_probs, finished, own))


@pytest.mark.parametrize("length_power", [0.0, 0.6])
def test_the_search_stops_when_it_is_decided_and_the_result_is_that_of_going_on(monkeypatch, length_power):
    model = Recurrent(images=6, size=12, seed=3)
    model.bias[END] = 15.0
    options = {"n_best": 3, "length_power": length_power, "trace": ("seen",), **MARKS}
    stopped = beam_search(model.step, model.state(), 6, 3, 15, **options)
    assert len(model.calls) < 15
    monkeypatch.setattr(decoding, "_may_ask", lambda steps, device: False)
    model.calls.clear()
    assert_same(stopped, beam_search(model.step, model.state(), 6, 3, 15, **options))
    assert len(model.calls) == 15


def test_the_first_step_has_one_hypothesis_and_the_beam_grows_to_its_size():
    model = Recurrent(images=2, size=5, seed=0)
    beam_search(model.step, model.state(), 2, 6, 4, length_power=3.0, **MARKS)
    beams = [beam for _, beam in model.calls]
    assert beams[0] == 1
    assert max(beams) == 6
    assert beams == sorted(beams)


@pytest.mark.fault("beam larger than the vocabulary")
def test_a_beam_larger_than_the_vocabulary_and_no_images():
    model = Recurrent(images=0, size=5, seed=0)
    found = beam_search(model.step, model.state(), 0, 50, 4, n_best=7, trace=("attention",), **MARKS)
    assert found.words.shape == (0, 7, 4)
    assert found.traces["attention"].shape == (0, 7, 4, 4)
    drawn = sample(model.step, model.state(), 0, 4, draws=2, generator=torch.Generator(), **MARKS)
    assert drawn.words.shape == (0, 2, 4)


def test_single_precision_steps_and_steps_that_reuse_their_output_are_left_as_they_are():
    table = torch.rand(9, 9, generator=torch.Generator().manual_seed(0))
    log_probs = table.log_softmax(-1)
    before = log_probs.clone()

    def step(words: Tensor, state: decoding.State) -> tuple[Tensor, decoding.State]:
        return log_probs[:1].expand(words.shape[0], words.shape[1], 9), state

    found = beam_search(step, {}, 2, 3, 5, n_best=2, **MARKS)
    sample(step, {}, 2, 5, generator=torch.Generator(), **MARKS)
    assert torch.equal(log_probs, before)
    assert found.log_probs.dtype == torch.float32


def random_table(seed: int, size: int) -> Tensor:
    table = np.random.default_rng(seed).dirichlet(np.ones(size), size)
    return torch.from_numpy(table)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_captions_are_drawn_as_often_as_they_are_likely(temperature):
    table, draws = random_table(4, 6), 20_000
    drawn = sample(
        markov(table),
        markov_state(2),
        2,
        4,
        draws=draws,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
        **MARKS,
    )
    allowed = torch.tensor([word not in (PAD, START) for word in range(6)])
    tempered = (table ** (1 / temperature)) * allowed
    tempered /= tempered.sum(1, keepdim=True)
    for image in range(2):
        counts = Counter(tuple(words) for words in drawn.words[image].tolist())
        unfinished = 1.0
        for caption in every_caption(6, 4, (PAD, START)):
            pairs = list(itertools.pairwise((START, *caption)))
            likely = math.prod(float(tempered[pair]) for pair in pairs)
            padded = (*caption, *[PAD] * (4 - len(caption)))
            assert counts[padded] / draws == pytest.approx(likely, abs=5 * math.sqrt(likely / draws) + 1e-4)
            unfinished -= likely
        assert float((~drawn.finished[image]).double().mean()) == pytest.approx(unfinished, abs=0.02)
        for draw in range(200):
            caption = written(drawn, image, draw)
            own = sum(math.log(float(table[pair])) for pair in itertools.pairwise((START, *caption)))
            assert float(drawn.log_probs[image, draw]) == pytest.approx(own)


def test_draws_depend_on_the_past_and_their_traces_follow_them():
    model = Recurrent(images=3, size=8, seed=2)
    generator = torch.Generator().manual_seed(1)
    drawn = sample(model.step, model.state(), 3, 6, draws=5, generator=generator, trace=("seen", "attention"), **MARKS)
    assert drawn.words.shape == (3, 5, 6)
    assert len(set(map(tuple, drawn.words.flatten(0, 1).tolist()))) > 5
    for image, draw in itertools.product(range(3), range(5)):
        words = written(drawn, image, draw)
        assert float(drawn.log_probs[image, draw]) == pytest.approx(model.log_prob(image, words))
        assert_traced(model, drawn, image, draw)


def test_the_same_generator_draws_the_same_captions_and_is_left_the_same_wherever_they_end():
    model = Recurrent(images=3, size=8, seed=2)
    first, second, ending = (torch.Generator().manual_seed(7) for _ in range(3))
    one = sample(model.step, model.state(), 3, 6, draws=4, generator=first, **MARKS)
    assert_same(one, sample(model.step, model.state(), 3, 6, draws=4, generator=second, **MARKS))
    other = sample(model.step, model.state(), 3, 6, draws=4, generator=second, **MARKS)
    assert not torch.equal(one.words, other.words)
    at_once = torch.eye(4, dtype=torch.float64)[torch.full((4,), END)]
    sample(markov(at_once), markov_state(3), 3, 6, draws=4, generator=ending, **MARKS)
    assert torch.equal(ending.get_state(), first.get_state())


@pytest.mark.parametrize("temperature", [1e-3, 1e-30])
def test_a_temperature_near_zero_is_greedy(temperature):
    model = Recurrent(images=5, size=20, seed=9)
    drawn = sample(
        model.step, model.state(), 5, 7, temperature=temperature, generator=torch.Generator().manual_seed(0), **MARKS
    )
    assert_same(drawn, greedy(model.step, model.state(), 5, 7, **MARKS))


def test_words_without_probability_are_never_drawn():
    table = torch.zeros(40, 40, dtype=torch.float64)
    table[:, [PAD, 7, 30]] = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    drawn = sample(markov(table), markov_state(), 1, 50, draws=300, generator=torch.Generator().manual_seed(0), **MARKS)
    assert set(drawn.words.flatten().tolist()) == {7, 30}


def test_a_caption_that_cannot_go_on_does_not_exist():
    table = torch.zeros(9, 9, dtype=torch.float64)
    table[:, [PAD, 7, 8]] = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    for options in ({"never": (7, 8)}, {"never": (7, 8), "temperature": 1e-3}):
        none = sample(markov(table), markov_state(), 1, 3, generator=torch.Generator(), **options, **MARKS)
        assert none.words.tolist() == [[[PAD] * 3]]
        assert none.log_probs.item() == -math.inf
        assert not none.finished.any()
    none = sample(markov(table[:3, :3]), markov_state(), 1, 3, generator=torch.Generator(), never=(END,), **MARKS)
    assert none.words.tolist() == [[[PAD] * 3]]
    assert not none.finished.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_smallest_and_the_largest_random_number_draw_words_that_have_a_probability(dtype):
    log_probs = torch.full((1, 1, 12), -torch.inf, dtype=dtype)
    log_probs[..., [4, 9]] = math.log(0.5)
    uniform = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)
    words, gained = decoding._draw(log_probs, uniform, [PAD, START], 1.0)
    assert words.tolist() == [[4, 9]]
    assert gained.tolist() == [[float(log_probs[0, 0, 4])] * 2]


def test_padding_start_and_what_is_never_wanted_are_not_generated():
    table = torch.full((9, 9), 0.01, dtype=torch.float64)
    table[:, [PAD, START, UNKNOWN, 8]] = 0.23
    never = (UNKNOWN, 8, 1000)
    for found in (
        beam_search(markov(table), markov_state(), 1, 4, 6, n_best=4, never=never, **MARKS),
        greedy(markov(table), markov_state(), 1, 6, never=never, **MARKS),
        sample(markov(table), markov_state(), 1, 6, never=never, draws=99, generator=torch.Generator(), **MARKS),
    ):
        for rank in range(found.words.shape[1]):
            assert not {PAD, START, UNKNOWN, 8} & set(written(found, 0, rank))


def test_an_ensemble_of_a_model_with_itself_is_that_model():
    model = Recurrent(images=3, size=15, seed=11)
    both, states = ensemble([model.step, model.step]), join_states([model.state(), model.state()])
    together = beam_search(both, states, 3, 3, 6, n_best=3, trace=("1.seen",), **MARKS)
    alone = beam_search(model.step, model.state(), 3, 3, 6, n_best=3, trace=("seen",), **MARKS)
    assert torch.equal(together.traces["1.seen"], alone.traces["seen"])
    assert_same(replace(together, traces={}), replace(alone, traces={}))


def test_an_ensemble_averages_probabilities_and_keeps_the_states_apart():
    models = [Recurrent(images=2, size=10, seed=seed) for seed in (1, 2, 3)]
    step = ensemble([model.step for model in models])
    found = beam_search(step, join_states([model.state() for model in models]), 2, 3, 5, n_best=3, **MARKS)
    for image, rank in itertools.product(range(2), range(3)):
        words, total = written(found, image, rank), 0.0
        for at, word in enumerate(words):
            likely = [math.exp(model.hidden_and_log_probs(image, words[:at])[1][word]) for model in models]
            total += math.log(sum(likely) / 3)
        assert float(found.log_probs[image, rank]) == pytest.approx(total)


def test_an_ensemble_leaves_a_word_impossible_that_is_impossible_for_all():
    table = torch.tensor([[0.0, 0.0, 0.5, 0.5]], dtype=torch.float64).expand(4, 4)
    log_probs, _ = ensemble([markov(table)] * 3)(torch.ones(1, 1, dtype=torch.int64), {})
    assert log_probs.exp()[0, 0].tolist() == pytest.approx([0.0, 0.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_best": 4}, "n_best must lie between 1 and the beam size 3, and is 4"),
        ({"n_best": 0}, "n_best must lie between 1"),
        ({"beam_size": 0}, "the beam size 0"),
        ({"max_length": 0}, "max_length must be 1 or more, and is 0"),
        ({"length_power": -0.5}, "length_power must be 0 or more, and is -0.5"),
        ({"length_power": math.nan}, "length_power"),
        ({"end": START}, "the end word 1 must differ from"),
        ({"end": PAD}, "the end word 0 must differ from"),
        ({"end": 9}, "the end word 9 is outside the vocabulary of 5"),
        ({"trace": ("attention", "gate")}, "cannot trace 'gate': the step's state has hidden, seen, attention"),
        ({"images": 3}, r"state entry 'hidden' must begin with \[3, 1\], and is \[2, 1, 4\]"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    model = Recurrent(images=2, size=5, seed=0)
    arguments = {"images": 2, "beam_size": 3, "max_length": 4, **MARKS, **change}
    with pytest.raises(CapbenchError, match=message):
        beam_search(model.step, model.state(), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive .* and is 0.0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"draws": 0}, "draws must be 1 or more, and is 0"),
        ({"max_length": 0}, "max_length"),
        ({"trace": ("gate",)}, "cannot trace 'gate'"),
        ({"end": 9}, "outside the vocabulary of 5"),
    ],
)
def test_draws_with_arguments_out_of_range_are_refused(change, message):
    model = Recurrent(images=2, size=5, seed=0)
    arguments = {"max_length": 4, "generator": torch.Generator(), **MARKS, **change}
    with pytest.raises(CapbenchError, match=message):
        sample(model.step, model.state(), 2, **arguments)


def test_a_state_without_a_beam_dimension_is_refused():
    model = Recurrent(images=2, size=5, seed=0)
    flat = {name: entry[:, 0] for name, entry in model.state().items()}
    with pytest.raises(CapbenchError, match=r"'hidden' must begin with \[2, 1\], and is \[2, 4\]"):
        greedy(model.step, flat, 2, 3, **MARKS)


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(CapbenchError, match="one model or more"):
        ensemble([])


@pytest.mark.fault("NaN among the scores of words")
@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize(("image", "word"), [(0, slice(None)), (1, slice(None)), (1, 5)], ids=["all", "other", "one"])
def test_nan_is_refused_whenever_it_comes(at, image, word):
    model = Recurrent(images=2, size=40, seed=0)
    model.bias[END] = -100.0

    def step(words: Tensor, state: decoding.State) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs, state_after = model.step(words, state)
        if len(model.calls) == at:
            log_probs[image, 0, word] = math.nan
        return log_probs, state_after

    for decode in (
        lambda: beam_search(step, model.state(), 2, 3, 6, n_best=2, **MARKS),
        lambda: greedy(step, model.state(), 2, 6, **MARKS),
        lambda: sample(step, model.state(), 2, 6, generator=torch.Generator().manual_seed(0), **MARKS),
    ):
        model.calls.clear()
        with pytest.raises(CapbenchError, match="log-probability of NaN"):
            decode()
