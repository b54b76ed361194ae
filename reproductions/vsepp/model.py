"""The joint embedding of VSE++ (Faghri et al., BMVC 2018, section 2.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from capbench.kernels.gru import last_hidden
from capbench.kernels.ranking_loss.reference import dot_similarity, order_similarity

from .recipe import VSERecipe


class VSE(nn.Module):
    """Images and captions in one space.

    The paper's letters: phi(i), the feature of image i; psi(c), the last state of a GRU over caption c; and
    f(i) = W_f^T phi(i) and g(c) = W_g^T psi(c), their embeddings. As in the released code W_g = 1 (the
    GRU has the dimension of the space), and f has a bias.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, recipe: VSERecipe, vocabulary_size: int, feature_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.W_f = nn.Linear(feature_dim, recipe.embedding_dim)
        self.words = nn.Embedding(vocabulary_size, recipe.word_dim)
        self.psi = nn.GRU(recipe.word_dim, recipe.embedding_dim, batch_first=True)
        if recipe.input == "standardised_roots":
            self.register_buffer("mean", torch.zeros(feature_dim))
            self.register_buffer("scale", torch.ones(feature_dim))
        nn.init.xavier_uniform_(self.W_f.weight)
        nn.init.zeros_(self.W_f.bias)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        with torch.no_grad():
            _, update, _ = self.psi.get_parameter("bias_hh_l0").chunk(3)
            update += recipe.update_gate_bias

    def standardise(self, features: Float[Tensor, "image feature"]) -> None:
        """Fix the mean and scale so that the roots of the training features have mean 0 and deviation 1."""
        self.mean = _root(features).mean(0)
        self.scale = 1 / _root(features).std(0).clamp(min=1e-6)

    def embed_images(self, phi: Float[Tensor, "image feature"]) -> Float[Tensor, "image dim"]:
        """f(i), of unit length unless the similarity is the inner product."""
        standardised = self.recipe.input == "standardised_roots"
        phi = (_root(phi) - self.mean) * self.scale if standardised else normalize(phi, dim=1)
        f = self.W_f(phi)
        f = f if self.recipe.similarity == "dot" else normalize(f, dim=1)
        return f.abs() if self.recipe.absolute else f

    def embed_captions(
        self, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
    ) -> Float[Tensor, "caption dim"]:
        """g(c), of unit length. `captions` are word ids padded at the end, `lengths` their numbers of words."""
        g = normalize(last_hidden(self.psi, self.words, captions, lengths), dim=1)
        return g.abs() if self.recipe.absolute else g

    def similarity(
        self, images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
    ) -> Float[Tensor, "image caption"]:
        """s(i, c) of every image and caption: the inner product, or the order similarity."""
        measure = order_similarity if self.recipe.similarity == "order" else dot_similarity
        return measure(images, captions)


def _root(phi: Float[Tensor, "image feature"]) -> Float[Tensor, "image feature"]:
    """The signed square root, which shortens long tails (Perronnin, Sanchez, Mensink 2010, section 3.1)."""
    return phi.sign() * phi.abs().sqrt()
