"""The decoder of Show, Attend and Tell (Xu et al., ICML 2015, sections 3.1 and 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capbench.captioners.decoding import State, Step
from capbench.captioners.layers import AdditiveAttention, context, lstm_step
from reproductions.show_attend_tell.recipe import AttentionRecipe


class DecodedPath(NamedTuple):
    """The predictions for the words of captions, and where they looked."""

    scores: Tensor  # [caption, step, word], logits of the next words
    attention: Tensor  # [caption, step, location], alpha
    chosen: Tensor | None  # [caption, step], the locations that hard attention sampled
    sampled: Tensor | None  # [caption], whether hard attention followed its samples, not their expectation


class ShowAttendTell(nn.Module):
    """An LSTM that attends to a part of the image for each word.

    The paper's letters: a_i, annotation i of L, of dimension D; y_t, word t; E, the word embeddings; h and c, hidden
    state and cell of the LSTM; alpha_ti, the attention weight of a_i for word t; z_t, the context; beta_t, the gate;
    b_k, the baseline of hard attention, a moving average of log p(y | s, a).
    """

    b: Tensor

    def __init__(self, recipe: AttentionRecipe, vocabulary_size: int, annotation_dim: int) -> None:
        super().__init__()
        m, n = recipe.embedding_dim, recipe.hidden_dim
        self.recipe = recipe
        self.E = nn.Embedding(vocabulary_size, m)
        self.f_init_c, self.f_init_h = nn.Linear(annotation_dim, n), nn.Linear(annotation_dim, n)
        self.f_att = AdditiveAttention(annotation_dim, n, recipe.attention_dim)
        self.f_beta = nn.Linear(n, 1)
        self.lstm = nn.LSTMCell(m + annotation_dim, n)
        self.L_h, self.L_z = nn.Linear(n, m), nn.Linear(annotation_dim, m, bias=False)
        self.L_o = nn.Linear(m, vocabulary_size)
        self.dropout = nn.Dropout(recipe.dropout)
        self.register_buffer("b", torch.zeros(()))
        nn.init.uniform_(self.E.weight, -0.1, 0.1)

    def forward(
        self, a: Float[Tensor, "caption location dim"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step word"]:
        """Scores of the words after the first, whose softmax is p(y_t | a, y_1 ... y_{t-1})."""
        return self.path(a, captions).scores

    def path(self, a: Float[Tensor, "caption location dim"], captions: Int[Tensor, "caption length"]) -> DecodedPath:
        """`forward`, with what the losses of section 4 need besides the scores."""
        Ey, keys = self.dropout(self.E(captions[:, :-1])), self.f_att.keys(a)  # noqa: N806
        h, c = self.initial(a)
        stochastic = self.training and self.recipe.attention == "hard"
        sampled = torch.rand(len(a), device=a.device) < 0.5 if stochastic else None
        hidden, contexts, weights, chosen = [], [], [], []
        for t in range(Ey.shape[1]):
            z, alpha = self.attend(keys, a, h)  # equations 4 and 5, and 13, the expectation
            if sampled is not None:
                s = torch.multinomial(alpha[:, 0], 1)  # equation 8: s_t ~ Multinoulli(alpha_t)
                one_hot = torch.zeros_like(alpha[:, 0]).scatter_(1, s, 1.0)[:, None]
                z = context(torch.where(sampled[:, None, None], one_hot, alpha), a)  # equation 9: one location
                chosen.append(s[:, 0])
            z = self.gated(z, h)
            h, c = lstm_step(self.lstm, torch.cat([Ey[:, t, None], z], -1), h, c)  # equations 1 to 3
            hidden.append(h)
            contexts.append(z)
            weights.append(alpha)
        scores = self.output(Ey, torch.cat(hidden, 1), torch.cat(contexts, 1))  # equation 7
        return DecodedPath(scores, torch.cat(weights, 1), torch.stack(chosen, 1) if chosen else None, sampled)

    def initial(self, a: Float[Tensor, "image location dim"]) -> tuple[Tensor, Tensor]:
        """h_0 = f_init,h(mean_i a_i) and c_0 = f_init,c(mean_i a_i), [image, 1, hidden]."""
        mean = a.mean(1, keepdim=True)
        return self.f_init_h(mean).tanh(), self.f_init_c(mean).tanh()

    def attend(
        self, keys: Tensor, a: Float[Tensor, "image location dim"], h: Float[Tensor, "image beam hidden"]
    ) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:
        """z_t = sum_i alpha_ti a_i and alpha_t = softmax(e_t), e_ti = f_att(a_i, h_{t-1}): equations 4, 5 and 13.

        Without attention, the weights are equal.
        """
        if self.recipe.attention == "none":
            alpha = keys.new_full((*h.shape[:2], keys.shape[1]), 1 / keys.shape[1], dtype=torch.float32)
            return context(alpha, a), alpha
        return self.f_att.step(keys, a, h)

    def gated(self, z: Float[Tensor, "image beam dim"], h: Float[Tensor, "image beam hidden"]) -> Tensor:
        """Section 4.2.1: phi({a_i}, {alpha_i}) = beta sum_i alpha_i a_i with beta_t = sigma(f_beta(h_{t-1}))."""
        return self.f_beta(h).sigmoid() * z

    def output(self, Ey: Tensor, h: Tensor, z: Tensor) -> Float[Tensor, "image step word"]:  # noqa: N803
        """Equation 7, with a tanh as in the released code: L_o(E y_{t-1} + L_h h_t + L_z z_t)."""
        scores: Tensor = self.L_o(self.dropout((Ey + self.L_h(self.dropout(h)) + self.L_z(z)).tanh()))
        return scores

    def start(self, a: Float[Tensor, "image location dim"]) -> State:
        h, c = self.initial(a)
        return {"h": h, "c": c, "attention_weights": h.new_zeros(len(a), 1, a.shape[1], dtype=torch.float32)}

    def step(self, a: Float[Tensor, "image location dim"]) -> Step:
        """One word for every beam. Hard attention, too, takes the expectation (section 4.2)."""
        keys = self.f_att.keys(a)

        def step(words: Tensor, state: State) -> tuple[Tensor, State]:
            Ey, h = self.E(words), state["h"]  # noqa: N806
            z, alpha = self.attend(keys, a, h)
            z = self.gated(z, h)
            h, c = lstm_step(self.lstm, torch.cat([Ey, z], -1), h, state["c"])
            log_probs = self.output(Ey, h, z).float().log_softmax(-1)
            return log_probs, {"h": h, "c": c, "attention_weights": alpha}

        return step
