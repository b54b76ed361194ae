"""Files from the network: streamed into a `.part` file, resumed, verified, and renamed only when they are right."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx2

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write, check_space, locked
from capbench.base.progress import byte_bar
from capbench.base.signals import stop_at_once

TRIES = 5  # in a row, of which none brings PROGRESS bytes
PROGRESS = 1 << 20
PAUSE = 1.0  # seconds before the second try, doubled with each further one
LONGEST_PAUSE = 60.0
TIMEOUT = 30.0  # seconds without an answer or without a byte
PATIENCE = 60.0  # seconds in which fewer than SLOWEST * PATIENCE bytes count as a broken connection
SLOWEST = 1000.0  # bytes a second
REDIRECTS = 5
LOCK_SECONDS = 24 * 3600.0  # another process may be downloading the same file
CHUNK = 1 << 20  # bytes read at a time
PAGE = re.compile(rb"\s*<(!doctype html|html|head|body|\?xml)", re.IGNORECASE)
STARTS = {".zip": b"PK", ".gz": b"\x1f\x8b"}  # of files of these kinds


@dataclass(frozen=True)
class Remote:
    """A file that others publish."""

    addresses: tuple[str, ...]  # its publisher's first, then mirrors
    sha256: str  # the whole of it, or how it begins
    size: int = 0  # bytes; 0 if it is not published


def download(remote: Remote, path: Path) -> Path:
    """`remote` as the file `path`, which appears only when its length and its SHA-256 are right; returns `path`.

    What has arrived stays in `<path>.part` until then: a broken transfer, or a later call, goes on from there if the
    server still has the same file (Range with If-Range). After `TRIES` failures in a row, or a wrong file, the next
    address is tried. Of two processes the second waits for the first. Proxies are those of the environment.

    Raises CapbenchError that names each address with its fault, or a full disk, or HF_HUB_OFFLINE, which forbids
    downloads; StoppedError after a signal: the next call continues.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CapbenchError(f"{path.name} is not at hand, and nothing is downloaded while HF_HUB_OFFLINE is set")
    faults = []
    with _writing(path), stop_at_once(), locked(path.with_name(f".{path.name}.lock"), LOCK_SECONDS):
        if path.is_file():  # another process has fetched it meanwhile
            return path
        for address in remote.addresses:
            try:
                _fetch(address, remote, _Part(path))
                return path
            except _FaultError as error:
                faults.append(f"cannot download {address}: {error}")
    begins = "is" if len(remote.sha256) == 64 else "begins with"
    raise CapbenchError(
        f"{'; '.join(faults)}. Any mirror's {path.name} whose SHA-256 {begins} {remote.sha256} is as good"
    )


class _FaultError(Exception):
    """What is wrong with an answer; after a `final` one, this address is not tried again."""

    def __init__(self, fault: str, final: bool = False, pause: float = 0.0) -> None:
        super().__init__(fault)
        self.final = final
        self.pause = pause  # seconds that the server asks for


class _Part:
    """What has arrived of a file, and by what the server knows it again."""

    def __init__(self, path: Path) -> None:
        self.goal = path
        self.path = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")
        self.pieced = self.length > 0  # whether it is of more than one answer

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str:
        """The strong ETag or the date under which the server gave the bytes; empty if they cannot be continued."""
        try:
            return str(json.loads(self.note.read_text(encoding="utf-8"))["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def begin(self, validator: str) -> None:
        self.discard()
        self.pieced = False
        atomic_write(self.note, json.dumps({"validator": validator}).encode())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        with self.path.open("rb+") as file:  # Windows flushes none that is only read
            os.fsync(file.fileno())
        os.replace(self.path, self.goal)
        self.note.unlink(missing_ok=True)


def _fetch(address: str, remote: Remote, part: _Part) -> None:
    """Bring `part` to its end, however often the connection breaks, and give it its name if it is `remote`."""
    tries, pause, again = TRIES, PAUSE, True
    with _client() as client:
        while True:
            before = part.length
            try:
                whole = remote.size and part.length == remote.size  # stopped before it got its name
                kind = "a part" if whole else _receive(client, address, remote, part)
                if not (fault := _differs(part, remote, kind)):
                    part.finish()
                    return
                part.discard()
                if not (part.pieced and again):
                    raise _FaultError(fault, final=True)
                again = False  # pieces of two files, perhaps: once from the beginning
            except _FaultError as error:
                gained = part.length - before >= PROGRESS
                tries, pause = (TRIES, PAUSE) if gained else (tries - 1, pause)
                if error.final or not tries:
                    raise
                time.sleep(min(max(pause, error.pause), LONGEST_PAUSE))
                pause *= 2


def _client() -> httpx2.Client:
    headers = {"Accept-Encoding": "identity", "User-Agent": "capbench"}
    return httpx2.Client(timeout=TIMEOUT, headers=headers, verify=_certificates())


_certificates = cache(httpx2.create_ssl_context)  # the system's, read once


def _receive(client: httpx2.Client, address: str, remote: Remote, part: _Part) -> str:
    """Append what one answer gives to `part`; returns its content type. Raises _FaultError unless all of it comes."""
    headers = {}
    if part.length and (validator := part.validator):
        headers = {"Range": f"bytes={part.length}-", "If-Range": validator}
    with _network_errors(), _answer(client, address, headers) as answer:
        offset, total = _position(answer, part, bool(headers))
        if remote.size and total and total != remote.size:
            raise _FaultError(f"the server offers {total:,} bytes, and {remote.size:,} are published", final=True)
        if not offset:
            part.begin(_validator(answer))
        else:
            part.pieced = True
        expected = remote.size or total
        check_space(part.path.parent, expected - offset, part.goal.name)
        with byte_bar(part.goal.name, expected or None, offset) as advance, part.path.open("ab") as file:
            for chunk in _chunks(answer):
                if not offset and not file.tell():
                    _refuse_page(answer, chunk, part.goal)
                file.write(chunk)
                advance(len(chunk))
                if remote.size and file.tell() > remote.size:
                    raise _FaultError(f"the server sends more than the {remote.size:,} bytes published", final=True)
        if part.length < expected:
            raise _FaultError(f"{part.length:,} of {expected:,} bytes came")
        return _kind(answer)


@contextmanager
def _answer(client: httpx2.Client, address: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    """The answer to a request, redirects followed: never from https to http, and to no other scheme."""
    url = httpx2.URL(address)
    for _ in range(REDIRECTS + 1):
        answer = client.send(client.build_request("GET", url, headers=headers), stream=True)
        try:
            if not answer.has_redirect_location:
                yield answer
                return
            following = url.join(answer.headers["Location"])
            if following.scheme not in ("https", url.scheme):
                place = answer.headers["Location"][:200]
                raise _FaultError(f"the server redirects to {place}, which is refused", final=True)
            url = following
        finally:
            answer.close()
    raise _FaultError(f"the server redirects more than {REDIRECTS} times, at last to {url}", final=True)


def _position(answer: httpx2.Response, part: _Part, continuing: bool) -> tuple[int, int]:
    """Where in the file the answer begins, and the file's length (0 if it is not said)."""
    if answer.status_code == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() and len(length) < 19 else 0
    if continuing and answer.status_code in (206, 416):
        match = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", answer.headers.get("Content-Range", ""))
        if answer.status_code == 206 and match and int(match[1]) == part.length:
            return part.length, int(match[2])
        part.discard()
        raise _FaultError(f"the server does not continue at byte {part.length:,}")
    passing = answer.status_code >= 500 or answer.status_code in (408, 425, 429)
    wait = answer.headers.get("Retry-After", "")
    raise _FaultError(
        f"the server answers {answer.status_code} {answer.reason_phrase}",
        final=not passing,
        pause=float(wait) if wait.isdecimal() else 0.0,
    )


def _validator(answer: httpx2.Response) -> str:
    """What If-Range takes: a strong ETag, else the date."""
    tag = str(answer.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(answer.headers.get("Last-Modified", ""))


def _kind(answer: httpx2.Response) -> str:
    return str(answer.headers.get("Content-Type", "of no type")).partition(";")[0]


def _refuse_page(answer: httpx2.Response, first: bytes, goal: Path) -> None:
    """Raises _FaultError for a page, such as that of a login, in the place of a file."""
    start = STARTS.get(goal.suffix, b"")
    if PAGE.match(first) or not first.startswith(start[: len(first)]) or _kind(answer) == "text/html":
        raise _FaultError(f"the answer is {_kind(answer)} that begins with {first[:20]!r}, and no file", final=True)


def _chunks(answer: httpx2.Response) -> Iterator[bytes]:
    """The bytes as they come. Raises _FaultError where they come too slowly for too long."""
    began, came = time.monotonic(), 0
    for chunk in answer.iter_raw():
        yield chunk
        came += len(chunk)
        if (seconds := time.monotonic() - began) > PATIENCE:
            if came < SLOWEST * PATIENCE:
                raise _FaultError(f"the server sends {came / seconds:,.0f} bytes a second")
            began, came = time.monotonic(), 0


def _differs(part: _Part, remote: Remote, kind: str) -> str:
    """How the file differs from the published one; empty if it does not."""
    digest = hashlib.sha256()
    with byte_bar(f"checking {part.goal.name}", part.length) as advance, part.path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    actual = digest.hexdigest()
    if actual.startswith(remote.sha256):
        return ""
    return (
        f"the answer is {kind}, {part.length:,} bytes with SHA-256 {actual[:16]}... instead of {remote.sha256[:16]}..."
    )


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turns the network's errors into _FaultError."""
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise _FaultError(f"no address to download from ({error})", final=True) from error
    except httpx2.HTTPError as error:
        raise _FaultError(f"no whole answer ({str(error) or type(error).__name__})") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the disk's errors into CapbenchError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CapbenchError(
            f"cannot write {path}.part: {error.strerror or error}; what has come is kept, and the same command goes on"
        ) from error
