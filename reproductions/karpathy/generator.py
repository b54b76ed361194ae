"""The multimodal recurrent network of Karpathy & Fei-Fei (CVPR 2015, section 3.2), which writes captions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import relu

from capbench.captioners.decoding import State, Step
from capbench.captioners.layers import lstm_step

from .recipe import GeneratorRecipe


class MultimodalRNN(nn.Module):
    """A caption word by word, with the image or region as a bias of the first step, or of every step.

    The paper's letters:
    CNN(I)  feature of the image
    b_v     its bias
    x_t     vector of the word before, x_1 being START
    h_t     hidden state
    y_t     distribution of word t
    f       the rectifier max(0, .)

    The LSTM has four rows of W_hx, W_hh, W_hi and b_h for each unit (input, forget and output gate, candidate), and a
    cell c_t.
    """

    def __init__(self, recipe: GeneratorRecipe, vocabulary_size: int, feature_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.rows = {"rnn": 1, "lstm": 4}[recipe.cell] * recipe.hidden_dim
        self.scaled = nn.BatchNorm1d(feature_dim, affine=False) if recipe.standardise else nn.Identity()
        self.W_hi = nn.Linear(feature_dim, self.rows, bias=recipe.released_layers)
        self.words = nn.Embedding(vocabulary_size, recipe.word_dim)
        self.W_hx = nn.Linear(recipe.word_dim, self.rows)  # with b_h
        self.W_hh = nn.Linear(recipe.hidden_dim, self.rows, bias=recipe.released_layers)
        self.W_oh = nn.Linear(recipe.hidden_dim, vocabulary_size)  # with b_o
        self.dropout = nn.Dropout(recipe.dropout)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        if recipe.released_layers:
            self._as_released()
        with torch.no_grad():
            if recipe.cell == "rnn" and recipe.recurrent_init:
                self.W_hh.weight.copy_(recipe.recurrent_init * torch.eye(recipe.hidden_dim))
            elif recipe.cell == "lstm":
                _, forget, _, _ = self.W_hx.bias.chunk(4)
                forget += recipe.recurrent_init

    def _as_released(self) -> None:
        """Uniform initial weights, smaller ones for W_oh; no bias. Source: karpathy/neuraltalk, rnn_generator.py."""
        for layer in (self.W_hi, self.W_hx, self.W_hh, self.W_oh):
            bound = 0.01 if layer is self.W_oh else 0.1
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)

    def expect(self, counts: Int[Tensor, " word"]) -> None:
        """Initialise b_o with the logarithm of each word's frequency, which training then need not learn."""
        with torch.no_grad():
            self.W_oh.bias.copy_((counts.clamp(min=1) / counts.sum()).log())

    def forward(
        self, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step word"]:
        """Logits of y_t for the words after the first."""
        return self.scores(self.states(images, captions))

    def states(
        self, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step hidden"]:
        """h_t for the words after the first."""
        x, b_v = self.W_hx(self.dropout(self.words(captions[:, :-1]))), self.bias(images)
        state, states = self._before(len(images), x), []
        for t in range(x.shape[1]):
            seen = x[:, t] + b_v if t == 0 or self.recipe.feed_image == "always" else x[:, t]
            h, state = self._advance(seen, state)
            states.append(h)
        return torch.stack(states, 1)

    def scores(self, h: Float[Tensor, "*step hidden"]) -> Float[Tensor, "*step word"]:
        """Logits of y_t."""
        y: Tensor = self.W_oh(self.dropout(h))  # equation 15, before its softmax
        return y

    def bias(self, images: Float[Tensor, "image *region feature"]) -> Float[Tensor, "image row"]:
        """b_v = W_hi [CNN(I)], equation 13; of several regions, the first one, which is the whole image."""
        whole = images if images.ndim == 2 else images[:, 0]
        scaled = self.scaled(whole)
        b_v: Tensor
        b_v = self.dropout(self.W_hi(scaled)) if self.recipe.released_layers else self.W_hi(self.dropout(scaled))
        return b_v

    def start(self, images: Float[Tensor, "image *region feature"]) -> State:
        """No word has been read; b_v is there for the steps that see the image."""
        b_v = self.bias(images)[:, None]
        h, c = self._before(len(images), b_v)
        return {"hidden": h[:, None], "cell": c[:, None], "bias": b_v}

    def step(self, images: Float[Tensor, "image *region feature"]) -> Step:
        """One word for every beam; b_v is 0 where the image is not seen."""

        def step(words: Tensor, state: State) -> tuple[Tensor, State]:
            x = self.W_hx(self.words(words)) + state["bias"]
            h, (_, c) = self._advance(x, (state["hidden"], state["cell"]))
            log_probs = self.scores(h).float().log_softmax(-1)
            b_v = state["bias"] if self.recipe.feed_image == "always" else torch.zeros_like(state["bias"])
            return log_probs, {"hidden": h, "cell": c, "bias": b_v}

        return step

    def _advance(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """h_t and the next state, from `x` = W_hx x_t + b_h + b_v, without b_v where the image is not seen."""
        h, c = state
        if self.recipe.cell == "rnn":
            h = relu(x + self.W_hh(h))  # equation 14
            return h, (h, c)
        h, c = lstm_step(x + self.W_hh(h), c)
        return h, (h, c)

    def _before(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        zeros = like.new_zeros(count, self.recipe.hidden_dim)
        return zeros, zeros
