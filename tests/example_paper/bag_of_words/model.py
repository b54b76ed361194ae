"""The model: f(i) = W phi(i) for an image, g(c) = the mean of its words' vectors for a caption."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from .recipe import BagRecipe


class BagOfWords(nn.Module):
    """Images and captions in one space."""

    def __init__(self, recipe: BagRecipe, vocabulary_size: int, feature_dim: int) -> None:
        super().__init__()
        self.W = nn.Linear(feature_dim, recipe.embedding_dim)
        self.words = nn.EmbeddingBag(vocabulary_size, recipe.embedding_dim, padding_idx=0)

    def embed_images(self, phi: Float[Tensor, "image feature"]) -> Float[Tensor, "image dim"]:
        """f(i), of unit length."""
        return normalize(self.W(phi), dim=1)

    def embed_captions(
        self, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
    ) -> Float[Tensor, "caption dim"]:
        """g(c), of unit length; the padding counts for nothing."""
        return normalize(self.words(captions), dim=1)

    def similarity(
        self, images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
    ) -> Float[Tensor, "image caption"]:
        """The cosine of every image and caption."""
        return images @ captions.T
