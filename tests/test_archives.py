"""Archives: hostile and damaged ones are refused, before anything is written where their directory tells it."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Literal

import pytest

from capbench.base import archives
from capbench.base.archives import unpacked
from capbench.base.errors import CapbenchError

JPEG = Random(0).randbytes(3000)


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def special(path: Path, name: str, mode: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", JPEG)
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    return path


def tarred(
    path: Path, *members: tuple[str, bytes, str], mode: Literal["w", "w:gz"] = "w:gz", link: str = "a.jpg"
) -> Path:
    """Members are (name, type, content), the type one of tarfile's."""
    with tarfile.open(path, mode) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = "a.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info, io.BytesIO(content.encode()))
    return path


def everything(name: str) -> str:
    return name


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_the_wanted_files_of_an_archive_are_there_while_they_are_used(tmp_path, suffix):
    content = {"top/train/a.jpg": JPEG, "top/b.txt": b"text", "__MACOSX/top/._a.jpg": b"x"}
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        zipped(path, content)
    else:
        source = tmp_path / "source"
        for name, data in content.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        with tarfile.open(path, "w:gz" if suffix == "tar.gz" else "w") as archive:
            archive.add(source, ".")  # as `tar -C source .` does: "./top/b.txt"
    place = {"top/train/a.jpg": "images/a.jpg", "top/b.txt": "b.txt"}.get
    (tmp_path / "here").mkdir()
    with unpacked(path, tmp_path / "here", place) as fresh:
        assert names(fresh) == ["b.txt", "images", "images/a.jpg"]
        assert (fresh / "images" / "a.jpg").read_bytes() == JPEG
        assert not stat.S_IMODE((fresh / "b.txt").stat().st_mode) & (stat.S_IXUSR | stat.S_ISUID)
    assert names(tmp_path / "here") == []


def encrypted(path: Path) -> Path:
    data = bytearray(zipped(path, {"a.jpg": JPEG}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def overlapping(path: Path) -> Path:
    """Many members in the directory that share one content, as in the bombs of one layer."""
    zipped(path, {"000000.jpg": bytes(5_000_000)})
    data = path.read_bytes()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[begin:end]
    directory = b"".join(entry.replace(b"000000", b"%06d" % number) for number in range(50))
    tail = bytearray(data[end:])
    tail[8:10] = tail[10:12] = (50).to_bytes(2, "little")
    tail[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(data[:begin] + directory + bytes(tail))
    return path


FILE, LINK = tarfile.REGTYPE, tarfile.SYMTYPE
HOSTILE = {
    "parent": (lambda p: zipped(p, {"a.jpg": JPEG, "../b.jpg": JPEG}), r"member '../b.jpg' leads out of its folder"),
    "parent within": (lambda p: zipped(p, {"a/../../b.jpg": JPEG}), "leads out of its folder"),
    "absolute": (lambda p: zipped(p, {"/etc/b.jpg": JPEG}), "'/etc/b.jpg' leads out"),
    "drive": (lambda p: zipped(p, {"C:b.jpg": JPEG}), "means something else on other systems"),
    "backslash": (lambda p: zipped(p, {"a\\..\\..\\b.jpg": JPEG}), "means something else on other systems"),
    "device name": (lambda p: zipped(p, {"a/NUL.jpg": JPEG}), "means something else"),
    "final dot": (lambda p: zipped(p, {"a./b.jpg": JPEG}), "means something else"),
    "empty part": (lambda p: zipped(p, {"a//b.jpg": JPEG}), "has an empty part"),
    "escape": (lambda p: zipped(p, {"a\x1b[31m.jpg": JPEG}), r"'a\\x1b\[31m.jpg' has a control character"),
    "long name": (lambda p: zipped(p, {"é" * 150: JPEG}), "has too long a name"),
    "case": (lambda p: zipped(p, {"a.jpg": JPEG, "A.JPG": JPEG}), "is there twice, or has the name 'a.jpg' on other"),
    "accent": (lambda p: zipped(p, {"\u00e9.jpg": JPEG, "e\u0301.jpg": JPEG}), "is there twice"),
    "file and folder": (lambda p: zipped(p, {"a": JPEG, "a/b.jpg": JPEG}), "a folder in the place of the file 'a'"),
    "symbolic link": (lambda p: special(p, "link", stat.S_IFLNK | 0o777), "'link' is a link"),
    "device": (lambda p: special(p, "disk", stat.S_IFBLK | 0o600), "'disk' is a device"),
    "encrypted": (encrypted, "is encrypted"),
    "compression": (lambda p: zipped(p, {"a.jpg": JPEG}, zipfile.ZIP_BZIP2), "unusual compression 12"),
    "overlapping bomb": (overlapping, "would grow to 250,000,000 bytes, more than 200 times"),
    "tar parent": (lambda p: tarred(p, ("a.jpg", FILE, "x"), ("../b.jpg", FILE, "x")), "'../b.jpg' leads out"),
    "tar absolute": (lambda p: tarred(p, ("/etc/b.jpg", FILE, "x")), "leads out"),
    "tar link": (lambda p: tarred(p, ("a.jpg", FILE, "x"), ("b", LINK, ""), ("b/c", FILE, "x")), "'b' is a link"),
    "tar hard link": (lambda p: tarred(p, ("a.jpg", FILE, "x"), ("b", tarfile.LNKTYPE, "")), "'b' is a link"),
    "tar pipe": (lambda p: tarred(p, ("pipe", tarfile.FIFOTYPE, "")), "'pipe' is a device or of another unusual kind"),
    "tar twice": (lambda p: tarred(p, ("a.jpg", FILE, "x"), ("a.jpg", FILE, "y")), "is there twice"),
}


@pytest.mark.fault("hostile archive")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_before_anything_is_written(kind, tmp_path):
    make, said = HOSTILE[kind]
    path, here = make(tmp_path / "bad.zip"), tmp_path / "here"
    here.mkdir()
    refused = pytest.raises(CapbenchError, match=rf"bad\.zip is refused: .*{said}")
    with refused, unpacked(path, here, everything):
        pytest.fail("it was unpacked")
    assert names(here) == []


def test_a_member_that_is_left_out_is_checked_too(tmp_path):
    path = zipped(tmp_path / "bad.zip", {"a.jpg": JPEG, "../b.jpg": JPEG})
    with pytest.raises(CapbenchError, match="leads out"), unpacked(path, tmp_path, {"a.jpg": "a.jpg"}.get):
        pytest.fail("it was unpacked")


def test_two_members_for_one_place_are_refused(tmp_path):
    path = zipped(tmp_path / "bad.zip", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    refused = pytest.raises(CapbenchError, match=r"'b/1.jpg' has the same place as 'a/1.jpg'")
    with refused, unpacked(path, tmp_path, lambda name: Path(name).name):
        pytest.fail("it was unpacked")


@pytest.mark.fault("archive that is a bomb")
def test_a_bomb_is_stopped_by_what_it_really_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb") as file:
        info = tarfile.TarInfo("a.jpg")
        info.size = 40 << 20
        file.write(info.tobuf())
        for _ in range(40):
            file.write(bytes(1 << 20))
    with pytest.raises(CapbenchError, match="would grow to"), unpacked(bomb, tmp_path, everything):
        pytest.fail("it was unpacked")
    long = tmp_path / "long.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    long.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    with (
        pytest.raises(CapbenchError, match=r"a header claims 8,589,934,592 bytes"),
        unpacked(long, tmp_path, everything),
    ):
        pytest.fail("it was unpacked")


def lying(path: Path) -> Path:
    """The directory says fewer bytes than there are."""
    data = bytearray(zipped(path, {"a.jpg": JPEG}).read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(mark) + at
        data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def cut(path: Path, at: int) -> Path:
    path.write_bytes(path.read_bytes()[:at])
    return path


PICTURES = tuple((f"{number}.jpg", FILE, "x" * 1000) for number in range(9))
DAMAGED = {
    "cut zip": lambda p: cut(zipped(p, {"a.jpg": JPEG, "b.jpg": JPEG}), 4000),
    "flipped zip": lambda p: flipped(zipped(p, {"a.jpg": JPEG})),
    "lying zip": lying,
    "cut gzip": lambda p: cut(tarred(p, *PICTURES), 150),
    "flipped gzip": lambda p: flipped(tarred(p, *PICTURES)),
    "cut tar": lambda p: cut(tarred(p, *PICTURES, mode="w"), 2000),
    "tar cut between members": lambda p: cut(tarred(p, *PICTURES, mode="w"), 3 * 1536),
    "tar with a damaged header": lambda p: p.write_bytes(
        tarred(p, *PICTURES, mode="w").read_bytes().replace(b"5.jpg", b"5.jpq")
    ),
    "empty": lambda p: p.write_bytes(b""),
    "page": lambda p: p.write_bytes(b"<html>" * 500),
}


@pytest.mark.fault("damaged archive")
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_archive_is_named_and_leaves_nothing(kind, tmp_path):
    path, here = tmp_path / "a.bin", tmp_path / "here"
    DAMAGED[kind](path)
    here.mkdir()
    named = pytest.raises(CapbenchError, match=r"a\.bin is (truncated|damaged|refused)")
    with named, unpacked(path, here, everything):
        pytest.fail("it was unpacked")
    assert names(here) == []


@pytest.mark.fault("kill -9 while unpacking")
def test_what_a_killed_process_had_unpacked_is_replaced(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.jpg": JPEG})
    (tmp_path / ".a.zip.unpacked").mkdir()
    (tmp_path / ".a.zip.unpacked" / "a.jpg").write_bytes(b"half")
    with unpacked(path, tmp_path, everything) as fresh:
        assert (fresh / "a.jpg").read_bytes() == JPEG


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"a.jpg": JPEG})
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=99))
    with pytest.raises(CapbenchError, match=r"unpacking a\.zip needs 0\.00 GB"), unpacked(path, tmp_path, everything):
        pytest.fail("it was unpacked")
    assert names(tmp_path) == ["a.zip"]
