"""The losses of VSE++ (Faghri et al., BMVC 2018, section 2), as the core computes them.

Equation 5 is `sum_of_hinges` (VSE0) and equation 6 `max_of_hinges` (VSE++), over a matrix of similarities; each pair's
similarity is equation 1's inner product, or Vendrov et al.'s order. `ranking_loss` is either of the two from the
embeddings, and never holds the matrix of a large batch.
"""

from __future__ import annotations

from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranking_loss.reference import (
    Negatives,
    cosine_similarity,
    matched_pairs,
    max_of_hinges,
    order_similarity,
    sum_of_hinges,
)

__all__ = [
    "Negatives",
    "cosine_similarity",
    "matched_pairs",
    "max_of_hinges",
    "order_similarity",
    "ranking_loss",
    "sum_of_hinges",
]
