"""The attention layer and the recurrent cells that two or more papers share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from capbench.kernels.attention import attention_step, attention_weights


class AdditiveAttention(nn.Module):
    """e_i = v^T tanh(W_a a_i + W_h h), the score of annotation a_i given the hidden state h.

    Source: Bahdanau, Cho, Bengio, ICLR 2015, appendix A.1.2. What depends on the image alone is computed once, by
    `keys`, for all steps and all beams.
    """

    def __init__(self, annotation: int, hidden: int, attention: int) -> None:
        super().__init__()
        self.W_a = nn.Linear(annotation, attention)
        self.W_h = nn.Linear(hidden, attention, bias=False)
        self.v = nn.Linear(attention, 1, bias=False)

    def keys(self, annotations: Float[Tensor, "image location dim"]) -> Float[Tensor, "image location attention"]:
        """W_a a_i, for `forward`."""
        keys: Tensor = self.W_a(annotations)
        return keys

    def forward(
        self, keys: Float[Tensor, "image location attention"], hidden: Float[Tensor, "image beam hidden"]
    ) -> Float[Tensor, "image beam location"]:
        """The attention weights of every beam, softmax(e); they sum to one over the locations."""
        return attention_weights(keys, self.W_h(hidden), self.v.weight)

    def step(
        self,
        keys: Float[Tensor, "image location attention"],
        annotations: Float[Tensor, "image location dim"],
        hidden: Float[Tensor, "image beam hidden"],
    ) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:
        """The context and the attention weights of every beam at once: on a GPU quicker than one after the other."""
        return attention_step(keys, annotations, self.W_h(hidden), self.v.weight)


def context(
    weights: Float[Tensor, "image beam location"], annotations: Float[Tensor, "image location dim"]
) -> Float[Tensor, "image beam dim"]:
    """sum_i alpha_i a_i."""
    return weights.to(annotations.dtype) @ annotations


def lstm_step(
    cell: nn.LSTMCell, x: Float[Tensor, "image beam input"], hidden: Tensor, memory: Tensor
) -> tuple[Float[Tensor, "image beam hidden"], Float[Tensor, "image beam hidden"]]:
    """The next hidden state and cell of every beam."""
    shape = hidden.shape
    hidden, memory = cell(x.flatten(0, 1), (hidden.flatten(0, 1), memory.flatten(0, 1)))
    return hidden.view(shape), memory.view(shape)
