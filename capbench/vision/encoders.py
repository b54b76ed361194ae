"""Frozen image encoders: torchvision trunks that give one vector, a grid of annotations, or regions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torchvision
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.base.processor import computes_bf16
from capbench.vision.scenes_trunk import ScenesTrunk, load_scenes_trunk
from capbench.vision.weights import find_weights, fit, hash_tensors, load_weights

Output = Literal["vector", "grid", "regions"]

ENCODERS = (
    *("alexnet", "vgg16", "vgg19", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("squeezenet1_0", "mobilenet_v2", "scenes"),
)
DETECTORS = (
    *("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"),
    "retinanet_resnet50_fpn_v2",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Parts:
    """body: images -> map [n, channel, height, width]; head: map -> vector [n, dim]."""

    body: nn.Module
    head: nn.Module
    channels: int
    dim: int
    layers: tuple[str, str]  # what the grid and the vector are


class _Average(nn.Module):
    def forward(self, grid: Tensor) -> Tensor:
        return grid.mean((2, 3))


class _ScenesHead(nn.Module):
    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, grid: Tensor) -> Tensor:
        return cast(Tensor, self.trunk.vector(grid))


def _parts(name: str, model: Any) -> _Parts:
    average = _Average()
    if name == "scenes":
        with torch.inference_mode():
            grid = model(torch.zeros(1, 3, 64, 64))
            dim = model.vector(grid).shape[1]
        return _Parts(model, _ScenesHead(model), grid.shape[1], dim, ("trunk", "trunk.vector"))
    if name == "alexnet" or name.startswith("vgg"):
        to_fc7 = model.classifier[:6] if name == "alexnet" else model.classifier[:5]
        head = nn.Sequential(model.features[-1], model.avgpool, nn.Flatten(), *to_fc7)
        channels = 256 if name == "alexnet" else 512
        return _Parts(model.features[:-1], head, channels, 4096, ("last convolution", "fc7"))
    if name.startswith("resnet"):
        stem = (model.conv1, model.bn1, model.relu, model.maxpool)
        body = nn.Sequential(*stem, model.layer1, model.layer2, model.layer3, model.layer4)
        return _Parts(body, average, 2048, 2048, ("layer4", "avgpool"))
    if name.startswith("densenet"):
        dim = model.classifier.in_features
        return _Parts(nn.Sequential(*model.features, nn.ReLU()), average, dim, dim, ("norm5", "avgpool"))
    dim = {"squeezenet1_0": 512, "mobilenet_v2": 1280}[name]
    return _Parts(model.features, average, dim, dim, ("features", "avgpool"))


def _load(name: str, weights: str | Path) -> nn.Module:
    if name not in ENCODERS:
        raise CapbenchError(f"there is no encoder {name!r}; known are {', '.join(ENCODERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "scenes":
            model: nn.Module = load_scenes_trunk() if weights == "auto" else ScenesTrunk()
        else:
            model = getattr(torchvision.models, name)(weights=None)
    if weights == "random" or (name == "scenes" and weights == "auto"):
        return model
    path = find_weights(name) if weights == "auto" else Path(weights)
    fit(model, load_weights(path), path)
    return model


def load_detector(name: str, weights: str | Path = "auto") -> nn.Module:
    """One of torchvision's detectors, frozen and in eval mode: a list of images to a list of boxes and scores.

    `name` is one of `DETECTORS`; `weights` as for `Encoder`, trained on COCO. Raises CapbenchError for an unknown name,
    and for weights that are missing, damaged or of another architecture.
    """
    if name not in DETECTORS:
        raise CapbenchError(f"there is no detector {name!r}; known are {', '.join(DETECTORS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    if name == "fasterrcnn_resnet50_fpn":  # its weights were trained without the epsilon of batch norm
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    if weights != "random":
        path = find_weights(name) if weights == "auto" else Path(weights)
        fit(model, load_weights(path), path)
    return model.eval().requires_grad_(False)


class Encoder(nn.Module):
    """A convolutional network cut before its classifier, frozen and in eval mode.

    `name` is one of `ENCODERS`. `weights` is "auto" (see `capbench.vision.weights.find_weights`), "random" (the same
    each time) or a file. `output` says what `forward` gives:

    - "vector" [n, dim]: fc7 after its ReLU for alexnet and vgg, the average over the last map for the others;
    - "grid" [n, location, dim]: the last convolutional map, row by row, before any pooling after it (14 x
      14 x 512 for vgg19 at 224 pixels);
    - "regions": only `regions` is used, with vectors of the boxes.

    `input_size` is the side of the images in pixels, 224, or 64 for "scenes". `layer` names what is taken
    out. `compute_dtype` is float32 until
    `fold`. Raises CapbenchError for an unknown name or output, and for weights that are missing, damaged or
    of another architecture.
    """

    mean: Tensor
    std: Tensor
    _fingerprint: str

    def __init__(self, name: str, output: Output = "vector", weights: str | Path = "auto") -> None:
        super().__init__()
        if output not in ("vector", "grid", "regions"):
            raise CapbenchError(f"an encoder gives vector, grid or regions, not {output!r}")
        model = _load(name, weights).eval().requires_grad_(False)
        parts = _parts(name, model)
        self.name, self.output = name, output
        self.input_size = 64 if name == "scenes" else 224
        self.body, self.head = parts.body, parts.head
        self.dim = parts.channels if output == "grid" else parts.dim
        self.layer = parts.layers[0] if output == "grid" else parts.layers[1]
        self.compute_dtype = torch.float32
        self.folded, self.frozen = False, True
        mean, std = ((0.0,) * 3, (1.0,) * 3) if name == "scenes" else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    @property
    def fingerprint(self) -> str:
        """Of the name, the layer and every weight as it is now; a folded copy keeps that of its original."""
        return self._fingerprint if self.folded else self._hash()

    def _hash(self) -> str:
        return fingerprint([self.name, self.output, self.layer, hash_tensors(self.state_dict())])

    def grid(self, images: UInt8[Tensor, "n 3 size size"]) -> Float[Tensor, "n channel height width"]:
        """The last convolutional map, in `compute_dtype`."""
        scaled = (images.float() / 255 - self.mean) / self.std
        if self.folded:
            scaled = scaled.to(self.compute_dtype, memory_format=torch.channels_last)
        return cast(Tensor, self.body(scaled))

    def forward(self, images: UInt8[Tensor, "n 3 size size"]) -> Float[Tensor, "n ... dim"]:
        """float32 [n, dim] or [n, location, dim]; see `output`."""
        if self.output == "regions":
            raise CapbenchError("an encoder of regions needs boxes: call encoder.regions(images, boxes)")
        grid = self.grid(images)
        if self.output == "grid":
            return grid.flatten(2).transpose(1, 2).float()
        return cast(Tensor, self.head(grid)).float()

    def regions(
        self, images: UInt8[Tensor, "n 3 size size"], boxes: Float[Tensor, "n region 4"]
    ) -> Float[Tensor, "n region dim"]:
        """One vector a box: the last map is resampled inside the box to its own size, then the head follows.

        Boxes are x0, y0, x1, y1 in pixels of `images`. The box of the whole image gives the vector of the
        image. Source: He et al., "Mask R-CNN", section 3 (RoIAlign), with one sample a bin.
        """
        grid = self.grid(images)
        count, regions = boxes.shape[:2]
        height, width = grid.shape[2:]
        owner = torch.arange(count, device=grid.device).repeat_interleave(regions)[:, None]
        rois = torch.cat([owner, boxes.float().flatten(0, 1)], 1)
        # The kernel itself: where deterministic algorithms are asked for, torchvision.ops.roi_align compiles another
        # one on CUDA, for the sake of the gradient. The forward of this one is deterministic.
        scale = height / images.shape[2]
        aligned = torch.ops.torchvision.roi_align(grid.float(), rois, scale, height, width, 1, True)
        return cast(Tensor, self.head(aligned.to(grid.dtype))).float().view(count, regions, -1)

    def fold(self, dtype: torch.dtype = torch.float32) -> Encoder:
        """A copy for inference on the same device: batch norm folded into convolutions, channels last.

        In float32 on a processor it is within 1e-4 of the plain encoder's largest value; on CUDA, PyTorch's
        TF32 setting for convolutions counts. bfloat16 is faster where the hardware has it, at a cost that
        depends on the network: with ImageNet weights the vectors moved by 1 % for SqueezeNet and 17 % for
        MobileNetV2 (norm of the difference to norm), so it is never chosen by itself. Raises CapbenchError for
        bfloat16 on a device that has no convolutions in it, and for an encoder that is folded already.
        """
        if self.folded:
            raise CapbenchError("this encoder is folded already; fold a fresh one")
        if dtype is torch.bfloat16 and not computes_bf16(self.mean.device, "convolution"):
            where = self.mean.device.type
            raise CapbenchError(f"this device ({where}) has no convolutions in bfloat16: fold in float32, the default")
        folded = copy.deepcopy(self)
        folded.trainable(False)
        folded.compute_dtype, folded._fingerprint = dtype, self._hash()
        if self.name != "scenes":  # small, and its forward is not traced
            folded.body = _fold_convolutions(folded.body)
        for module in (folded.body, folded.head):
            module.to(dtype=folded.compute_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        folded.folded = True
        return folded

    def trainable(self, trainable: bool = True) -> Encoder:
        """Let gradients reach the weights and `train()` reach the layers, for fine-tuning; or freeze again."""
        if self.folded:
            raise CapbenchError("a folded encoder has lost its batch norm; fine-tune an unfolded one")
        self.requires_grad_(trainable)
        self.frozen = not trainable
        return self.eval() if self.frozen else self

    def train(self, mode: bool = True) -> Encoder:
        """Training mode, which a frozen encoder does not take on."""
        return super().train(mode and not self.frozen)


class _Convolution(nn.Module):
    """A convolution and the ReLU or ReLU6 after it, in one pass over memory where oneDNN has it."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        pointwise = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
        self.pointwise = pointwise if torch.backends.mkldnn.is_available() else None
        self.kind = "relu" if type(activation) is nn.ReLU else "hardtanh" if activation else "none"
        self.limits = [0.0, 6.0] if self.kind == "hardtanh" else []

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if self.pointwise is None or x.device.type != "cpu" or torch.is_grad_enabled():
            y = conv(x)
            return cast(Tensor, y if self.activation is None else self.activation(y))
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        return cast(Tensor, self.pointwise(x, conv.weight, conv.bias, *geometry, self.kind, self.limits, ""))


def _fold_convolutions(body: nn.Module) -> nn.Module:
    """Each convolution takes in the batch norm and the ReLU that alone follow it."""
    traced = torch.fx.symbolic_trace(body)
    modules = dict(traced.named_modules())

    def only_user(node: torch.fx.Node, *kinds: type[nn.Module]) -> torch.fx.Node | None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        called = user is not None and user.op == "call_module"
        return user if user and called and type(modules[str(user.target)]) in kinds else None

    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) is not nn.Conv2d:
            continue
        conv, last, activation = modules[node.target], node, None
        if norm := only_user(node, nn.BatchNorm2d):
            conv, last = fuse_conv_bn_eval(conv, modules[str(norm.target)]), norm
        if user := only_user(last, nn.ReLU, nn.ReLU6):
            activation, last = modules[str(user.target)], user
        traced.set_submodule(node.target, _Convolution(conv, activation))
        if last is not node:
            last.replace_all_uses_with(node)
            for done in (last, norm if norm and norm is not last else None):
                if done is not None:
                    traced.graph.erase_node(done)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
