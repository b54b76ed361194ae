"""What `--dataset` names: a known data set, one of the user's own that was registered, or a folder."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from capbench.base.cache import config_folder
from capbench.base.errors import CapbenchError, unknown
from capbench.base.files import atomic_write, locked

KNOWN = ("scenes", "flickr8k", "flickr30k", "coco", "coco-norestval")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Own:
    """A data set of the user's own."""

    name: str  # in records, on pages and in the names of folders
    path: Path  # its folder, or the split file or table in it
    tokenizer: str = ""  # empty: the one that suits the file
    place: str = ""  # how a command names it, from the working folder; empty for a registered name


def find(given: str) -> Own | None:
    """The user's own data set of a registered name, a folder or a file; None for a known name.

    A folder is known by a `/` or by being there: `./birds`, `birds/`, `birds`. Its data set has its name, in lower case
    and with `-` for what is no letter from a to z, digit, `_` or `-`. Raises CapbenchError for a name that is none of
    these, and for a folder whose name is a known data set's.
    """
    if given in KNOWN:
        return None
    mine = registered()
    if given in mine:
        return mine[given]
    if "/" not in given and not os.path.exists(given):
        error = unknown("data set", given, [*KNOWN, *mine])
        raise CapbenchError(f"{error}, and any folder: capbench datasets add --help")
    path = Path(os.path.expanduser(given))
    name = re.sub(r"[^a-z0-9_-]+", "-", _folder(path).name.lower()).strip("-_")[:64]
    if name in KNOWN or not name:
        known = f"bears the name of the known data set {name}"
        fault = known if name else "has no letter from a to z and no digit in its name"
        raise CapbenchError(
            f"the folder {given} {fault}: give it another with capbench datasets add NAME {shlex.quote(given)}"
        )
    relative = os.path.relpath(path)
    return Own(name, path, place=relative if relative.startswith("..") else os.path.join(".", relative))


def registered() -> dict[str, Own]:
    """The data sets that `register` remembers, by name. Raises CapbenchError for a damaged file."""
    try:
        file = _file()
    except CapbenchError:  # without a home folder nothing is registered
        return {}
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        mine = {name: Own(name, Path(entry["path"]), str(entry["tokenizer"])) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CapbenchError(f"cannot read the registered data sets {file} ({error!r}); correct or delete it") from error
    wrong = [name for name in mine if not NAME.fullmatch(name) or name in KNOWN]
    if wrong:
        raise CapbenchError(f"{file}: {wrong[0]!r} is no name for a data set of your own; correct or delete the file")
    return mine


def check_name(name: str) -> None:
    """Raises CapbenchError for a name that a data set of one's own cannot have."""
    if name in KNOWN:
        raise CapbenchError(f"{name} is the name of a known data set; choose another")
    if not NAME.fullmatch(name):
        raise CapbenchError(f"{name!r} is no name for a data set: take a-z, 0-9, _ and -, as in birds-2024")


def register(name: str, path: Path, tokenizer: str = "") -> Path:
    """Remember a data set's place under a name that is free or its own; returns the file that holds it.

    Raises CapbenchError for a name that cannot be taken and a file that cannot be written.
    """
    check_name(name)
    file, path = _file(), path.absolute()
    with _locked(file):
        mine = registered()
        if name in mine and mine[name].path != path:
            other = mine[name].path
            raise CapbenchError(f"{name} is {other} already; choose another name, or capbench datasets remove {name}")
        _write(file, mine | {name: Own(name, path, tokenizer)})
    return file


def unregister(name: str) -> Path:
    """Forget a name; the folder stays as it is. Raises CapbenchError for a name that is not registered."""
    if name in KNOWN:
        raise CapbenchError(f"{name} is a known data set, not one of yours; it cannot be removed")
    file = _file()
    with _locked(file):
        mine = registered()
        if name not in mine:
            raise unknown("registered data set", name, mine)
        _write(file, {other: own for other, own in mine.items() if other != name})
    return file


def _file() -> Path:
    return config_folder() / "datasets.json"


def _locked(file: Path) -> AbstractContextManager[None]:
    """The file for this process alone; its folder is made."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapbenchError(f"cannot write to {file.parent}: {error.strerror}; set XDG_CONFIG_HOME") from error
    return locked(file.with_suffix(".lock"), 10.0)


def _write(file: Path, mine: Mapping[str, Own]) -> None:
    entries = {name: {"path": str(own.path), "tokenizer": own.tokenizer} for name, own in sorted(mine.items())}
    atomic_write(file, (json.dumps(entries, indent=1) + "\n").encode())


def _folder(path: Path) -> Path:
    """The folder of a data set that is given by its folder or by a file in it."""
    whole = path.resolve()
    return whole.parent if whole.is_file() else whole
