"""Where an encoder's weights come from: found, fetched, checked, and never executed."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write

MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
TRIES = 3
TIMEOUT = 30.0  # seconds without an answer


def published_address(name: str) -> str:
    """Torchvision's first published weights of a model: ImageNet's for a trunk, COCO's for a detector.

    The file name ends in part of its hash.
    """
    return str(next(iter(get_model_weights(name))).url)


def find_weights(name: str, address: str | None = None) -> Path:
    """The weights file of a torchvision model, downloaded where there is none yet.

    Looks for `<name>.safetensors` and for torchvision's own file in $CAPBENCH_WEIGHTS, in `weights` of the
    cache folder, and for the latter also where torch.hub keeps its files. Raises CapbenchError that says
    which file to put where when it cannot be fetched.
    """
    address = address or published_address(name)
    file = address.rsplit("/", 1)[1]
    given = os.environ.get("CAPBENCH_WEIGHTS")
    cache = cache_folder() / "weights"
    folders = [Path(given), cache] if given else [cache]
    hub = Path(torch.hub.get_dir()) / "checkpoints" / file
    for path in [folder / leaf for folder in folders for leaf in (f"{name}.safetensors", file)] + [hub]:
        if path.is_file():
            return path
    try:
        return download(address, cache / file)
    except CapbenchError as error:
        where = folders[0] if given else f"{cache} (or a folder named by CAPBENCH_WEIGHTS)"
        raise CapbenchError(f"{error}. Put {file}, or {name}.safetensors, into {where}") from error


def hash_in_name(file: str) -> str | None:
    """The start of the SHA-256 that torchvision writes into a file name, `alexnet-owt-7be5be79.pth`."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", file)
    return found[1] if found else None


def download(address: str, path: Path) -> Path:
    """Fetch `address` into `path` and return it; the file appears only when it is whole and its hash is
    right.

    An answer that breaks off is asked for again from its beginning, up to `TRIES` times. Raises CapbenchError
    naming the address, and what came instead, when the hash does not match or there is no answer.
    """
    expected = hash_in_name(path.name)
    if expected is None:
        raise CapbenchError(f"{path.name} carries no hash in its name, so a download cannot be checked")
    fault = ""
    for _ in range(TRIES):
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
                length = answer.headers.get("Content-Length")
                kind = answer.headers.get_content_type()
                content = answer.read()
        except urllib.error.HTTPError as error:
            fault = f"the server answers {error.code} {error.reason}"
            if error.code < 500:
                break
            continue
        except (OSError, http.client.HTTPException) as error:
            fault = f"no whole answer ({getattr(error, 'reason', error)})"
            continue
        if length is not None and len(content) != int(length):
            fault = f"{len(content):,} of {int(length):,} bytes came"
            continue
        found = hashlib.sha256(content).hexdigest()
        if found.startswith(expected):
            atomic_write(path, content)
            return path
        fault = f"the answer is {kind}, {len(content):,} bytes with SHA-256 {found[:16]} instead of {expected}..."
        break
    raise CapbenchError(
        f"cannot download {address}: {fault}. Any mirror's {path.name} whose SHA-256 begins with {expected} is as good"
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, or of a `.pth` file read without executing anything, floats as
    float32.

    A `.pth` file with a hash in its name is checked against it. Raises CapbenchError naming the file when
    it is missing, truncated, a pickle with anything but tensors in it, or not a weights file at all.
    """
    if not path.is_file():
        raise CapbenchError(f"there is no weights file {path}")
    state = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pth(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header = int.from_bytes(start, "little")
        if len(start) < 8 or header > min(size - 8, MAX_HEADER):
            raise CapbenchError(
                f"{path} is no whole safetensors file: it has {size:,} bytes and its header "
                f"claims {header:,}; fetch it again"
            )
        try:
            entries = json.loads(file.read(header))
            needed = max((e["data_offsets"][1] for key, e in entries.items() if key != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise CapbenchError(f"{path} is no safetensors file: its header is malformed") from error
    if not isinstance(needed, int) or needed != size - 8 - header:
        raise CapbenchError(
            f"{path} is truncated or has bytes too many: its tensors need {needed} bytes and "
            f"{size - 8 - header} are there; fetch it again"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CapbenchError(f"{path} cannot be read as safetensors: {error}") from error


def _load_pth(path: Path) -> dict[str, Tensor]:
    expected = hash_in_name(path.name)
    if expected is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(expected):
            raise CapbenchError(f"{path} has SHA-256 {found[:16]}... and not {expected}...; fetch it again")
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


def fit(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state` into `module`, strictly.

    Names of old files of DenseNet ("norm.1") and of detectors ("rpn.head.conv.weight") are translated, and counters of
    batches that old files lack are zero. Raises CapbenchError naming the missing, unexpected and misshapen entries.
    """
    state = {_new_name(key): value for key, value in state.items()}
    expected = module.state_dict()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    shapes = [
        f"{key} {list(state[key].shape)} for {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    faults = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": shapes,
    }
    told = [f"{len(keys)} {what} ({', '.join(keys[:5])})" for what, keys in faults.items() if keys]
    if told:
        raise CapbenchError(
            f"{path} holds the weights of another architecture than {type(module).__name__}: {'; '.join(told)}"
        )
    module.load_state_dict(state)


def _new_name(key: str) -> str:
    """What newer torchvision calls the entry `key` of an old file."""
    key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    return re.sub(r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", key)


def hash_tensors(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
