"""The networks of encoders and detectors by name: frozen, with weights.

They are torchvision's, timm's, that of the scenes, and those of other packages by their entry points. timm is imported
where it is used: its import takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torchvision
from torch import Tensor, nn

from capbench.base import plugins
from capbench.base.errors import CapbenchError
from capbench.vision.scenes_trunk import CHANNELS, ScenesTrunk, load_scenes_trunk
from capbench.vision.weights import find_timm_weights, find_weights, load_state_dict, load_weights

ENCODERS = (
    *("alexnet", "vgg16", "vgg19", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("googlenet", "squeezenet1_0", "mobilenet_v2", "scenes"),
)
TIMM = "timm/"  # prefix of the names of timm's models
IMPORTED = "file/"  # prefix of the names of imported features, which have no network
KNOWN = f"{', '.join(ENCODERS)}, and {TIMM}<name> for any model of timm"
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
class Trunk:
    """A network without its classifier.

    An entry point `capbench.encoders` names a function that makes one, given "auto", "random" or the path of weights.
    """

    body: nn.Module  # images -> map [n, channel, height, width]
    head: nn.Module  # map -> vector [n, dim]
    channels: int  # of the map
    dim: int  # of the vector
    layers: tuple[str, str]  # the names of the map and of the vector
    pixels: tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of pixels in 0..1
    input_size: int = 224  # side of an image in pixels
    licence: str = ""  # of the published weights, as timm states it; torchvision states none


Weights = str | Path | Mapping[str, Tensor]  # "auto", "random", a file, or a table of tensors by torchvision's names


def load_trunk(name: str, weights: Weights = "auto") -> Trunk:
    """The trunk of an encoder, frozen and in eval mode; `weights` as for `Encoder`.

    Raises CapbenchError for an unknown name, and for weights that are missing, damaged or of another architecture.
    """
    check_name(name)
    if name.startswith(IMPORTED):
        raise CapbenchError(
            f"{name} names imported features: no network is behind them that could encode a picture; name an encoder, "
            "or a run of one"
        )
    if not isinstance(weights, Mapping):
        if name.startswith(TIMM):
            return _timm_trunk(name, weights)
        if entry := outside(name):
            return _outside_trunk(entry, weights)
    elif name not in ENCODERS:
        raise CapbenchError(f"a table of tensors is read for the networks of torchvision alone, not for {name}")
    return _trunk(name, _load(name, weights).eval().requires_grad_(False))


def check_name(name: str) -> None:
    """Raises CapbenchError for a name that is no encoder's, with the names of encoders.

    >>> check_name("timm/tf_efficientnet_lite2")
    """
    if name.startswith(IMPORTED):
        return
    if name.startswith(TIMM):
        import timm

        model, _ = _timm_name(name)
        if not timm.is_model(model):
            near = timm.list_models(f"*{model[:8]}*")[:5]
            raise CapbenchError(f"timm {timm.__version__} has no model {model!r}; near it are {', '.join(near) or '-'}")
    elif name not in ENCODERS and not outside(name):
        others = "".join(f", {other}" for other in plugins.named(plugins.ENCODERS))
        raise CapbenchError(f"there is no encoder {name!r}; known are {KNOWN}{others}")


def outside(name: str) -> EntryPoint | None:
    """The entry point of another package's encoder; None for a name of ours or of nobody.

    Raises CapbenchError where another package claims a name of ours, and where two packages claim one name.
    """
    entry = plugins.named(plugins.ENCODERS).get(name)
    if entry and name in ENCODERS:
        raise CapbenchError(f"the encoder {name!r} is capbench's and that of {plugins.place(entry)}; uninstall that")
    return entry


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


def _load(name: str, weights: Weights) -> nn.Module:
    """A network of `ENCODERS` or `DETECTORS`, frozen and in eval mode."""
    if name == "scenes" and weights == "auto":
        return load_scenes_trunk().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = OPTIONS.get(name, {"weights_backbone": None} if name in DETECTORS else {})
        model: nn.Module = ScenesTrunk() if name == "scenes" else torchvision.models.get_model(name, **options)
    if weights != "random":
        if isinstance(weights, Mapping):
            path, state = Path(f"the table of {name}"), dict(weights)
        else:
            path = find_weights(name) if weights == "auto" else Path(weights)
            state = load_weights(path)
        if name == "googlenet":
            state = {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))}
        load_state_dict(model, state, path)
    return model.eval().requires_grad_(False)


def _outside_trunk(entry: EntryPoint, weights: str | Path) -> Trunk:
    """The trunk of another package, frozen, after a check of what it says of itself.

    Raises CapbenchError naming the package where it fails, or where its maps and vectors have other shapes.
    """
    where = f"the encoder {entry.name} of {plugins.place(entry)}"
    try:
        trunk = entry.load()(weights)
        if not isinstance(trunk, Trunk):
            raise TypeError(f"it gives {type(trunk).__name__}, no capbench.vision.networks.Trunk")
        for module in (trunk.body, trunk.head):
            module.eval().requires_grad_(False)
        with torch.inference_mode():
            grid = trunk.body(torch.zeros(2, 3, trunk.input_size, trunk.input_size))
            shapes = (grid.shape[:2], trunk.head(grid).shape)
        if grid.ndim != 4 or shapes != ((2, trunk.channels), (2, trunk.dim)):
            raise ValueError(f"two images give a map {list(grid.shape)} and vectors {list(shapes[1])}")
    except CapbenchError:
        raise
    except Exception as error:  # the package's own code, which may raise anything
        raise CapbenchError(f"{where} cannot be used: {type(error).__name__}: {error}") from error
    return trunk


class _Average(nn.Module):
    def forward(self, grid: Tensor) -> Tensor:
        return grid.mean((2, 3))


class _ScenesHead(nn.Module):
    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, grid: Tensor) -> Tensor:
        return cast(Tensor, self.trunk.vector(grid))


class _Method(nn.Module):
    """A network whose forward is one of its methods."""

    def __init__(self, model: Any, method: str, **options: Any) -> None:
        super().__init__()
        self.model, self.method, self.options = model, method, options

    def forward(self, x: Any) -> Any:  # a tensor, or its proxy while torch.fx traces
        return getattr(self.model, self.method)(x, **self.options)


def _trunk(name: str, model: Any) -> Trunk:
    average, pixels = _Average(), PIXELS.get(name, IMAGENET)
    if name == "scenes":
        layers = ("trunk", "trunk.vector")
        return Trunk(model, _ScenesHead(model), CHANNELS, 4 * CHANNELS, layers, pixels, input_size=64)
    if name == "alexnet" or name.startswith("vgg"):
        channels, to_fc7 = (256, 6) if name == "alexnet" else (512, 5)
        head = nn.Sequential(model.features[-1], model.avgpool, nn.Flatten(), *model.classifier[:to_fc7])
        return Trunk(model.features[:-1], head, channels, 4096, ("last convolution", "fc7"), pixels)
    if name.startswith("resnet"):
        stem = (model.conv1, model.bn1, model.relu, model.maxpool)
        body = nn.Sequential(*stem, model.layer1, model.layer2, model.layer3, model.layer4)
        return Trunk(body, average, 2048, 2048, ("layer4", "avgpool"), pixels)
    if name.startswith("densenet"):
        dim = model.classifier.in_features
        return Trunk(nn.Sequential(*model.features, nn.ReLU()), average, dim, dim, ("norm5", "avgpool"), pixels)
    if name == "googlenet":
        body = nn.Sequential(*list(model.children())[:-3])  # without avgpool, dropout and fc
        return Trunk(body, average, 1024, 1024, ("inception5b", "avgpool"), pixels)
    dim = {"squeezenet1_0": 512, "mobilenet_v2": 1280}[name]
    return Trunk(model.features, average, dim, dim, ("features", "avgpool"), pixels)


def _timm_name(name: str) -> tuple[str, dict[str, Any]]:
    """timm's model and the options of its constructor.

    >>> _timm_name("timm/mobilenetv2_100,pad_type=same")
    ('mobilenetv2_100', {'pad_type': 'same'})
    """
    model, *pairs = name.removeprefix(TIMM).split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals and value):
            raise CapbenchError(f"{pair!r} in the encoder {name!r} is no option; write name=value, as in pad_type=same")
        options[key] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value.lower(), value)
    return model, options


def _timm_trunk(name: str, weights: str | Path) -> Trunk:
    """The map before pooling and the vector before the classifier, by timm's own methods and normalisation.

    A vision transformer's map is its patches, and its vector their mean.
    """
    model_name, options = _timm_name(name)
    source: dict[str, Any] = {}
    if weights != "random":
        file = f"timm_{model_name}.safetensors" if model_name in ENCODERS else f"{model_name}.safetensors"
        path = find_timm_weights(model_name, file) if weights == "auto" else Path(weights)
        load_weights(path)  # whether it is whole
        source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    try:
        model = _timm_model(model_name, source | options)
    except TypeError as error:
        raise CapbenchError(f"timm cannot make {name}: {error}; correct its options") from error
    except RuntimeError as error:
        where = source.get("pretrained_cfg_overlay", {}).get("file", name)
        raise CapbenchError(f"{where} holds the weights of another architecture than {name}: {error}"[:600]) from error
    model.eval().requires_grad_(False)
    config = model.pretrained_cfg
    size = int(options.get("img_size", config["input_size"][-1]))
    pixels = tuple(config["mean"]), tuple(config["std"])
    body: nn.Module = _Method(model, "forward_features")
    with torch.inference_mode():
        grid = body(torch.zeros(1, 3, size, size))
        if not isinstance(grid, Tensor):
            raise CapbenchError(f"{name} gives a {type(grid).__name__}, no map of the image; take a network that does")
        if grid.ndim == 4 and grid.shape[1] == model.num_features:
            head: nn.Module = _Method(model, "forward_head", pre_logits=True)
        else:
            to_map = _ToMap(grid, model)
            body, head, grid = nn.Sequential(body, to_map), _Average(), to_map(grid)
        dim = head(grid).shape[-1]
    layers = ("forward_features", "average" if isinstance(head, _Average) else "forward_head")
    return Trunk(body, head, grid.shape[1], dim, layers, pixels, size, config.get("license") or "")


def _timm_model(name: str, options: dict[str, Any]) -> Any:
    """timm's model; one that can take images of other sizes than its own does, which changes nothing at its own."""
    import timm

    def make(**flexible: bool) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, **(flexible | options))

    try:
        return make(dynamic_img_size=True)
    except TypeError:  # most networks take any size, and have no such option
        return make()


class _ToMap(nn.Module):
    """A map [n, channel, height, width] from one with channels last, or from the patches of a vision transformer."""

    def __init__(self, sample: Tensor, model: Any) -> None:
        super().__init__()
        self.prefix = getattr(model, "num_prefix_tokens", 0)
        patches = sample.shape[1] - self.prefix
        square = sample.ndim == 3 and patches > 1 and math.isqrt(patches) ** 2 == patches  # 1: a class token alone
        if not (square or (sample.ndim == 4 and sample.shape[-1] == model.num_features)):
            raise CapbenchError(f"{type(model).__name__} gives no map of the image; take a network that does")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2)
        x = x[:, self.prefix :]
        side = math.isqrt(x.shape[1])
        return x.transpose(1, 2).unflatten(2, (side, side))
