"""Show, Attend and Tell against the equations of its released code, kelvinxu/arctic-captions, in float64.

`released` writes out what capgen.py builds with its selector, prev2out and ctx2out, from our weights. Left out are the
1e-8 that it adds to a probability before the logarithm, and dropout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from capbench.data.vocabulary import END, START
from capbench.training.loop import make_optimizer
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.objective import objective
from reproductions.show_attend_tell.recipe import AttentionRecipe, presets

N, L, D, WORDS = 5, 6, 7, 9
CAPTIONS = torch.tensor(
    [[START, *words, END] for words in np.random.default_rng(1).integers(4, WORDS, (N, 3)).tolist()]
)
STEPS = CAPTIONS.shape[1] - 1  # END included
PICKED = torch.tensor([[0, 5, 2, 1], [3, 3, 0, 4], [1, 2, 5, 0], [4, 0, 1, 2], [2, 2, 2, 2]])  # [caption, step]
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def model(attention: Any) -> ShowAttendTell:
    torch.manual_seed(4)
    recipe = AttentionRecipe(attention=attention, embedding_dim=5, hidden_dim=4, attention_dim=D, dropout=0.0)
    net = ShowAttendTell(recipe, WORDS, D).double().train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.7)
        net.E.weight[START] = 0
    return net


def random_annotations() -> Tensor:
    return torch.rand(N, L, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Released(NamedTuple):
    cost: Tensor  # [step, caption], masked_cost
    alphas: Tensor  # [step, caption, location]
    samples: Tensor  # [step, caption, location], alpha_sample


def released(net: ShowAttendTell, context: Tensor, samples: Tensor | None) -> Released:
    """build_model of capgen.py; `samples` stands for what Theano's generator would draw, None for the expectation."""
    words = CAPTIONS[:, 1:].T
    embedded = net.E.weight[words]
    embedded = torch.cat([torch.zeros_like(embedded[:1]), embedded[:-1]])  # emb_shifted: the first word is zero
    mean = context.mean(1)
    h = torch.tanh(mean @ net.f_init_h.weight.T + net.f_init_h.bias)
    c = torch.tanh(mean @ net.f_init_c.weight.T + net.f_init_c.bias)
    projected = context @ net.f_att.W_a.weight.T + net.f_att.W_a.bias
    cost, alphas, drawn = [], [], []
    for t in range(len(words)):
        e = torch.tanh(projected + (h @ net.f_att.W_h.weight.T)[:, None]) @ net.f_att.v.weight.T
        alpha = e[..., 0].softmax(1)
        sample = alpha if samples is None else samples[t]
        selector = torch.sigmoid(h @ net.f_beta.weight.T + net.f_beta.bias)
        seen = selector * (context * sample[:, :, None]).sum(1)
        gates = embedded[t] @ net.T_y.weight.T + net.T_y.bias + h @ net.T_h.weight.T + seen @ net.T_z.weight.T
        i, f, o, g = gates.split(gates.shape[1] // 4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        logit = h @ net.L_h.weight.T + net.L_h.bias + embedded[t] + seen @ net.L_z.weight.T
        probability = (torch.tanh(logit) @ net.L_o.weight.T + net.L_o.bias).softmax(1)
        cost.append(-probability[torch.arange(N), words[t]].log())
        alphas.append(alpha)
        drawn.append(sample)
    return Released(torch.stack(cost), torch.stack(alphas), torch.stack(drawn))


def compare(net: ShowAttendTell, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for (name, _), mine, wanted in zip(net.named_parameters(), ours, theirs, strict=True):
        assert torch.allclose(mine, wanted, EXACT["rtol"], EXACT["atol"]), name


def test_the_loss_of_soft_attention_and_its_gradient_are_the_released_ones():
    net, context = model("soft"), random_annotations()
    cost, alphas, _ = released(net, context, None)
    penalty = ((1.0 - alphas.sum(0)) ** 2).sum(0).mean()  # alpha_c = 1
    theirs, ours = cost.sum(0).mean() + penalty, objective(net, context, CAPTIONS)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    wanted = torch.autograd.grad(theirs, list(net.parameters()))
    compare(net, torch.autograd.grad(ours, list(net.parameters())), wanted)


def test_the_released_penalty_is_that_of_equation_14_times_captions_over_locations():
    net, context = model("soft"), random_annotations()
    cost, alphas, _ = released(net, context, None)
    of_equation_14 = (1.0 - alphas.sum(0)).square().sum(1).mean()
    ours = objective(net, context, CAPTIONS) - cost.sum(0).mean()
    assert ours.item() == pytest.approx(N / L * of_equation_14.item())


@pytest.mark.parametrize("sampled", [True, False])
def test_the_learning_rule_of_hard_attention_is_the_released_one(sampled, monkeypatch):
    """RL_sumCost: the gradient that Theano is given for the attention weights replaces that of the penalty."""
    net, context = model("hard"), random_annotations()
    baseline = 1.3  # of the cost, where ours is of the log-likelihood
    net.b.fill_(-baseline)
    one_hot = torch.nn.functional.one_hot(PICKED.T, L).double()
    cost, alphas, samples = released(net, context, one_hot if sampled else None)
    known = (baseline - cost.mean(0))[None, :, None] / 10.0 * (-samples / alphas) + 0.002 * (alphas.log() + 1)
    given = [torch.ones((), dtype=torch.float64), known.detach()]
    wanted = torch.autograd.grad([cost.sum(0).mean(), alphas], list(net.parameters()), given)

    steps = iter(PICKED.T)
    monkeypatch.setattr(torch, "multinomial", lambda alpha, count: next(steps)[:, None])
    monkeypatch.setattr(torch, "rand", lambda size, device: torch.full((size,), 0.0 if sampled else 1.0))
    compare(net, torch.autograd.grad(objective(net, context, CAPTIONS), list(net.parameters())), wanted)
    assert net.b.item() == pytest.approx(-(0.9 * baseline + 0.1 * cost.mean().item()), rel=1e-12)


def test_the_weights_of_reward_and_entropy_follow_from_the_sums_over_a_batch(monkeypatch):
    """In averages over N captions: N / (10 T) and 0.002 N, which are 0.53 and 0.128 for 64 captions of 12 steps."""
    assert pytest.approx((0.53, 0.128), abs=0.004) == (64 / (10 * 12), 0.002 * 64)
    net, context = model("hard"), random_annotations()
    steps = iter(PICKED.T)
    monkeypatch.setattr(torch, "multinomial", lambda alpha, count: next(steps)[:, None])
    monkeypatch.setattr(torch, "rand", lambda size, device: torch.zeros(size))
    cost, alphas, samples = released(net, context, torch.nn.functional.one_hot(PICKED.T, L).double())
    log_s = (alphas * samples).sum(2).log().sum(0)
    reward = ((-cost.sum(0) - STEPS * net.b) * log_s).mean()
    entropy = -(alphas * alphas.log()).sum((0, 2)).mean()
    expected = cost.sum(0).mean() - N / (10 * STEPS) * reward - 0.002 * N * entropy
    assert objective(net, context, CAPTIONS).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("preset", ["soft", "hard"])
def test_the_presets_of_the_paper_take_the_steps_of_the_released_rmsprop(preset):
    random = np.random.default_rng(0)
    gradients = [random.normal(size=6) * 10.0 ** random.integers(-4, 2, 6) for _ in range(30)]
    weight = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = make_optimizer(presets("flickr8k")[preset].training, [weight])
    p, mean, square, step = np.zeros((4, 6))
    for g in gradients:
        mean, square = 0.95 * mean + 0.05 * g, 0.95 * square + 0.05 * g**2
        step = 0.9 * step - 1e-4 * g / np.sqrt(square - mean**2 + 1e-4)
        p = p + step
        weight.grad = torch.from_numpy(g.copy())
        optimizer.step()
        assert weight.detach().numpy() == pytest.approx(p, rel=1e-9, abs=1e-15)


def test_the_presets_have_the_released_weights_of_the_losses_or_say_so():
    weights = {name: (r.lambda_doubly, r.lambda_reward, r.lambda_entropy) for name, r in presets("flickr8k").items()}
    hundredth = weights.pop("hard-ours")
    assert set(weights.values()) == {(1.0, 1.0, 0.002)}
    assert hundredth == pytest.approx((1.0, 0.01, 0.00002))


def test_start_is_zero_and_stays_so():
    net, context = model("soft"), random_annotations()
    assert not net.E.weight[START].any()
    objective(net, context, CAPTIONS).backward()
    assert net.E.weight.grad is not None
    assert not net.E.weight.grad[START].any()


def test_dropout_is_on_the_hidden_state_and_before_the_output_alone():
    net, context = model("soft"), random_annotations()
    shapes: list[torch.Size] = []
    net.dropout.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    net(context, CAPTIONS)
    assert shapes == [(N, STEPS, 4), (N, STEPS, 5)]  # h, and the sum that L_o reads


def test_initial_weights_are_orthogonal_where_square_and_small_elsewhere():
    net = ShowAttendTell(AttentionRecipe(attention="soft", attention_dim=512), 40, 512)
    blocks = [*net.T_h.weight.chunk(4), *net.T_y.weight.chunk(4), net.f_att.W_h.weight, net.L_h.weight]
    for block in (block.detach() for block in blocks):
        assert torch.allclose(block @ block.T, torch.eye(512), atol=1e-4)
    for other in (net.T_z, net.f_att.W_a, net.L_o, net.E):
        assert float(other.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not any(parameter.any() for name, parameter in net.named_parameters() if name.endswith("bias"))
