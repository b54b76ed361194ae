"""Broken files of every kind: a mutator of bytes, and the parsers of files from outside that meet what it makes.

A parser returns or raises CapbenchError, within seconds and a bounded memory; it writes no file and starts no program.
`python -m tests.fuzzing --minutes 10` is `nox -s fuzz`: it counts executions, and keeps the cases that break this.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.evidence.reliability import Row, save_reliability
from tests.fuzzed import PARSERS, Parser

SECONDS, MEMORY = 10.0, 2**31  # that reading one small file may take
SMALLEST = 5.0  # seconds for making a case smaller
TOKENS = (
    *(b"null", b"true", b"NaN", b"-Infinity", b"-1", b"0", b"1e999", b"9" * 30, b"9" * 5000, b"1.5", b"[]", b"{}"),
    *(b'""', b'"', b"[", b"{", b"[" * 2000, b"\\ud800", b"\\u0000", b"\\u202e", b"\x00", b"\xff", b"\xef\xbb\xbf"),
    *(
        b"\xed\xa0\x80",
        b"../",
        b"/etc/passwd",
        b"\r",
        b"\n",
        b"\t",
        b",",
        b" ",
        b"\xe2\x80\xa8",
        "\u0130\U0001f600".encode(),
    ),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY\x01\x00", b"'|O'", b"'<U99999999'", b"(99999999999,)"),
    *(b"\xff\xd8", b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff", b"IHDR\xff\xff\xff\xff", b"cos\nsystem\n", b"\x80\x02"),
    *(b"F64", b'"data_offsets":[0,99999999999]', b'"shape":[99999999,99999999]', b'"shape":[0]'),
    *(n.to_bytes(size, "little", signed=True) for size in (2, 4, 8) for n in (-1, 0, 2 ** (8 * size - 1) - 1)),
)
_FORBIDDEN = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.system", "os.exec", "os.posix_spawn",
              "subprocess.Popen", "socket.connect", "shutil.rmtree", "os.truncate", "os.chmod")  # fmt: skip


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """The content with one to four changes; of an archive often one of its members has them."""
    if content[:2] == b"PK" and random.random() < 0.6:
        return _in_archive(content, random)
    for _ in range(random.integers(1, 5)):
        content = _CHANGES[random.integers(len(_CHANGES))](content, random)
    return content


def _span(content: bytes, random: np.random.Generator) -> tuple[int, int]:
    start = int(random.integers(len(content) + 1))
    return start, min(len(content), start + int(2 ** random.uniform(0, 9)))


def _flip(content: bytes, random: np.random.Generator) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[random.integers(len(content))] ^= 1 << random.integers(8)
    return bytes(changed)


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(len(content) + 1)]


def _delete(content: bytes, random: np.random.Generator) -> bytes:
    start, end = _span(content, random)
    return content[:start] + content[end:]


def _repeat(content: bytes, random: np.random.Generator) -> bytes:
    start, end = _span(content, random)
    return content[:end] + content[start:end] * int(random.integers(1, 20)) + content[end:]


def _splice(content: bytes, random: np.random.Generator) -> bytes:
    (start, end), (place, stop) = _span(content, random), _span(content, random)
    return content[:place] + content[start:end] + content[stop:]


def _insert(content: bytes, random: np.random.Generator) -> bytes:
    start, end = _span(content, random)
    return content[:start] + TOKENS[random.integers(len(TOKENS))] + content[end if random.random() < 0.5 else start :]


_CHANGES = (_flip, _cut, _delete, _repeat, _splice, _insert, _insert)


def _in_archive(content: bytes, random: np.random.Generator) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as other:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
        chosen = list(members)[random.integers(len(members))]
        for name, inside in members.items():
            other.writestr(name, mutated(inside, random) if name == chosen else inside)
    return made.getvalue()


@dataclass
class Tally:
    """What became of the files that one parser read."""

    accepted: int = 0
    refused: int = 0
    broken: dict[bytes, str] = field(default_factory=dict)  # what broke the contract, and how


class Bench:
    """One parser with its valid files in a folder of its own."""

    def __init__(self, parser: Parser, folder: Path) -> None:
        self.parser, self.folder, self.tally = parser, folder, Tally()
        folder.mkdir(parents=True)
        self.file = parser.make(folder)
        self.content = self.file.read_bytes()
        parser.read(self.file)  # what it reserves for all time, and the modules that it imports, are not the files'
        if fault := self.fault(self.content):
            raise AssertionError(f"{parser.name}: the valid file is not read: {fault}")
        if self.tally.refused:
            raise AssertionError(f"{parser.name}: the valid file is refused")
        self.tally = Tally()

    def try_one(self, random: np.random.Generator) -> None:
        """Mutate the file, read it, and keep what breaks the contract."""
        content = mutated(self.content, random)
        if (fault := self.fault(content)) and fault not in self.tally.broken.values():
            self.tally.broken[self._smaller(content, fault)] = fault

    def fault(self, content: bytes) -> str | None:
        """How reading the content breaks the contract; None if it does not."""
        self.file.write_bytes(content)
        before, started = self._seen(), time.monotonic()
        try:
            with _watched() as written, warnings.catch_warnings(action="ignore"), _limited_memory():
                self.parser.read(self.file)
            self.tally.accepted += 1
        except CapbenchError:
            self.tally.refused += 1
        except Exception as error:  # the contract knows no other
            return f"{type(error).__name__} in {_line_of(error)}"
        if written:
            return f"it did {written[0]}"
        if self._seen() != before:
            return "it changed its folder"
        return "it took too long" if time.monotonic() - started > SECONDS else None

    def _smaller(self, content: bytes, fault: str) -> bytes:
        """A part of the content that has the same fault."""
        end, step = time.monotonic() + SMALLEST, max(1, len(content) // 2)
        while step and time.monotonic() < end:
            for start in range(0, len(content), step):
                shorter = content[:start] + content[start + step :]
                if self.fault(shorter) == fault:
                    content = shorter
                    break
                if time.monotonic() > end:
                    break
            else:
                step //= 2
        return content

    def _seen(self) -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in self.folder.rglob("*"))


def _line_of(error: BaseException) -> str:
    """The last line of the project's code that the error passed through."""
    place, trace = "its caller", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/capbench/" in file or "/reproductions/" in file:
            place = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


_written: list[list[str]] = []  # of the one reading that is watched


def _hear(event: str, words: tuple[object, ...]) -> None:
    if not _written:
        return
    opened_to_write = event == "open" and isinstance(words[2], int) and words[2] & 3 and words[0] != "/dev/null"
    if opened_to_write or event in _FORBIDDEN:
        _written[-1].append(f"{event} {words[0]!r}")


@contextmanager
def _watched() -> Iterator[list[str]]:
    """What is written or started within it."""
    if not hasattr(sys, "_fuzzing_hears"):
        sys.addaudithook(_hear)
        sys._fuzzing_hears = True  # type: ignore[attr-defined]
    sys.dont_write_bytecode = True  # of a module that only a refusal imports
    _written.append([])
    try:
        yield _written[-1]
    finally:
        _written.pop()


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Within it this process may have MEMORY more bytes than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(benches: list[Bench], minutes: float, seed: int) -> list[Row]:
    """Give every parser an equal share of the time; the rows of a record."""
    random, share = np.random.default_rng(seed), 60 * minutes / len(benches)
    for bench in benches:
        end = time.monotonic() + share
        while time.monotonic() < end:
            bench.try_one(random)
        print(f"{bench.parser.name}: {bench.tally.accepted + bench.tally.refused:,}", flush=True)
        for fault in bench.tally.broken.values():
            print(f"  {fault}", flush=True)
    return [
        {
            "parser": bench.parser.name,
            "executions": bench.tally.accepted + bench.tally.refused,
            "refused": bench.tally.refused,
            "read": bench.tally.accepted,
            "contract broken": len(bench.tally.broken),
        }
        for bench in benches
    ]


def main() -> None:
    words = argparse.ArgumentParser(description="Give every parser broken files.")
    words.add_argument("--minutes", type=float, default=10.0, help="how long, all parsers together")
    words.add_argument("--seed", type=int, default=int(time.time()), help="of the mutations; the time by default")
    words.add_argument("--parser", action="append", help="only this one; may be repeated")
    words.add_argument("--cases", type=Path, default=Path("fuzz-cases"), help="the folder of what breaks the contract")
    words.add_argument("--record", type=Path, help="write the counts to this file")
    given, started = words.parse_args(), datetime.now(UTC)
    folder = Path(tempfile.mkdtemp())
    try:
        chosen = [parser for parser in PARSERS if given.parser is None or parser.name in given.parser]
        benches = [Bench(parser, folder / str(number)) for number, parser in enumerate(chosen)]
        rows = fuzz(benches, given.minutes, given.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    broken = [(bench, content) for bench in benches for content in bench.tally.broken]
    for bench, content in broken:
        case = given.cases / bench.parser.name.replace(" ", "-") / hashlib.sha256(content).hexdigest()[:12]
        case.parent.mkdir(parents=True, exist_ok=True)
        case.write_bytes(content)
    print(f"{sum(int(row['executions']) for row in rows):,} executions, {len(broken)} break the contract")
    if given.record:
        command = f"python -m tests.fuzzing --minutes {given.minutes:g} --seed {given.seed}"
        save_reliability({"fuzzing": rows}, given.record, command, started)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
