"""Networks for inference: batch norm folded into convolutions, each convolution and its activation in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Convolution(nn.Module):
    """A convolution and its ReLU or ReLU6, in one pass over memory with oneDNN."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        pointwise = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
        zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)  # the only padding that it knows
        known = zeros and type(activation) in (nn.ReLU, nn.ReLU6, type(None))
        one_pass = known and torch.backends.mkldnn.is_available()
        self.pointwise = pointwise if one_pass else None
        self.kind = "relu" if type(activation) is nn.ReLU else "hardtanh" if activation else "none"
        self.limits = [0.0, 6.0] if self.kind == "hardtanh" else []
        self.pad: Callable[..., Tensor] | None = None
        if type(conv) is not nn.Conv2d:  # timm's with TensorFlow's padding, whose own `padding` is 0
            from timm.layers.padding import pad_same

            self.pad = pad_same

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if self.pointwise is None or x.device.type != "cpu" or torch.is_grad_enabled():
            y = conv(x)
            return cast(Tensor, y if self.activation is None else self.activation(y))
        if self.pad is not None:
            x = self.pad(x, conv.kernel_size, conv.stride, conv.dilation)
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        return cast(Tensor, self.pointwise(x, conv.weight, conv.bias, *geometry, self.kind, self.limits, ""))


class _Tracer(torch.fx.Tracer):
    """Takes the layers that are folded as they are: those of timm cannot be traced through."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(module, name)


def fold_convolutions(body: nn.Module) -> nn.Module:
    """Merge each convolution with the batch norm and the activation that alone follow it.

    A body that torch.fx cannot trace comes back as it is.
    """
    try:
        graph = _Tracer().trace(body)
    except (torch.fx.proxy.TraceError, TypeError):  # TypeError: a traced size where torch needs a number
        return body
    traced = torch.fx.GraphModule(body, graph)
    modules = dict(traced.named_modules())

    def only_user(node: torch.fx.Node, *kinds: type[nn.Module]) -> torch.fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and isinstance(_module(modules, users[0]), kinds) else None

    for node in list(traced.graph.nodes):
        conv = _module(modules, node)
        if not (isinstance(conv, nn.Conv2d) and type(conv).__name__ in ("Conv2d", "Conv2dSame")):
            continue  # others, such as those that standardise their weights, compute in their own way
        last, activation = node, None
        if norm := only_user(last, nn.BatchNorm2d):
            layer = cast(nn.BatchNorm2d, modules[str(norm.target)])
            conv, last = fuse_conv_bn_eval(conv, layer), norm
            act = getattr(layer, "act", None)  # timm's batch norm has its activation inside
            activation = None if isinstance(act, nn.Identity) else act
        if activation is None and (user := only_user(last, nn.ReLU, nn.ReLU6)):
            activation, last = modules[str(user.target)], user
        traced.set_submodule(str(node.target), _Convolution(conv, activation))
        if last is not node:
            last.replace_all_uses_with(node)
            for done in dict.fromkeys((last, norm or last)):
                traced.graph.erase_node(done)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _module(modules: dict[str, nn.Module], node: torch.fx.Node) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None
