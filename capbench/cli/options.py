"""The types of options: they refuse a bad value by name before any command starts."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from capbench.base import plugins
from capbench.base.errors import CapbenchError
from capbench.data.registered import find

# Spelled out here because the modules that define them import torch; a test compares the two.
ENCODERS = (
    "alexnet", "vgg16", "vgg19", "resnet50", "resnet101", "resnet152",
    "densenet121", "densenet161", "densenet169", "densenet201",
    "googlenet", "squeezenet1_0", "mobilenet_v2", "scenes",
)  # fmt: skip
IMPORTED = re.compile(r"file/\w[\w.-]*")
TIMM = re.compile(r"timm/[\w.]+(,\w+=[\w.]+)*")
View = Literal["1C", "10C", "whole", "views", "RC"]
FeatureFormat = Literal["scan", "butd", "h5"]
RegionProvider = Literal[
    "multiscale", "objects", "file",
    "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn",
    "retinanet_resnet50_fpn_v2",
]  # fmt: skip
Fetched = Literal["coco", "flickr8k", "flickr30k", "glove"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


def _dataset(_: object, name: str | None) -> None:
    """Refuse what is neither a known nor a registered name nor a path; whether a path holds a data set shows later."""
    try:
        find(name) if name is not None else None
    except CapbenchError as error:
        raise ValueError(str(error)) from error


def recorded_name(dataset: str) -> str:
    """The name of a data set in records; a folder's is that of its data."""
    own = find(dataset)
    return own.name if own else dataset


def _known(_: object, name: str | None) -> None:
    if name is None or name in ENCODERS or TIMM.fullmatch(name) or IMPORTED.fullmatch(name):
        return
    known = (*ENCODERS, *plugins.named(plugins.ENCODERS))
    if name not in known:
        close = "".join(f" Did you mean {near!r}?" for near in get_close_matches(name, known, n=1))
        names = ", ".join((*known, "timm/<name>", "and file/<name> for imported features"))
        raise ValueError(f'no encoder "{name}".{close} There are {names}.')


def _assigns(_: object, text: str | None) -> None:
    if text is not None and not re.fullmatch(r"[\w.]+=.*", text):
        raise ValueError(f"{text!r} sets no field; write training.learning_rate=1e-3")


Dataset = Annotated[str, Parameter(validator=_dataset)]
Split = Literal["train", "val", "test"]
Tokenizer = Literal["unicode", "whitespace", "karpathy"]
Assignment = Annotated[str, Parameter(validator=_assigns)]
Encoder = Annotated[str, Parameter(validator=_known)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
CountOrNone = Annotated[int, Parameter(validator=Number(gte=0))]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]
Affinity = Annotated[float, Parameter(validator=Number(gte=0))]
Temperature = Annotated[float, Parameter(validator=Number(gt=0))]
Port = Annotated[int, Parameter(validator=Number(gte=0, lt=2**16))]
OneOrTwo = Parameter(consume_multiple=(1, 2))
OneOrMore = Parameter(consume_multiple=(1, 1000))
Format = Literal["table", "csv", "latex", "json"]
Json = Annotated[bool, Parameter(name="--json")]
