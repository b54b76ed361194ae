"""One step of additive attention: where each hypothesis looks, and what it sees there.

e_i = v^T tanh(k_i + q), alpha = softmax(e), context = sum_i alpha_i a_i over the locations i of an image, with the keys
k_i = W_a a_i made once for all steps and the query q = W_h h of each hypothesis (Bahdanau, Cho, Bengio, ICLR 2015,
appendix A.1.2; Xu et al., ICML 2015, equations 4 to 6 and 13). The CPU path is torch's own operations with the tanh in
place; where nothing is kept for a gradient some images at a time, and outside half precision the tanh by way of a
sigmoid. On a GPU Triton reads the keys and annotations of an image from memory once for all its beams, and keeps no
[image, beam, location, attention]: the backward pass computes it again (triton.py). Forward and backward are
deterministic: on a CPU for a given number of threads; on a GPU as far as cuBLAS is, which multiplies in the backward
pass of the context.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from capbench.kernels._triton import runs_triton
from capbench.kernels.attention import cpu


def attention_step(
    keys: Float[Tensor, "image location attention"],
    annotations: Float[Tensor, "image location dim"],
    query: Float[Tensor, "image beam attention"],
    v: Float[Tensor, "*one attention"],
) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:
    """The context and the attention weights of every beam.

    The weights are float32 (float64 for float64 keys) and sum to one over the locations; the context has the type of
    the annotations, or on a CPU that of autocast. `v` may also be the [1, attention] weight of a linear layer itself,
    which autocast converts once for all steps. Deterministic as the module says.
    """
    if runs_triton(keys):
        from capbench.kernels.attention.triton import TritonContext, TritonScores

        context, weights = TritonContext.apply(TritonScores.apply(keys, query, v), annotations)
        return context, weights
    weights = attention_weights(keys, query, v)
    return weights.to(annotations.dtype) @ annotations, weights


def attention_weights(
    keys: Float[Tensor, "image location attention"],
    query: Float[Tensor, "image beam attention"],
    v: Float[Tensor, "*one attention"],
) -> Float[Tensor, "image beam location"]:
    """The attention weights of `attention_step` alone."""
    if runs_triton(keys):
        from capbench.kernels.attention.triton import TritonScores

        scores: Tensor = TritonScores.apply(keys, query, v)
        return scores.softmax(-1)
    return cpu.attention_weights(keys, query, v)
