"""The generator of Show and Tell (Vinyals et al., CVPR 2015, section 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capbench.captioners.decoding import State, Step

from .recipe import NICRecipe


class ShowAndTell(nn.Module):
    """One LSTM reads the image, then its caption.

    The paper's letters: I, the image; S_t, word t of the caption, with S_0 = START and S_N = END; W_e, the word
    embeddings; x_t, the input of the LSTM; m_t, its output.
    """

    def __init__(self, recipe: NICRecipe, vocabulary_size: int, feature_dim: int) -> None:
        super().__init__()
        scaled = nn.BatchNorm1d(feature_dim, affine=False) if recipe.standardise else nn.Identity()
        self.image = nn.Sequential(scaled, nn.Linear(feature_dim, recipe.embedding_dim, bias=not recipe.im2txt))
        self.W_e = nn.Embedding(vocabulary_size, recipe.embedding_dim)
        self.lstm = nn.LSTM(recipe.embedding_dim, recipe.hidden_dim, batch_first=True)
        self.word = nn.Linear(recipe.hidden_dim, vocabulary_size)
        self.dropout = nn.Dropout(recipe.dropout)
        if recipe.im2txt:
            self._initialise_as_im2txt()
        else:
            nn.init.uniform_(self.W_e.weight, -0.1, 0.1)
        with torch.no_grad():
            _, forget, _, _ = self.lstm.get_parameter("bias_hh_l0").chunk(4)
            forget += 1  # the forget gate starts open

    def forward(
        self, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step word"]:
        """Scores of S_1 ... S_N, whose softmax is p_{t+1}."""
        return self.word(self.outputs(images, captions))  # equation 12: p_{t+1} = LSTM(x_t)

    def outputs(
        self, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
    ) -> Float[Tensor, "caption step hidden"]:
        """m_t, t in 0 ... N-1, from which S_{t+1} is predicted."""
        x = torch.cat(
            [
                self.image(images)[:, None],  # equation 10: x_{-1} = CNN(I)
                self.W_e(captions[:, :-1]),  # equation 11: x_t = W_e S_t, t in 0 ... N-1
            ],
            dim=1,
        )
        m, _ = self.lstm(self.dropout(x))
        return self.dropout(m[:, 1:])

    def start(self, images: Float[Tensor, "image feature"]) -> State:
        """The state after x_{-1}, the image, which the LSTM reads once."""
        _, (hidden, cell) = self.lstm(self.image(images)[:, None])
        return {"hidden": hidden[0][:, None], "cell": cell[0][:, None]}

    def step(self, images: Float[Tensor, "image feature"]) -> Step:
        """x_t = W_e S_t; p_{t+1} = LSTM(x_t)."""

        def step(words: Tensor, state: State) -> tuple[Tensor, State]:
            x = self.W_e(words).flatten(0, 1)[:, None]
            before = (state["hidden"].flatten(0, 1)[None], state["cell"].flatten(0, 1)[None])
            m, (hidden, cell) = self.lstm(x, before)
            shape = state["hidden"].shape
            log_probs = self.word(m[:, 0]).float().log_softmax(-1)
            return log_probs.view(*words.shape, -1), {"hidden": hidden.view(shape), "cell": cell.view(shape)}

        return step

    def _initialise_as_im2txt(self) -> None:
        """Weights within +-0.08 and biases of 0 (im2txt, configuration.py and show_and_tell_model.py).

        TensorFlow's BasicLSTMCell learns one bias a gate and adds a constant 1 in the forget gate. Torch's LSTM has two
        biases: here one is learnt, and the other is that constant.
        """
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08) if parameter.dim() > 1 else nn.init.zeros_(parameter)
        self.lstm.get_parameter("bias_hh_l0").requires_grad_(False)
