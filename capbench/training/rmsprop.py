"""RMSProp as the papers' released codes have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class RMSProp(torch.optim.Optimizer):
    """RMSProp with its epsilon under the root; torch's has it beside the root, where rare words get larger steps.

    v <- d v + (1 - d) g^2                          the mean square of the gradient g, with weight decay in g
    m <- d m + (1 - d) g                            its mean, if centred; else 0
    u <- momentum u + g / sqrt(v - m^2 + epsilon)
    w <- w - lr u

    Sources: karpathy/neuraltalk, imagernn/solver.py; kelvinxu/arctic-captions, optimizers.py (centred, with momentum).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        decay: float,
        epsilon: float,
        centred: bool = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"decay": decay, "epsilon": epsilon, "centred": centred, "momentum": momentum}
        super().__init__(parameters, {"lr": lr, **options, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, decay = self.state[parameter], group["decay"]
        if not state:
            names = ("square", *("mean",) * group["centred"], *("update",) * bool(group["momentum"]))
            state.update({name: torch.zeros_like(parameter) for name in names})
        g = gradient.add(parameter, alpha=group["weight_decay"])
        v = state["square"].mul_(decay).addcmul_(g, g, value=1 - decay)
        if group["centred"]:
            m = state["mean"].lerp_(g, 1 - decay)
            v = v.addcmul(m, m, value=-1)
        u = g.div_(v.add(group["epsilon"]).sqrt_())
        if group["momentum"]:
            u = state["update"].mul_(group["momentum"]).add_(u)
        parameter.add_(u, alpha=-group["lr"])
