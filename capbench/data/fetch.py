"""Data sets brought into the layout that `load_dataset` reads: downloaded, or from archives that lie there."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from capbench.base.archives import unpacked
from capbench.base.downloads import LOCK_SECONDS, download
from capbench.base.errors import CapbenchError, listed, unknown
from capbench.base.files import atomic_write, check_space, check_writable, locked, sha256
from capbench.base.signals import stop_at_once
from capbench.data.datasets import load_captions, load_dataset, splits_line
from capbench.data.published import ARCHIVES, REQUESTS, Archive

RECEIPT = "fetched.json"  # of each archive: address, bytes and SHA-256, to compare machines by


def fetch(name: str, data: Path) -> Iterator[str]:
    """Bring what `name` ("coco", "flickr8k", "flickr30k" or "glove") needs into `data`/`name`, a line for each step.

    An archive that lies in that folder is used instead of a download, and stays; one that was downloaded is removed
    once its files are in place. Nothing that is there is overwritten. The photographs of Flickr8K and Flickr30K are
    not downloaded: without them the error says whom to ask.

    Raises CapbenchError naming what is wrong or missing and where to put it; StoppedError after a signal: the next call
    continues.
    """
    if name not in ARCHIVES:
        raise unknown("data set to fetch", name, ARCHIVES)
    folder = data / name
    check_writable(folder)
    with locked(folder / ".fetch.lock", LOCK_SECONDS):
        missing = [archive for archive in ARCHIVES[name] if _absent(archive, folder)]
        downloads = [_to_come(archive, folder) for archive in missing]
        needed = sum(archive.unpacked for archive in missing) + max(downloads, default=0)
        check_space(folder, needed, f"fetching {name}")
        for archive in ARCHIVES[name]:
            yield _bring(archive, folder)
        if name in REQUESTS and not (folder / "images").exists():
            yield _unpack_photographs(name, data)
    if name == "glove":
        yield f"set CAPBENCH_GLOVE={shlex.quote(str(folder / 'glove.6B.300d.txt'))}, or to another of these files"
        return
    try:
        dataset = load_dataset(name, data)
    except CapbenchError as error:
        raise CapbenchError(f"{error}; move what is incomplete away, and run this again") from error
    yield f"{name} is whole: {len(dataset.images):,} images, {len(dataset.captions):,} captions: {splits_line(dataset)}"
    yield f"its fingerprint is {dataset.fingerprint}"


def _absent(archive: Archive, folder: Path) -> list[str]:
    return [place for place in archive.places.values() if not (folder / place).exists()]


def _to_come(archive: Archive, folder: Path) -> int:
    """The bytes of an archive that are still to be downloaded."""
    part = folder / f"{archive.file}.part"
    come = archive.remote.size if (folder / archive.file).is_file() else part.stat().st_size if part.is_file() else 0
    return archive.remote.size - come


def _bring(archive: Archive, folder: Path) -> str:
    """The files of one archive; what was done."""
    wanted, path = _absent(archive, folder), folder / archive.file
    if not wanted:
        return f"{' and '.join(archive.places.values())}: there already, and left as it is"
    remote, brought = archive.remote, path.is_file()
    if brought:
        _check_brought(archive, path)
    else:
        try:
            download(remote, path)
        except CapbenchError as error:
            raise CapbenchError(f"{error}. Put {archive.file} into {folder} and run this again") from error

    def fault(fresh: Path) -> str:
        count, expected = len(_files(fresh)), archive.files - len(archive.places) + len(wanted)
        return f"holds {count:,} files for {', '.join(wanted)}, not {expected:,}" if count != expected else ""

    count = _settle(path, folder, archive.place(wanted), wanted, fault)
    _note(folder, archive.file, {"addresses": remote.addresses, "bytes": remote.size, "sha256": remote.sha256})
    if not brought:
        path.unlink()
    stays = f"; {path} is no longer needed" if brought else ""
    return f"{', '.join(wanted)}: {count:,} files of {archive.file}, SHA-256 {remote.sha256} as published{stays}"


def _check_brought(archive: Archive, path: Path) -> None:
    size, remote = path.stat().st_size, archive.remote
    fault = f"has {size:,} bytes and not {remote.size:,}" if size != remote.size else ""
    if not fault and (actual := sha256(path)) != remote.sha256:
        fault = f"has the SHA-256 {actual} and not {remote.sha256}"
    if fault:
        raise CapbenchError(f"{path} {fault}: move it away, and this command downloads it; or get it again")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _settle(
    path: Path,
    folder: Path,
    place: Callable[[str], str | None],
    wanted: list[str],
    fault: Callable[[Path], str],
) -> int:
    """Unpack an archive and, without a `fault`, move `wanted`, files or folders, into `folder`; how many files."""
    with stop_at_once(), unpacked(path, folder, place) as fresh:
        if wrong := fault(fresh):
            raise CapbenchError(f"{path} {wrong}; get the archive from its publisher")
        count = len(_files(fresh))
        if hasattr(os, "sync"):
            os.sync()  # the files before their names
        for target in wanted:
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            if (folder / target).exists():
                raise CapbenchError(f"{folder / target} has appeared meanwhile, and is left as it is; run this again")
            os.rename(fresh / target, folder / target)
    return count


def _unpack_photographs(name: str, data: Path) -> str:
    """The photographs that the split file names, from an archive that the user has put into the folder."""
    folder, request = data / name, REQUESTS[name]
    path = next((folder / file for file in request.archives if (folder / file).is_file()), None)
    if path is None:
        raise CapbenchError(
            f"the photographs of {name} are not downloaded: their authors give them to those who ask at "
            f"{request.form}. Put {request.archives[0]}, which they send, into {folder} and run this again; or put the "
            f"photographs themselves into {folder / 'images'}"
        )
    names = set(load_captions(name, data).image_names)

    def place(member: str) -> str | None:
        leaf = PurePosixPath(member).name
        return f"images/{leaf}" if leaf in names and not member.startswith("__MACOSX/") else None

    def fault(fresh: Path) -> str:
        rest = sorted(names - {file.name for file in _files(fresh)})
        return f"lacks {len(rest):,} photographs of the split file: {listed(rest)}" if rest else ""

    count = _settle(path, folder, place, ["images"], fault)
    digest = sha256(path)
    _note(folder, path.name, {"bytes": path.stat().st_size, "sha256": digest})
    return f"images/: {count:,} photographs of {path.name}, SHA-256 {digest}; no hash of it is published"


def _note(folder: Path, file: str, entry: dict[str, object]) -> None:
    path = folder / RECEIPT
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    atomic_write(path, (json.dumps({**entries, file: entry}, indent=1) + "\n").encode())
