"""What other installed packages bring, by their entry points. Only the standard library is imported here."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from capbench.base.errors import CapbenchError

PAPERS, ENCODERS = "capbench.papers", "capbench.encoders"  # the groups


def named(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, none of them loaded. Raises CapbenchError for a name given twice."""
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=place):
        if entry.name in found:
            places = f"{place(found[entry.name])} and {place(entry)}"
            raise CapbenchError(f"two entry points of {group} have the name {entry.name!r}: {places}; uninstall one")
        found[entry.name] = entry
    return found


def place(entry: EntryPoint) -> str:
    """Where an entry point comes from: "example 0.1 (example.paper:PAPER)"."""
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"
    return f"{package} ({entry.value})"


def load(entry: EntryPoint) -> Any | None:
    """What an entry point names; None, with a warning that names it, where its package is broken."""
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # the package's own code, which may raise anything
        pass_over(entry, f"{type(error).__name__}: {error}")
        return None


def pass_over(entry: EntryPoint, fault: str) -> None:
    """Warn that an entry point is left out."""
    warnings.warn(f"{entry.group}: {entry.name} of {place(entry)} is left out: {fault}", stacklevel=3)


def versions(*entries: EntryPoint | None) -> dict[str, str]:
    """The packages of entry points with their versions."""
    packages = (entry.dist for entry in entries if entry is not None)
    return {package.name: package.version for package in packages if package}
