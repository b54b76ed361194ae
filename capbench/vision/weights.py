"""The weights of encoders and detectors: found or downloaded, checked, and read without running code."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from capbench.base import downloads
from capbench.base.cache import cache_folder, path_from
from capbench.base.downloads import Remote
from capbench.base.errors import CapbenchError
from capbench.base.files import sha256


def published_address(name: str) -> str:
    """The address of torchvision's first weights of a model: ImageNet's for a trunk, COCO's for a detector."""
    return str(next(iter(get_model_weights(name))).url)


def find_weights(name: str, address: str | None = None) -> Path:
    """The weights file of a torchvision model, downloaded from `address` (torchvision's) if there is none.

    Looks for `<name>.safetensors` and torchvision's own file in $CAPBENCH_WEIGHTS and in the cache folder's `weights`,
    then for torchvision's file in torch.hub's folder. Raises CapbenchError that says which file to put where when the
    download fails.
    """
    address = address or published_address(name)
    file = address.rsplit("/", 1)[1]
    folders, cache, where = _folders()
    hub = Path(torch.hub.get_dir()) / "checkpoints" / file
    for path in [folder / leaf for folder in folders for leaf in (f"{name}.safetensors", file)] + [hub]:
        if path.is_file():
            return path
    try:
        return download(address, cache / file)
    except CapbenchError as error:
        raise CapbenchError(f"{error}. Put {file}, or {name}.safetensors, into {where}") from error


def find_timm_weights(name: str, file: str) -> Path:
    """The weights file of a model of timm, downloaded from the Hugging Face hub if there is none; safetensors only.

    Looks for `file` in $CAPBENCH_WEIGHTS and in the cache folder's `weights`. Raises CapbenchError that
    says which file to put where when the download fails.
    """
    folders, cache, where = _folders()
    for folder in folders:
        if (path := folder / file).is_file():
            return path
    import timm
    from huggingface_hub import hf_hub_download

    config = timm.get_pretrained_cfg(name)
    try:
        if config is None or not config.hf_hub_id:
            raise CapbenchError(f"timm has no published weights of {name}")
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors", cache_dir=cache / "hub"))
    except Exception as error:  # the hub's client and its transport raise many kinds
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CapbenchError(f"no weights of {name}: {fault}. Put {file} into {where}") from error


def _folders() -> tuple[list[Path], Path, str]:
    """The folders that are searched, the one of downloads, and where a user is to put a file."""
    given, cache = path_from("CAPBENCH_WEIGHTS"), cache_folder() / "weights"
    if given:
        return [given, cache], cache, str(given)
    return [cache], cache, f"{cache} (or a folder named by CAPBENCH_WEIGHTS)"


def hash_in_name(file: str) -> str | None:
    """The start of the SHA-256 in a file name of torchvision's.

    >>> hash_in_name("alexnet-owt-7be5be79.pth")
    '7be5be79'
    """
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", file)
    return match[1] if match else None


def download(address: str, path: Path) -> Path:
    """`address` as the file `path`, checked by the hash in its name; see `capbench.base.downloads.download`.

    Raises CapbenchError naming the address and what arrived.
    """
    expected = hash_in_name(path.name)
    if expected is None:
        raise CapbenchError(f"{path.name} carries no hash in its name, so a download cannot be checked")
    return downloads.download(Remote((address,), expected), path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file, floats as float32; no code in it runs.

    Raises CapbenchError naming the file when it is missing, truncated, not a weights file, a pickle that holds more
    than tensors, or a `.pth` file that does not match the hash in its name.
    """
    if not path.is_file():
        raise CapbenchError(f"there is no weights file {path}")
    state = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pth(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        raise CapbenchError(
            f"{path} is no whole safetensors file: it has {path.stat().st_size:,} bytes and its header claims "
            f"{header:,} ({error}); fetch it again"
        ) from error


def _load_pth(path: Path) -> dict[str, Tensor]:
    expected, actual = hash_in_name(path.name), sha256(path)
    if expected is not None and not actual.startswith(expected):
        raise CapbenchError(f"{path} has SHA-256 {actual[:16]}... and not {expected}...; fetch it again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, zip and attribute errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CapbenchError(
            f"{path} is refused: it is truncated, or a pickle with more than tensors in it, which could run "
            f"code ({reason[:200]}); give plain weights or a .safetensors file"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CapbenchError(f"{path} holds no plain table of tensors; save model.state_dict() alone")
    return state


def load_state_dict(module: nn.Module, state: dict[str, Tensor], origin: Path | str) -> None:
    """Load `state`, of a file or whatever else `origin` names, into `module`.

    Old names of DenseNet ("norm.1") and of detectors ("rpn.head.conv.weight") are translated; absent counters of
    batches become 0. Raises CapbenchError naming the missing, unexpected and misshapen entries.
    """
    state = {_new_name(key): value for key, value in state.items()}
    expected = module.state_dict()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    shapes = {key: (list(state[key].shape), list(value.shape)) for key, value in expected.items() if key in state}
    faults = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": [f"{key} {here} for {there}" for key, (here, there) in shapes.items() if here != there],
    }
    listed = [f"{len(keys)} {what} ({', '.join(keys[:5])})" for what, keys in faults.items() if keys]
    if listed:
        raise CapbenchError(
            f"{origin} holds the weights of another architecture than {type(module).__name__}: {'; '.join(listed)}"
        )
    module.load_state_dict(state)


def _new_name(key: str) -> str:
    """The present name of the entry `key` of an old file."""
    key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    return re.sub(r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", key)


def hash_tensors(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
