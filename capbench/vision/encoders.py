"""Image encoders: frozen networks that give a vector, a grid of annotations, or regions."""

from __future__ import annotations

import copy
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.base.plugins import versions
from capbench.base.processor import computes_bf16
from capbench.vision.folding import fold_convolutions
from capbench.vision.networks import Weights, load_trunk, outside
from capbench.vision.weights import hash_tensors

Output = Literal["vector", "grid", "regions"]


class Encoder(nn.Module):
    """A network without its classifier, frozen and in eval mode.

    `name` is one of `capbench.vision.networks.ENCODERS`, or "timm/" with the name of a model of timm and options of its
    constructor ("timm/mobilenetv2_100,pad_type=same"), or that of another package's entry point. `weights` are "auto"
    (see `capbench.vision.weights`), "random" (the same each time), a file, or a table of tensors by torchvision's
    names. `output` says what `forward` gives:

    - "vector" [n, dim]: fc7 after its ReLU for alexnet and vgg, timm's own vector before the classifier, the mean of
      the last map for the others;
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

    def __init__(self, name: str, output: Output = "vector", weights: Weights = "auto") -> None:
        super().__init__()
        if output not in get_args(Output):
            raise CapbenchError(f"an encoder gives vector, grid or regions, not {output!r}")
        trunk = load_trunk(name, weights)
        self.name, self.output = name, output
        self.input_size = trunk.input_size  # side of an image in pixels
        self.licence = trunk.licence  # of the published weights; empty where it is not stated
        self.packages = versions(outside(name))  # the other package that brings it, with its version
        self.body, self.head = trunk.body, trunk.head
        self.dim = trunk.channels if output == "grid" else trunk.dim
        self.layer = trunk.layers[0] if output == "grid" else trunk.layers[1]
        self.compute_dtype = torch.float32  # until `fold`
        self.folded, self.frozen = False, True
        mean, std = trunk.pixels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    @property
    def fingerprint(self) -> str:
        """A hash of the name, the layer, the present weights and the version of another package that brings it.

        A folded copy keeps its original's.
        """
        parts = [self.name, self.output, self.layer, hash_tensors(self.state_dict()), *self.packages.items()]
        return self._fingerprint or fingerprint(parts)

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

        A network that torch.fx cannot trace keeps its layers as they are.
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
            folded.body = fold_convolutions(folded.body)
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
