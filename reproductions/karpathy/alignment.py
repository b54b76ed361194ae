"""The alignment model of Karpathy & Fei-Fei (CVPR 2015, section 3.1): regions and words in one space."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from capbench.kernels.maxsim import maxsim
from capbench.training.shares import gathered

from .recipe import AlignmentRecipe


class AlignmentModel(nn.Module):
    """How well each word fits each region.

    The paper's letters:
    CNN(I_b)      feature of the pixels in box b
    v             embedding of a region
    1_t, x_t      word t of N, and its word vector
    e_t           input of the recurrences
    h^f_t, h^b_t  states of the recurrence from left to right, from right to left
    s_t           the word in its context, in the space of v
    f             the rectifier max(0, .)
    """

    def __init__(self, recipe: AlignmentRecipe, vocabulary_size: int, feature_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.scaled = nn.BatchNorm1d(feature_dim, affine=False) if recipe.standardised_roots else nn.Identity()
        self.W_m = nn.Linear(feature_dim, recipe.embedding_dim)
        word_dim = recipe.here().word_dim
        assert word_dim is not None
        self.W_w = nn.Embedding(vocabulary_size, word_dim)
        self.W_e = nn.Linear(word_dim * (2 * recipe.window + 1), recipe.hidden_dim)
        if recipe.recurrent:
            hidden = recipe.hidden_dim
            diagonal = recipe.recurrent_init * torch.eye(hidden)
            initial = diagonal if recipe.recurrent_init else torch.randn(hidden, hidden) / (2 * hidden) ** 0.5
            self.W_fb = nn.Parameter(torch.stack([initial, initial]))  # W_f and W_b
            self.b_fb = nn.Parameter(torch.zeros(2, 1, hidden))
        self.W_d = nn.Linear(recipe.hidden_dim, recipe.embedding_dim)
        self.dropout = nn.Dropout(recipe.dropout)
        nn.init.uniform_(self.W_w.weight, -0.1, 0.1)
        if recipe.word_vectors == "file":
            self.W_w.weight.requires_grad_(False)

    def embed_regions(self, regions: Float[Tensor, "image region feature"]) -> Float[Tensor, "image region dim"]:
        """v of every region."""
        features = regions.sign() * regions.abs().sqrt() if self.recipe.standardised_roots else regions
        scaled = self.scaled(features.flatten(0, 1)).view(regions.shape)
        masked_alike = scaled[:, :1] if self.recipe.shared_mask else scaled
        v: Tensor = self.W_m(scaled * self.dropout(torch.ones_like(masked_alike)))  # equation 1
        return normalize(v, dim=-1) if self.recipe.normalise_regions else v

    def embed_words(
        self, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
    ) -> Float[Tensor, "caption length dim"]:
        """s_t of every word. `captions` are words without START and END, with any padding beyond their lengths."""
        lengths = lengths.to(captions.device, non_blocking=True)
        present = torch.arange(captions.shape[1], device=captions.device) < lengths[:, None]
        x = self.W_w(captions) * present[:, :, None]  # equation 2
        e = self.dropout(relu(self.W_e(_windows(x, self.recipe.window))))  # equation 3
        h = self._both_directions(e, present) if self.recipe.recurrent else e
        s: Tensor = relu(self.W_d(self.dropout(h)))  # equation 6
        return s

    def _both_directions(
        self, e: Float[Tensor, "caption length hidden"], present: Tensor
    ) -> Float[Tensor, "caption length hidden"]:
        """h^f + h^b. Both recurrences advance together from their own ends; before the caption the state is 0."""
        inward = torch.stack([e, e.flip(1)])  # [direction, caption, length, hidden]
        counts = torch.stack([present, present.flip(1)])[..., None]
        h, states = torch.zeros_like(inward[:, :, 0]), []
        for t in range(e.shape[1]):
            # equations 4 and 5: h_t = f(e_t + W h_{t -+ 1} + b)
            h = relu(inward[:, :, t] + torch.baddbmm(self.b_fb, h, self.W_fb.mT)) * counts[:, :, t]
            states.append(h)
        forward, backward = torch.stack(states, 2)
        return forward + backward.flip(1)

    def forward(
        self,
        regions: Float[Tensor, "image region feature"],
        captions: Int[Tensor, "caption length"],
        lengths: Int[Tensor, " caption"],
    ) -> Float[Tensor, "image caption"]:
        """S_kl of every image and caption: equation 8, or 7 for the form "sum".

        Of a batch that several processes share, each computes the rows of its images.
        """
        v, s = self.embed_regions(regions), self.embed_words(captions, lengths)
        return gathered(maxsim(v, gathered(s), gathered(lengths), self.recipe.form))


def _windows(x: Float[Tensor, "caption length word"], size: int) -> Float[Tensor, "caption length context"]:
    """Each word with the `size` words before and after it; zeros beyond the ends."""
    if size == 0:
        return x
    wide = nn.functional.pad(x, (0, 0, size, size))
    return torch.cat([wide[:, shift : shift + x.shape[1]] for shift in range(2 * size + 1)], 2)
