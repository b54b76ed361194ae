"""The losses of Show, Attend and Tell against hand counts, and the estimator of hard attention against the truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from capbench.captioners.experiment import word_log_probs
from capbench.captioners.layers import context, lstm_step
from capbench.data.captions import Box
from capbench.metrics.alignment import locations_inside, pointing
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.objective import doubly_stochastic_penalty, entropy, objective
from reproductions.show_attend_tell.recipe import AttentionRecipe
from reproductions.translational.experiment import single_bleu

RECIPE = AttentionRecipe(
    attention="hard",
    embedding_dim=4,
    hidden_dim=5,
    attention_dim=3,
    dropout=0.0,
    lambda_doubly=0.0,
    lambda_reward=20.0,  # of one caption of two steps, N / (10 T) times 20 is equation 12 itself
    lambda_entropy=0.0,
)
CAPTION = torch.tensor([[1, 4, 2]])  # two steps
LOCATIONS = 3


def model() -> ShowAttendTell:
    torch.manual_seed(3)
    built = ShowAttendTell(RECIPE, 6, 4).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.8)  # attention that matters
    return built.train()


def along(net: ShowAttendTell, a: torch.Tensor, path: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(y | s, a) and log p(s | a) of one path of locations, written out."""
    keys, (h, c) = net.f_att.keys(a), net.initial(a)
    words = net.E(CAPTION[:, :-1])
    log_s, hidden, contexts = torch.zeros((), dtype=torch.float64), [], []
    for t, location in enumerate(path):
        alpha = net.f_att.step(keys, a, h)[1]
        log_s = log_s + alpha[0, 0, location].double().log()
        one = torch.zeros_like(alpha)
        one[0, 0, location] = 1
        z = net.gated(context(one, a), h)
        h, c = lstm_step(net.T_y(words[:, t, None]) + net.T_h(h) + net.T_z(z), c)
        hidden.append(h)
        contexts.append(z)
    scores = net.output(words, torch.cat(hidden, 1), torch.cat(contexts, 1))
    log_y, _ = word_log_probs(scores, CAPTION)
    return log_y.sum().double(), log_s


def test_the_gradient_of_hard_attention_is_right_on_average(monkeypatch):
    """sum_s p(s | a) log p(y | s, a), the bound of equation 10, differentiated exactly, against the estimator."""
    net, a = model(), torch.randn(1, LOCATIONS, 4, dtype=torch.float64)
    bound = torch.zeros((), dtype=torch.float64)
    for path in product(range(LOCATIONS), repeat=2):
        log_y, log_s = along(net, a, path)
        bound = bound + log_s.exp() * log_y
    exact = torch.autograd.grad(-bound, net.f_att.W_a.weight)[0]

    expected = torch.zeros_like(exact)
    probability = 0.0
    for path in product(range(LOCATIONS), repeat=2):
        steps = iter(path)
        monkeypatch.setattr(torch, "multinomial", lambda alpha, n, steps=steps: torch.tensor([[next(steps)]]))
        monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.zeros(*size))  # always follow the sample
        net.b.fill_(-1.7)  # any baseline leaves the mean as it is
        estimate = torch.autograd.grad(objective(net, a, CAPTION), net.f_att.W_a.weight)[0]
        chance = float(along(net, a, path)[1].detach().exp())
        expected += chance * estimate
        probability += chance
    assert probability == pytest.approx(1.0, abs=1e-6)
    assert exact.abs().max() > 1e-3
    assert torch.allclose(expected, exact, rtol=1e-4, atol=1e-6)


def test_the_baseline_is_the_moving_average_of_the_likelihood_of_a_word():
    net, a = model(), torch.randn(1, LOCATIONS, 4, dtype=torch.float64)
    net.b.fill_(-2.0)
    torch.manual_seed(0)
    path = net.path(a, CAPTION)
    reward = float(word_log_probs(path.scores, CAPTION)[0].detach().mean())
    torch.manual_seed(0)
    objective(net, a, CAPTION)
    assert float(net.b) == pytest.approx(0.9 * -2.0 + 0.1 * reward, rel=1e-6)


def test_half_of_the_captions_follow_their_samples_and_half_the_expectation():
    net = model()
    path = net.path(torch.randn(400, LOCATIONS, 4, dtype=torch.float64), CAPTION.expand(400, -1))
    assert path.sampled is not None
    assert 150 < int(path.sampled.sum()) < 250


def test_in_evaluation_hard_attention_takes_the_expectation():
    hard = model().eval()
    soft = ShowAttendTell(replace(RECIPE, attention="soft"), 6, 4).double().eval()
    soft.load_state_dict(hard.state_dict())
    a = torch.randn(2, LOCATIONS, 4, dtype=torch.float64)
    assert torch.equal(hard(a, CAPTION.expand(2, -1)), soft(a, CAPTION.expand(2, -1)))


def test_the_doubly_stochastic_penalty_and_the_entropy_by_hand():
    alpha = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]])
    present = torch.tensor([[True, True, False]])
    assert doubly_stochastic_penalty(alpha, present).tolist() == pytest.approx([0.25**2 + 0.25**2])
    by_hand = np.log(2) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert entropy(alpha, present).tolist() == pytest.approx([by_hand])


def test_locations_lie_inside_where_their_centre_does():
    boxes: list[Box] = [(0.0, 0.0, 4.0, 4.0), (6.0, 4.0, 8.0, 8.0)]
    assert locations_inside(boxes, 4, 8).reshape(2, 2).tolist() == [[True, False], [False, True]]
    assert locations_inside([(0.0, 0.0, 2.0, 8.0)], 16, 8).reshape(4, 4).tolist() == [[True, False, False, False]] * 4


def test_pointing_counts_ties_against_the_model():
    weights = np.array([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    inside = np.array([[False, True], [False, True], [False, True]])
    hits, chance = pointing(weights, inside)
    assert hits.tolist() == [100.0, 0.0, 0.0]
    assert chance.tolist() == [50.0, 50.0, 50.0]


def test_the_bleu_of_the_article_is_that_of_nltk_with_one_weight():
    from nltk.translate.bleu_score import sentence_bleu

    reference = ["a", "dog", "runs", "over", "the", "wide", "grass"]
    candidate = ["a", "dog", "runs", "on", "the", "wide", "road"]
    for n in (1, 2, 3):
        weights = tuple(float(k == n) for k in (1, 2, 3, 4))[: max(n, 1)]
        assert single_bleu(reference, candidate, n) == pytest.approx(sentence_bleu([reference], candidate, weights))
    assert single_bleu(reference, [], 1) == 0.0
    assert single_bleu(reference, ["zebra"], 1) == 0.0
