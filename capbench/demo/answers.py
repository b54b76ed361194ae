"""What the three tabs answer: each takes what a visitor chose and returns HTML."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, ParamSpec

from capbench.base.errors import CapbenchError
from capbench.base.files import printable
from capbench.base.progress import Report
from capbench.demo import markup
from capbench.demo.models import ALIGNER, CAPTIONER, EMBEDDING, Models
from capbench.leaderboard.markdown import plain
from capbench.tools.align import align
from capbench.tools.caption import beam_of, captions_of, samples_of
from capbench.tools.pictures import look_at
from capbench.tools.search import captions_of_image, images_of_sentence

Given = Mapping[str, Any] | None  # a picture from the page: its `name`, and its `data` as a data URL
Number = int | float  # as JSON has them: a whole one is an int
P = ParamSpec("P")
LARGEST = 64_000_000  # bytes of a picture file
MOST = 50  # captions, hypotheses and results


def said(answer: Callable[P, str]) -> Callable[P, str]:
    """The answer, or the refusal as HTML."""

    @wraps(answer)
    def saying(*words: P.args, **named: P.kwargs) -> str:
        try:
            return answer(*words, **named)
        except CapbenchError as error:
            return markup.refusal(str(error))

    return saying


class Answers:
    """The answers of the finished runs under a folder, one at a time."""

    def __init__(self, models: Models, scratch: Path) -> None:
        self.models = models
        self.scratch = scratch  # the folder of pictures while they are looked at
        self._turn = Lock()

    @said
    def caption(
        self, run: str | None, given: Given, method: str, beam: str, temperature: Number, seed: Number | None,
        n_best: Number,
    ) -> str:  # fmt: skip
        """Captions of a picture with their log-probabilities, and where the model looked for each word.

        `method` is "Beam search" or "Sampling"; with an empty `beam` the width is that of the run's own captions.
        """
        count = _whole(n_best, "the number of captions", 1)
        width = _whole(_number(beam, "the width of the beam"), "the width of the beam", 1) if beam.strip() else None
        number = _whole(seed or 0, "the seed", 0, 2**32 - 1)
        with self._turn, uploaded(given, self.scratch) as (picture, store):
            trained = self.models.get(run, CAPTIONER).trained
            seen = look_at(trained, picture, store)
            if method == "Sampling":
                (captioned,) = samples_of(trained, seen, float(temperature), count, number)
                how = f"Drawn at temperature {temperature:g}, seed {number}"
            else:
                width = max(beam_of(trained), count) if width is None else width
                (captioned,) = captions_of(trained, seen, width, count)
                how = f"Beam search, width {width}"
            return markup.captioned(trained, captioned, how)

    @said
    def search(self, run: str | None, sentence: str, top: Number, progress: Report) -> str:
        """The pictures that a sentence describes."""
        count = _whole(top, "the number of results", 1)
        with self._turn:
            _refuse_empty(sentence, "sentence")
            model = self.models.get(run, EMBEDDING)
            model.trained.read(sentence)  # an unknown sentence is refused before any picture is encoded
            ranked = images_of_sentence(model.trained, sentence, model.pictures(progress), count)
            return markup.found_pictures(model.trained, ranked, model.searched)

    @said
    def describe(self, run: str | None, given: Given, top: Number) -> str:
        """The captions of the test split that fit a picture."""
        count = _whole(top, "the number of results", 1)
        with self._turn, uploaded(given, self.scratch) as (picture, store):
            model = self.models.get(run, EMBEDDING)
            seen = look_at(model.trained, picture, store)
            ranked = captions_of_image(model.trained, seen, model.captions, count)
            return markup.found_captions(model.trained, ranked, f"the test captions of {model.trained.job.dataset}")

    @said
    def align(self, run: str | None, given: Given, caption: str, affinity: str) -> str:
        """The region of a picture that each word of a caption describes; an empty `affinity` is the recipe's."""
        beta = _number(affinity, "the affinity") if affinity.strip() else None
        if beta is not None and not 0 <= beta < math.inf:
            raise CapbenchError(f"the affinity is {beta:g}; give 0 or more")
        with self._turn, uploaded(given, self.scratch) as (picture, store):
            _refuse_empty(caption, "caption")
            trained = self.models.get(run, ALIGNER).trained
            return markup.aligned(trained, align(trained, picture, caption, beta, store))


@contextmanager
def uploaded(given: Given, scratch: Path) -> Iterator[tuple[Path, Path]]:
    """The file of a picture from the page, and a folder for its features; both are under `scratch`, and then gone.

    Raises CapbenchError without a picture, for one of more than `LARGEST` bytes, and puts the picture's own name into
    the refusals of those who read it.
    """
    if not given or not given.get("data"):
        raise CapbenchError("there is no picture yet: drop one, or choose a file")
    name = plain(given.get("name") or "picture", 120)
    try:
        content = base64.b64decode(str(given["data"]).partition(",")[2], validate=True)
    except binascii.Error as error:
        raise CapbenchError(f"the image {name} did not arrive whole ({error}); drop it again") from error
    if len(content) > LARGEST:
        raise CapbenchError(f"the image {name} has more than {LARGEST // 10**6} MB; shrink it")
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            yield path, Path(folder)
        except CapbenchError as error:
            raise CapbenchError(str(error).replace(printable(path), name)) from error


def _refuse_empty(text: str, what: str) -> None:
    if not text.strip():
        raise CapbenchError(f"there is no {what} yet: type one")


def _number(typed: str, what: str) -> float:
    try:
        return float(typed)
    except ValueError:
        raise CapbenchError(f"{what} is {typed!r}; give a number, or nothing for the run's own") from None


def _whole(value: Number, what: str, least: int, most: int = MOST) -> int:
    if not least <= value <= most or value != int(value):
        raise CapbenchError(f"{what} is {value:g}; give a whole number from {least} to {most:,}")
    return int(value)
