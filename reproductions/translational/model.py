"""The decoders of the translational grid (Kocagil, Kargi, Budunoglu 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capbench.captioners.decoding import State, Step
from capbench.captioners.layers import AdditiveAttention
from capbench.data.vocabulary import START, Vocabulary

from .recipe import TranslatorRecipe

CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class Translator(nn.Module):
    """An LSTM or a GRU that translates an image into a sentence.

    a_i is annotation i; v_i, its projection into the space of the words; x_t, the input of the cell; h_t, its state;
    c_t, the attended context of word t. The image takes the place of START.
    """

    def __init__(self, recipe: TranslatorRecipe, vocabulary: Vocabulary, annotation_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        embedding_dim, hidden_dim = recipe.here().embedding_dim, recipe.hidden_dim
        assert embedding_dim is not None
        self.encode = nn.Linear(annotation_dim, embedding_dim)
        self.normalise = nn.BatchNorm1d(embedding_dim, momentum=0.01)
        self.embed = nn.Embedding(len(vocabulary), embedding_dim)
        self.attention = AdditiveAttention(embedding_dim, hidden_dim, hidden_dim) if recipe.attention else None
        self.cell = CELLS[recipe.decoder](embedding_dim * (2 if recipe.attention else 1), hidden_dim)
        self.word = nn.Linear(hidden_dim, len(vocabulary))
        self.embed.requires_grad_(not recipe.glove)

    def forward(
        self, a: Float[Tensor, "caption *location dim"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step word"]:
        """Logits of the words after START."""
        v = self.annotations(a)
        keys, state, hidden = self.keys(v), self.start(a), []
        for x in self.read(v, captions[:, :-1]).split(1, 1):
            state = self.advance(v, keys, x, state)
            hidden.append(state["h"])
        scores: Tensor = self.word(torch.cat(hidden, 1))
        return scores

    def annotations(self, a: Float[Tensor, "image *location dim"]) -> Float[Tensor, "image location embedding"]:
        """v_i = batch normalisation of W a_i; a pooled vector is one annotation."""
        v = self.encode(a.flatten(0, -2))
        return self.normalise(v).view(len(a), -1, v.shape[-1])

    def read(self, v: Tensor, words: Int[Tensor, "image word"]) -> Float[Tensor, "image word embedding"]:
        """x_t: the mean annotation for START, else the word."""
        image = v.mean(1, keepdim=True)
        return torch.where((words == START)[..., None], image, self.embed(words))

    def advance(self, v: Tensor, keys: Tensor | None, x: Tensor, state: State) -> State:
        """h_t = cell([x_t, c_t], h_{t-1}), with c_t = sum_i alpha_ti v_i where there is attention."""
        h, after = state["h"], {}
        if self.attention is not None and keys is not None:
            c, alpha = self.attention.step(keys, v, h)
            x, after = torch.cat([x, c], -1), {"attention_weights": alpha}
        x, before = x.flatten(0, 1), h.flatten(0, 1)
        if self.recipe.decoder == "lstm":
            hidden, cell = self.cell(x, (before, state["cell"].flatten(0, 1)))
            after["cell"] = cell.view(h.shape)
        else:
            hidden = self.cell(x, before)
        return {**after, "h": hidden.view(h.shape)}

    def keys(self, v: Tensor) -> Tensor | None:
        return None if self.attention is None else self.attention.keys(v)

    def start(self, a: Float[Tensor, "image *location dim"]) -> State:
        """The state before START: zeros."""
        zeros = self.word.weight.new_zeros(len(a), 1, self.recipe.hidden_dim)
        state = {"h": zeros, "cell": zeros} if self.recipe.decoder == "lstm" else {"h": zeros}
        if self.recipe.attention:
            state["attention_weights"] = zeros.new_zeros(len(a), 1, a.shape[1])
        return state

    def step(self, a: Float[Tensor, "image *location dim"]) -> Step:
        """One word for every beam."""
        v = self.annotations(a)
        keys = self.keys(v)

        def step(words: Tensor, state: State) -> tuple[Tensor, State]:
            state = self.advance(v, keys, self.read(v, words), state)
            return self.word(state["h"]).float().log_softmax(-1), state

        return step
