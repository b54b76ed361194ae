"""Archives of others (zip, tar, tar.gz), unpacked with distrust: all members are looked at before any is written."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from capbench.base.errors import CapbenchError
from capbench.base.files import check_space
from capbench.base.progress import byte_bar

MEMBERS = 1_000_000  # at most; COCO's largest has 82,784
RATIO = 200  # unpacked bytes for each byte of the archive, at most; text has five, photographs one
SMALL = 64 << 20  # unpacked bytes that are no bomb, whatever the ratio
CHUNK = 1 << 20  # bytes read at a time
LARGEST_READ = 16 << 20  # bytes that tarfile may ask for at once, as for a long name
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of Windows' devices
FILE, FOLDER = "a file", "a folder"


@dataclass(frozen=True)
class _Member:
    """What an archive says of one of its members."""

    name: str  # without a leading "./" and a folder's last "/"
    kind: str  # FILE, FOLDER, or what it is instead
    size: int  # bytes when unpacked


_Entry = tuple[_Member, Callable[[], IO[bytes] | None]]


@contextmanager
def unpacked(archive: Path, folder: Path, place: Callable[[str], str | None]) -> Iterator[Path]:
    """A new folder inside `folder` with the files to whose names `place` gives a path; it is removed at the end.

    The caller moves what it needs, so that nothing appears half unpacked. `place` returns None for a file that is left
    out. Every member is checked, also those left out: an absolute path, `..`, a name of another system, a link, a
    device, two names that differ only in case, more than `RATIO` bytes unpacked for one, and encryption are refused
    before anything is written. Sizes and checksums are checked again while writing. Permissions are not taken over.

    Raises CapbenchError naming archive and member, and for a full disk.
    """
    fresh = folder / f".{archive.name}.unpacked"
    with _damage(archive), _entries(archive) as entries:
        places = _checked(archive, [member for member, _ in entries], place)
    total = sum(size for _, size in places.values())
    check_space(folder, total, f"unpacking {archive.name}")
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
    try:
        with _damage(archive), _entries(archive) as entries, byte_bar(f"unpacking {archive.name}", total) as advance:
            fresh.mkdir()
            for member, opened in entries:
                if member.name in places and member.kind == FILE:
                    _write(archive, member, opened, fresh / places[member.name][0], advance)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write(
    archive: Path,
    member: _Member,
    opened: Callable[[], IO[bytes] | None],
    path: Path,
    advance: Callable[[int], None],
) -> None:
    source, written = opened(), 0
    if source is None:
        raise _refused(archive, member.name, "is no file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except OSError as error:
        raise CapbenchError(f"cannot write {path}: {error.strerror or error}") from error
    with source, file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            try:
                file.write(chunk)
            except OSError as error:
                raise CapbenchError(f"cannot write {path}: {error.strerror or error}") from error
            advance(len(chunk))
    if written != member.size:
        raise _refused(archive, member.name, f"does not have the {member.size:,} bytes that the archive says")


def _checked(
    archive: Path, members: Sequence[_Member], place: Callable[[str], str | None]
) -> dict[str, tuple[str, int]]:
    """The path and the size of each file to unpack, by its name. Raises CapbenchError for a member to refuse."""
    if len(members) > MEMBERS:
        raise CapbenchError(f"{archive} is refused: it has {len(members):,} members, more than {MEMBERS:,}")
    files: dict[str, str] = {}
    for member in members:
        if fault := _fault_of_name(member.name):
            raise _refused(archive, member.name, fault)
        if member.kind not in (FILE, FOLDER):
            raise _refused(archive, member.name, f"is {member.kind}")
        if member.kind == FILE:
            if other := files.get(_folded(member.name)):
                raise _refused(archive, member.name, f"is there twice, or has the name {other!r} on other systems")
            files[_folded(member.name)] = member.name
    for member in members:
        inside = [_folded(str(above)) for above in Path(member.name).parents]
        inside += [_folded(member.name)] if member.kind == FOLDER else []
        if above := next((files[name] for name in inside if name in files), None):
            raise _refused(archive, member.name, f"needs a folder in the place of the file {above!r}")
    limit = max(SMALL, RATIO * archive.stat().st_size)
    if (total := sum(member.size for member in members)) > limit:
        raise CapbenchError(f"{archive} is refused: it would grow to {total:,} bytes, more than {RATIO} times its size")
    sizes = {member.name: member.size for member in members if member.kind == FILE}
    places = {name: (path, size) for name, size in sizes.items() if (path := place(name)) is not None}
    taken: dict[str, str] = {}
    for name, (path, _) in places.items():
        if other := taken.get(_folded(path)):
            raise _refused(archive, name, f"has the same place as {other!r}")
        taken[_folded(path)] = name
    return places


def _fault_of_name(name: str) -> str:
    """What is wrong with the name of a member; empty if nothing is.

    >>> _fault_of_name("train2014/1.jpg"), _fault_of_name("../1.jpg")
    ('', 'leads out of its folder')
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of its folder"
    if any(not part or part == "." for part in parts):
        return "has an empty part in its name"
    if set(name) & set('\\:*?"<>|') or any(part[-1] in ". " or RESERVED.fullmatch(part) for part in parts):
        return "has a name that means something else on other systems"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "has a control character in its name"
    return "has too long a name" if max(len(part.encode()) for part in parts) > 255 else ""


def _folded(name: str) -> str:
    """One key for names that some file systems hold for the same: other case, other composition of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _refused(archive: Path, name: str, fault: str) -> CapbenchError:
    return CapbenchError(f"{archive} is refused: its member {name!r} {fault}; get the archive from its publisher")


@contextmanager
def _entries(archive: Path) -> Iterator[Iterable[_Entry]]:
    """The members of an archive, each with the function that opens it."""
    with ExitStack() as stack:
        if zipfile.is_zipfile(archive):
            zipped = stack.enter_context(zipfile.ZipFile(archive))
            yield [(_of_zip(archive, info), partial(zipped.open, info)) for info in zipped.infolist()]
            return
        plain: io.BufferedIOBase = stack.enter_context(archive.open("rb"))
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        if packed:
            plain = stack.enter_context(gzip.GzipFile(fileobj=plain))
        bounded = _Bounded(plain, max(SMALL, RATIO * archive.stat().st_size))
        tar = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:"))
        yield _tar_entries(tar, bounded)


def _tar_entries(tar: tarfile.TarFile, stream: _Bounded) -> Iterator[_Entry]:
    """They are only read, never extracted by tarfile, whose filters mend names that are refused here."""
    for info in tar:
        if info.name.strip("./") or not info.isdir():  # "./" is the folder that was packed
            yield _of_tar(info), partial(tar.extractfile, info)
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
        raise tarfile.ReadError(f"no end of the archive, and no member, at byte {tar.offset:,}")


def _of_zip(archive: Path, info: zipfile.ZipInfo) -> _Member:
    name = info.orig_filename  # not cut at a null byte
    if info.flag_bits & 1:
        raise _refused(archive, name, "is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(archive, name, f"has the unusual compression {info.compress_type}")
    mode = info.external_attr >> 16
    kind = FOLDER if name.endswith("/") else FILE
    if info.create_system == 3 and stat.S_IFMT(mode) not in (0, stat.S_IFDIR if kind == FOLDER else stat.S_IFREG):
        kind = "a link" if stat.S_ISLNK(mode) else "a device or of another unusual kind"
    return _Member(_plain_name(name), kind, info.file_size)


def _of_tar(info: tarfile.TarInfo) -> _Member:
    kind = FILE if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.sparse is None else ""
    if info.isdir():
        kind = FOLDER
    elif info.issym() or info.islnk():
        kind = "a link"
    return _Member(_plain_name(info.name), kind or "a device or of another unusual kind", info.size)


def _plain_name(name: str) -> str:
    return name.removeprefix("./").removesuffix("/")


class _Bounded:
    """A stream that ends with an error where a bomb would go on, and hands out no more than that at once."""

    def __init__(self, stream: io.BufferedIOBase, limit: int) -> None:
        self.stream = stream
        self.limit = limit

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_READ:
            raise _BombError(f"a header claims {size:,} bytes")
        self._check(self.stream.tell() + max(size, 0))
        return self.stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        self._check(position)
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if position > self.limit + 2 * tarfile.RECORDSIZE:
            raise _BombError(f"it would grow to more than {RATIO} times its size")


class _BombError(Exception):
    """An archive that unpacks to far more than its size."""


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    """Turns the errors of the libraries into CapbenchError."""
    try:
        yield
    except _BombError as error:
        raise CapbenchError(f"{archive} is refused: {error}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise CapbenchError(f"{archive} is truncated, damaged or no archive ({reason}); get it again") from error
    except (gzip.BadGzipFile, NotImplementedError, RecursionError) as error:
        raise CapbenchError(f"{archive} is damaged or of an unusual kind ({error}); get it again") from error
    except OSError as error:
        raise CapbenchError(f"cannot read or unpack {archive}: {error.strerror or error}") from error
