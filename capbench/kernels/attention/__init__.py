"""One step of additive attention over the locations i of an image, for each beam.

e_i = v^T tanh(k_i + q), alpha = softmax(e), context = sum_i alpha_i a_i, with keys k_i = W_a a_i made once for all
steps and a query q = W_h h (Bahdanau, Cho, Bengio, ICLR 2015, appendix A.1.2; Xu et al., ICML 2015, equations 4 to 6
and 13). Deterministic: on a CPU for a given number of threads; on a GPU as far as cuBLAS is.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import Array, tensors
from capbench.kernels._triton import on_device_of, runs_triton
from capbench.kernels.attention import cpu


def attention_step(
    keys: Float[Array, "image location attention"], annotations: Float[Array, "image location dim"],
    query: Float[Array, "image beam attention"], v: Float[Array, "*one attention"],
) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:  # fmt: skip
    """The context and the attention weights of every beam.

    The weights are float32 (float64 for float64 keys); the context has the type of the annotations, or on a CPU that of
    autocast. `v` may be the [1, attention] weight of a linear layer itself, which autocast converts once for all steps.
    Raises CapbenchError for wrong types or shapes.

    >>> import torch
    >>> from capbench.kernels.attention import attention_step
    >>> keys, annotations = torch.zeros(1, 4, 2), torch.tensor([[[0.0], [0.0], [4.0], [4.0]]])
    >>> context, weights = attention_step(keys, annotations, query=torch.ones(1, 1, 2), v=torch.ones(2))
    >>> context.tolist(), weights.tolist()
    ([[[2.0]]], [[[0.25, 0.25, 0.25, 0.25]]])
    """
    keys, query, v, annotations = _checked(keys, query, v, annotations=(annotations, "float image location dim"))
    if runs_triton(keys):
        from capbench.kernels.attention.triton import TritonContext, TritonScores

        with on_device_of(keys):
            context, weights = TritonContext.apply(TritonScores.apply(keys, query, v), annotations)
        return context, weights
    weights = cpu.attention_weights(keys, query, v)
    return weights.to(annotations.dtype) @ annotations, weights


def attention_weights(
    keys: Float[Array, "image location attention"], query: Float[Array, "image beam attention"],
    v: Float[Array, "*one attention"],
) -> Float[Tensor, "image beam location"]:  # fmt: skip
    """The attention weights of `attention_step` alone.

    >>> import torch
    >>> from capbench.kernels.attention import attention_weights
    >>> attention_weights(torch.tensor([[[0.0], [0.0]]]), torch.zeros(1, 1, 1), torch.ones(1)).tolist()
    [[[0.5, 0.5]]]
    """
    keys, query, v = _checked(keys, query, v)
    if runs_triton(keys):
        from capbench.kernels.attention.triton import TritonScores

        with on_device_of(keys):
            scores: Tensor = TritonScores.apply(keys, query, v)
        return scores.softmax(-1)
    return cpu.attention_weights(keys, query, v)


def _checked(keys: Array, query: Array, v: Array, **more: tuple[Array, str]) -> tuple[Tensor, ...]:
    checked = tensors(
        keys=(keys, "float image location+ attention+"), query=(query, "float image beam attention"),
        v=(v, "float one attention" if v.ndim == 2 else "float attention"), **more,
    )  # fmt: skip
    if v.ndim == 2 and len(v) != 1:
        raise CapbenchError(f"v is {list(v.shape)}, not [attention] or [1, attention]")
    return checked
