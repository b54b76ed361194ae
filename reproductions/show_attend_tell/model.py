"""The decoder of Show, Attend and Tell (Xu et al., ICML 2015, sections 3.1 and 4), as in its released capgen.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from capbench.captioners.decoding import State, Step
from capbench.captioners.layers import AdditiveAttention, context, lstm_step
from capbench.data.vocabulary import START

from .recipe import AttentionRecipe

Attend = Callable[[Tensor], tuple[Tensor, ...]]  # h [image, beam, hidden] -> z [image, beam, dim], alpha, ...


class DecodedPath(NamedTuple):
    """The predictions for the words of captions, and where they looked."""

    scores: Tensor  # [caption, step, word], logits of the next words
    attention: Tensor  # [caption, step, location], alpha
    chosen: Tensor | None  # [caption, step], the locations that hard attention sampled
    sampled: Tensor | None  # [caption], whether hard attention followed its samples, not their expectation


class ShowAttendTell(nn.Module):
    """An LSTM that attends to a part of the image for each word.

    The paper's letters: a_i, annotation i of L, of dimension D; y_t, word t; E, the word embeddings, 0 for START; h and
    c, hidden state and cell of the LSTM; T, its matrix, in three parts; alpha_ti, the attention weight of a_i for word
    t; z_t, the context; beta_t, the gate; b_k, the baseline of hard attention, a moving average of log p(y_t | s, a).
    """

    b: Tensor

    def __init__(self, recipe: AttentionRecipe, vocabulary_size: int, annotation_dim: int) -> None:
        super().__init__()
        m, n = recipe.embedding_dim, recipe.hidden_dim
        self.recipe = recipe
        self.E = nn.Embedding(vocabulary_size, m, padding_idx=START)
        self.f_init_c, self.f_init_h = nn.Linear(annotation_dim, n), nn.Linear(annotation_dim, n)
        self.f_att = AdditiveAttention(annotation_dim, n, recipe.attention_dim)
        self.f_beta = nn.Linear(n, 1)
        self.T_y, self.T_h = nn.Linear(m, 4 * n), nn.Linear(n, 4 * n, bias=False)
        self.T_z = nn.Linear(annotation_dim, 4 * n, bias=False)
        self.L_h, self.L_z = nn.Linear(n, m), nn.Linear(annotation_dim, m, bias=False)
        self.L_o = nn.Linear(m, vocabulary_size)
        self.dropout = nn.Dropout(recipe.dropout)
        self.register_buffer("b", torch.zeros(()))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """As in the released code: square matrices orthogonal but for W_a, others from N(0, 0.01^2), biases 0."""
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            if layer.bias is not None:
                layer.bias.zero_()
            for matrix in layer.weight.chunk(4 if layer in (self.T_y, self.T_h) else 1):  # one a gate
                if matrix.shape[0] == matrix.shape[1] and layer is not self.f_att.W_a:
                    nn.init.orthogonal_(matrix)
                else:
                    matrix.normal_(std=0.01)
        self.E.weight.normal_(std=0.01)[START] = 0

    def forward(
        self, a: Float[Tensor, "caption location dim"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step word"]:
        """Scores of the words after the first, whose softmax is p(y_t | a, y_1 ... y_{t-1})."""
        return self.path(a, captions).scores

    def path(self, a: Float[Tensor, "caption location dim"], captions: Int[Tensor, "caption length"]) -> DecodedPath:
        """`forward`, with what the losses of section 4 need besides the scores."""
        words, place = captions[:, :-1].unique(return_inverse=True)  # a word of the batch is multiplied by T_y once
        Ey, T_Ey = embedding(place, self.E(words)), embedding(place, self.T_y(self.E(words)))  # noqa: N806
        h, c = self.initial(a)
        stochastic = self.training and self.recipe.attention == "hard"
        sampled = torch.rand(len(a), device=a.device) < 0.5 if stochastic else None
        attend = self.attending(a) if sampled is None else self.sampling(a, sampled)
        hidden, contexts, weights, chosen = [], [], [], []
        for T_Ey_t in T_Ey.split(1, 1):  # noqa: N806
            z, alpha, *s = attend(h)
            z = self.gated(z, h)
            h, c = lstm_step(T_Ey_t + self.T_h(h) + self.T_z(z), c)  # equations 1 to 3
            hidden.append(h)
            contexts.append(z)
            weights.append(alpha)
            chosen += s
        scores = self.output(Ey, torch.cat(hidden, 1), torch.cat(contexts, 1))  # equation 7
        return DecodedPath(scores, torch.cat(weights, 1), torch.cat(chosen, 1) if chosen else None, sampled)

    def initial(self, a: Float[Tensor, "image location dim"]) -> tuple[Tensor, Tensor]:
        """h_0 = f_init,h(mean_i a_i) and c_0 = f_init,c(mean_i a_i), [image, 1, hidden]."""
        mean = a.mean(1, keepdim=True)
        return self.f_init_h(mean).tanh(), self.f_init_c(mean).tanh()

    def attending(self, a: Float[Tensor, "image location dim"]) -> Attend:
        """h -> z_t = sum_i alpha_ti a_i and alpha_t = softmax(e_t), e_ti = f_att(a_i, h_{t-1}): equations 4, 5 and 13.

        Without attention, the weights are equal.
        """
        if self.recipe.attention == "none":
            mean, weight = a.mean(1, keepdim=True), 1 / a.shape[1]
            return lambda h: (mean.expand(-1, h.shape[1], -1), mean.new_full((*h.shape[:2], a.shape[1]), weight))
        keys = self.f_att.keys(a)
        return lambda h: self.f_att.step(keys, a, h)

    def sampling(self, a: Float[Tensor, "caption location dim"], sampled: Bool[Tensor, " caption"]) -> Attend:
        """h -> z_t, alpha_t and one location s_t ~ Multinoulli(alpha_t), equation 8.

        z_t is the annotation of s_t (equation 9) where `sampled`, and the expectation elsewhere (section 4.1).
        """
        keys = self.f_att.keys(a)

        def attend(h: Tensor) -> tuple[Tensor, ...]:
            alpha = self.f_att.weights(keys, h)
            s = torch.multinomial(alpha[:, 0], 1)
            one_hot = torch.zeros_like(alpha).scatter_(2, s[..., None], 1.0)
            return context(torch.where(sampled[:, None, None], one_hot, alpha), a), alpha, s

        return attend

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
        attend = self.attending(a)

        def step(words: Tensor, state: State) -> tuple[Tensor, State]:
            Ey, h = self.E(words), state["h"]  # noqa: N806
            z, alpha = attend(h)
            z = self.gated(z, h)
            h, c = lstm_step(self.T_y(Ey) + self.T_h(h) + self.T_z(z), state["c"])
            log_probs = self.output(Ey, h, z).float().log_softmax(-1)
            return log_probs, {"h": h, "c": c, "attention_weights": alpha}

        return step
