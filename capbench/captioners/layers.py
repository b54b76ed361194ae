"""The attention layer and the recurrent step that several papers share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from capbench.kernels.attention import attention_step, attention_weights


class AdditiveAttention(nn.Module):
    """e_i = v^T tanh(W_a a_i + W_h h), the score of annotation a_i given the hidden state h.

    Source: Bahdanau, Cho, Bengio, ICLR 2015, appendix A.1.2. The keys W_a a_i depend on the image alone and are
    computed once for all steps and beams.
    """

    def __init__(self, annotation_dim: int, hidden_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.W_a = nn.Linear(annotation_dim, attention_dim)
        self.W_h = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.v = nn.Linear(attention_dim, 1, bias=False)

    def keys(self, annotations: Float[Tensor, "image location dim"]) -> Float[Tensor, "image location attention"]:
        """W_a a_i."""
        keys: Tensor = self.W_a(annotations)
        return keys

    def step(
        self,
        keys: Float[Tensor, "image location attention"],
        annotations: Float[Tensor, "image location dim"],
        hidden: Float[Tensor, "image beam hidden"],
    ) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:
        """The context sum_i alpha_i a_i and the weights alpha = softmax(e) of every beam."""
        return attention_step(keys, annotations, self.W_h(hidden), self.v.weight)

    def weights(
        self, keys: Float[Tensor, "image location attention"], hidden: Float[Tensor, "image beam hidden"]
    ) -> Float[Tensor, "image beam location"]:
        """The weights of `step` alone."""
        return attention_weights(keys, self.W_h(hidden), self.v.weight)


def context(
    weights: Float[Tensor, "image beam location"], annotations: Float[Tensor, "image location dim"]
) -> Float[Tensor, "image beam dim"]:
    """sum_i alpha_i a_i."""
    return weights.to(annotations.dtype) @ annotations


def lstm_step(
    gates: Float[Tensor, "*batch gates"], memory: Float[Tensor, "*batch hidden"]
) -> tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]]:
    """h = o tanh(c) and c = f c_before + i g, from the inputs of the gates i, f, o and the candidate g.

    Source: Hochreiter, Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    i, f, o, g = gates.chunk(4, -1)
    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory
