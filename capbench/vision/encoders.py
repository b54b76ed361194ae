"""Image encoders: frozen torchvision trunks that give a vector, a grid of annotations, or regions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torchvision
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.base.processor import computes_bf16
from capbench.vision.scenes_trunk import CHANNELS, ScenesTrunk, load_scenes_trunk
from capbench.vision.weights import find_weights, hash_tensors, load_state_dict, load_weights

Output = Literal["vector", "grid", "regions"]

ENCODERS = (
    *("alexnet", "vgg16", "vgg19", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("googlenet", "squeezenet1_0", "mobilenet_v2", "scenes"),
)
OPTIONS = {"googlenet": {"aux_logits": False, "init_weights": False}}  # of torchvision's constructors
Detector = Literal[
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "retinanet_resnet50_fpn_v2",
]
DETECTORS: tuple[str, ...] = get_args(Detector)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of pixels in 0..1
PIXELS = {  # of the encoders that were trained on other values; torchvision's `transform_input` gives googlenet's
    "googlenet": ((0.5,) * 3, (0.5,) * 3),
    "scenes": ((0.0,) * 3, (1.0,) * 3),
}


@dataclass(frozen=True)
class _Parts:
    body: nn.Module  # images -> map [n, channel, height, width]
    head: nn.Module  # map -> vector [n, dim]
    channels: int
    dim: int
    layers: tuple[str, str]  # the names of the map and of the vector


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
        return _Parts(model, _ScenesHead(model), CHANNELS, 4 * CHANNELS, ("trunk", "trunk.vector"))
    if name == "alexnet" or name.startswith("vgg"):
        channels, to_fc7 = (256, 6) if name == "alexnet" else (512, 5)
        head = nn.Sequential(model.features[-1], model.avgpool, nn.Flatten(), *model.classifier[:to_fc7])
        return _Parts(model.features[:-1], head, channels, 4096, ("last convolution", "fc7"))
    if name.startswith("resnet"):
        stem = (model.conv1, model.bn1, model.relu, model.maxpool)
        body = nn.Sequential(*stem, model.layer1, model.layer2, model.layer3, model.layer4)
        return _Parts(body, average, 2048, 2048, ("layer4", "avgpool"))
    if name.startswith("densenet"):
        dim = model.classifier.in_features
        return _Parts(nn.Sequential(*model.features, nn.ReLU()), average, dim, dim, ("norm5", "avgpool"))
    if name == "googlenet":
        body = nn.Sequential(*list(model.children())[:-3])  # without avgpool, dropout and fc
        return _Parts(body, average, 1024, 1024, ("inception5b", "avgpool"))
    dim = {"squeezenet1_0": 512, "mobilenet_v2": 1280}[name]
    return _Parts(model.features, average, dim, dim, ("features", "avgpool"))


def _load(name: str, weights: str | Path) -> nn.Module:
    """A network of `ENCODERS` or `DETECTORS`, frozen and in eval mode."""
    if name == "scenes" and weights == "auto":
        return load_scenes_trunk().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = OPTIONS.get(name, {"weights_backbone": None} if name in DETECTORS else {})
        model: nn.Module = ScenesTrunk() if name == "scenes" else torchvision.models.get_model(name, **options)
    if weights != "random":
        path = find_weights(name) if weights == "auto" else Path(weights)
        state = load_weights(path)
        if name == "googlenet":
            state = {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))}
        load_state_dict(model, state, path)
    return model.eval().requires_grad_(False)


def load_detector(name: str, weights: str | Path = "auto") -> nn.Module:
    """A torchvision detector of `DETECTORS`, frozen and in eval mode: a list of images to a list of boxes and scores.

    `weights` is as for `Encoder`, but COCO's. Raises CapbenchError for an unknown name, and for weights that are
    missing, damaged or of another architecture.
    """
    if name not in DETECTORS:
        raise CapbenchError(f"there is no detector {name!r}; known are {', '.join(DETECTORS)}")
    model = _load(name, weights)
    if name == "fasterrcnn_resnet50_fpn":  # its weights were trained without the epsilon of batch norm
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    return model


class Encoder(nn.Module):
    """A convolutional network without its classifier, frozen and in eval mode.

    `name` is one of `ENCODERS`; `weights`, "auto" (see `capbench.vision.weights.find_weights`), "random" (the same
    each time) or a file. `output` says what `forward` gives:

    - "vector" [n, dim]: fc7 after its ReLU for alexnet and vgg, the mean of the last map for the others;
    - "grid" [n, location, dim]: the last convolutional map, row by row, before any pooling (14 x 14 x 512 for vgg19
      at 224 pixels);
    - "regions": nothing; call `regions` for the vectors of boxes.

    Raises CapbenchError for an unknown name or output, and for weights that are missing, damaged or of another
    architecture.

    >>> encoder = Encoder("scenes", "grid")
    >>> encoder(torch.zeros(2, 3, encoder.input_size, encoder.input_size, dtype=torch.uint8)).shape
    torch.Size([2, 64, 128])
    """

    mean: Tensor
    std: Tensor
    _fingerprint = ""  # of the original, in a folded copy

    def __init__(self, name: str, output: Output = "vector", weights: str | Path = "auto") -> None:
        super().__init__()
        if output not in get_args(Output):
            raise CapbenchError(f"an encoder gives vector, grid or regions, not {output!r}")
        if name not in ENCODERS:
            raise CapbenchError(f"there is no encoder {name!r}; known are {', '.join(ENCODERS)}")
        parts = _parts(name, _load(name, weights).eval().requires_grad_(False))
        self.name, self.output = name, output
        self.input_size = 64 if name == "scenes" else 224  # side of an image in pixels
        self.body, self.head = parts.body, parts.head
        self.dim = parts.channels if output == "grid" else parts.dim
        self.layer = parts.layers[0] if output == "grid" else parts.layers[1]
        self.compute_dtype = torch.float32  # until `fold`
        self.folded, self.frozen = False, True
        mean, std = PIXELS.get(name, IMAGENET)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    @property
    def fingerprint(self) -> str:
        """A hash of the name, the layer and the present weights; a folded copy keeps its original's."""
        return self._fingerprint or fingerprint([self.name, self.output, self.layer, hash_tensors(self.state_dict())])

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
        """A vector for each box: the head on the last map, resampled inside the box to the map's own size.

        Boxes are x0, y0, x1, y1 in pixels of `images`; the whole image's box gives the image's vector. Source: He et
        al., "Mask R-CNN", section 3 (RoIAlign), with one sample a bin.
        """
        grid = self.grid(images)
        count, regions = boxes.shape[:2]
        height, width = grid.shape[2:]
        image_ids = torch.arange(count, device=grid.device).repeat_interleave(regions)[:, None]
        rois = torch.cat([image_ids, boxes.float().flatten(0, 1)], 1)
        # Not torchvision.ops.roi_align: under deterministic algorithms it compiles another kernel on CUDA for its
        # gradient. This kernel's forward is deterministic.
        scale = height / images.shape[2]
        aligned = torch.ops.torchvision.roi_align(grid.float(), rois, scale, height, width, 1, True)
        return cast(Tensor, self.head(aligned.to(grid.dtype))).float().view(count, regions, -1)

    def fold(self, dtype: torch.dtype = torch.float32) -> Encoder:
        """A copy for inference on the same device: batch norm folded into the convolutions, channels last.

        In float32 on a CPU it stays within 1e-4 of the plain encoder's largest value; on CUDA, PyTorch's TF32 setting
        applies. bfloat16 is faster on hardware that has it but moves the vectors (norm of the difference to norm: 1 %
        for SqueezeNet, 17 % for MobileNetV2), so it is never the default. Raises CapbenchError for bfloat16 on a
        device without such convolutions, and for a folded encoder.
        """
        if self.folded:
            raise CapbenchError("this encoder is folded already; fold a fresh one")
        if dtype is torch.bfloat16 and not computes_bf16(self.mean.device, "convolution"):
            where = self.mean.device.type
            raise CapbenchError(f"this device ({where}) has no convolutions in bfloat16: fold in float32, the default")
        folded = copy.deepcopy(self)
        folded.trainable(False)
        folded.compute_dtype, folded._fingerprint = dtype, self.fingerprint
        if self.name != "scenes":  # small, and its forward is not traced
            folded.body = _fold_convolutions(folded.body)
        for module in (folded.body, folded.head):
            module.to(dtype=folded.compute_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        folded.folded = True
        return folded

    def trainable(self, trainable: bool = True) -> Encoder:
        """Open the weights to gradients and the layers to `train()`, for fine-tuning; or freeze them again."""
        if self.folded:
            raise CapbenchError("a folded encoder has lost its batch norm; fine-tune an unfolded one")
        self.requires_grad_(trainable)
        self.frozen = not trainable
        return self.eval() if self.frozen else self

    def train(self, mode: bool = True) -> Encoder:
        """Training mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)


class _Convolution(nn.Module):
    """A convolution and its ReLU or ReLU6, in one pass over memory with oneDNN."""

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
    """Merge each convolution with the batch norm and the ReLU that alone follow it."""
    traced = torch.fx.symbolic_trace(body)
    modules = dict(traced.named_modules())

    def kind(node: torch.fx.Node) -> type[nn.Module] | None:
        return type(modules[str(node.target)]) if node.op == "call_module" else None

    def only_user(node: torch.fx.Node, *kinds: type[nn.Module]) -> torch.fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and kind(users[0]) in kinds else None

    for node in list(traced.graph.nodes):
        if kind(node) is not nn.Conv2d:
            continue
        conv, last, activation = modules[node.target], node, None
        if norm := only_user(node, nn.BatchNorm2d):
            conv, last = fuse_conv_bn_eval(conv, modules[str(norm.target)]), norm
        if user := only_user(last, nn.ReLU, nn.ReLU6):
            activation, last = modules[str(user.target)], user
        traced.set_submodule(node.target, _Convolution(conv, activation))
        if last is not node:
            last.replace_all_uses_with(node)
            for done in dict.fromkeys((last, norm or last)):
                traced.graph.erase_node(done)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
