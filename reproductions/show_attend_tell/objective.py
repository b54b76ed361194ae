"""The losses of Show, Attend and Tell (Xu et al., ICML 2015, section 4), in the scale of its released capgen.py.

The paper's letters: y, a caption; a, the annotations of its image; s, the attended locations; alpha_ti, the attention
weights; b, the moving average of log p(y_t | s, a); lambda_r, lambda_e and lambda, the weights of the reward, the
entropy and the doubly stochastic penalty.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from capbench.captioners.experiment import word_log_probs
from capbench.training.shares import everywhere, mean

from .model import ShowAttendTell

REWARD = 0.1  # the released code divides its reward by 10


def objective(
    model: ShowAttendTell, a: Float[Tensor, "caption location dim"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, ""]:
    """Equation 14 for soft attention; for hard attention, a surrogate whose gradient is the learning rule of
    section 4.1 (equation 12 with baseline and entropy).

    The released code averages the likelihood over the captions of a batch, but sums the other terms over them: at N
    captions of T words with L locations, its penalty is N/L times that of equation 14, its reward N/(10 T) times that
    of equation 12, because it rewards the log-likelihood of a word, and its entropy N times H[s].
    """
    recipe = model.recipe
    path = model.path(a, captions)
    log_probs, present = word_log_probs(path.scores, captions)
    loss = -mean(log_probs.sum(1))
    if recipe.attention == "soft":
        loss = loss + recipe.lambda_doubly * doubly_stochastic_penalty(path.attention, present).sum() / a.shape[1]
    if path.chosen is not None and path.sampled is not None:
        reward = log_probs.detach().sum(1) / present.sum(1)
        terms = score_function(path.attention, path.chosen, present, reward - model.b) * path.sampled
        loss = loss - recipe.lambda_reward * REWARD * terms.sum()
        loss = loss - recipe.lambda_entropy * entropy(path.attention, present).sum()
        model.b.lerp_(everywhere(mean(reward)).to(model.b.dtype), 0.1)  # b_k = 0.9 b_{k-1} + 0.1 log p(y_t | s_k, a)
    return loss


def doubly_stochastic_penalty(
    alpha: Float[Tensor, "caption step location"], present: Bool[Tensor, "caption step"]
) -> Float[Tensor, " caption"]:
    """Equation 14: sum_i (1 - sum_t alpha_ti)^2, which spreads the attention over the whole image."""
    return (1 - (alpha * present[..., None]).sum(1)).square().sum(1)


def score_function(
    alpha: Float[Tensor, "caption step location"],
    chosen: Int[Tensor, "caption step"],
    present: Bool[Tensor, "caption step"],
    advantage: Float[Tensor, " caption"],
) -> Float[Tensor, " caption"]:
    """(log p(y_t | s, a) - b) log p(s | a) for one sampled path s, the term that section 4.1 differentiates."""
    log_alpha = alpha.gather(2, chosen[..., None])[..., 0].clamp(min=1e-10).log()
    return advantage * (log_alpha * present).sum(1)


def entropy(
    alpha: Float[Tensor, "caption step location"], present: Bool[Tensor, "caption step"]
) -> Float[Tensor, " caption"]:
    """H[s] of section 4.1, summed over the steps, which keeps the samples from settling on one location."""
    return -(alpha * alpha.clamp(min=1e-10).log()).sum(2).mul(present).sum(1)
