"""Folders and files that environment variables name."""

from __future__ import annotations

import os
from pathlib import Path

from capbench.base.errors import CapbenchError


def path_from(variable: str) -> Path | None:
    """The path in an environment variable, a leading `~` expanded; None if it is unset or empty.

    Raises CapbenchError if the home folder is unknown.
    """
    value = os.environ.get(variable)
    return _expanded(value, variable) if value else None


def cache_folder() -> Path:
    """The folder of whatever can be made again: $CAPBENCH_CACHE, $XDG_CACHE_HOME/capbench or ~/.cache/capbench.

    Raises CapbenchError if the home folder is unknown and no variable replaces it.
    """
    return (
        path_from("CAPBENCH_CACHE")
        or (path_from("XDG_CACHE_HOME") or _expanded("~/.cache", "CAPBENCH_CACHE")) / "capbench"
    )


def config_folder() -> Path:
    """The folder of what the user has set: $XDG_CONFIG_HOME/capbench or ~/.config/capbench.

    Raises CapbenchError if the home folder is unknown and the variable does not replace it.
    """
    return (path_from("XDG_CONFIG_HOME") or _expanded("~/.config", "XDG_CONFIG_HOME")) / "capbench"


def _expanded(path: str, variable: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CapbenchError(
            f"{path}: the home folder is unknown; set {variable} to a folder, as a whole path"
        ) from error
