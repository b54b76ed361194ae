"""The pictures of galleries as small files, each once for all runs."""

from __future__ import annotations

import io
import re
from hashlib import sha256

from capbench.data.datasets import is_published
from capbench.site.gallery.unseen import Unseen
from capbench.tools.caption import as_seen

SIDE = 320  # pixels of the longer side
FOLDER = "galleries/pictures"
NOTICE = "PICTURES.txt"
PHOTOGRAPHS = "photographs of {0}, which may not be passed on: keep this folder to yourself"
OWN = "pictures of your data set {0}: pass this folder on only where you may pass them on"


class Thumbnails:
    """Makes the file of a picture when it is first asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}  # by path below the site
        self._sizes: dict[str, tuple[int, int]] = {}

    def of(self, test: Unseen, image: int, view: str) -> tuple[str, tuple[int, int]]:
        """The path of a picture as a model of this view sees it, and its width and height in pixels."""
        crop = "-crop" if view in ("1C", "RC") else ""
        path = f"{FOLDER}/{file_name(test.whole.name)}/{image:05d}{crop}.webp"
        if path not in self.files:
            content, picture = io.BytesIO(), as_seen(test.part.images[image], view, SIDE)
            picture.save(content, "WEBP", quality=80)
            self.files[path], self._sizes[path] = content.getvalue(), picture.size
        return path, self._sizes[path]


def caution(test: Unseen) -> str:
    """What must be said of the pictures of a data set; empty for drawn scenes."""
    if test.whole.name == "scenes":
        return ""
    return (OWN if is_published(test.whole) is None else PHOTOGRAPHS).format(test.whole.name)


def file_name(text: str) -> str:
    """Text as a file's name, with a digest where letters of it had to go, so that two texts have two names.

    >>> file_name("scenes"), file_name("my pictures")
    ('scenes', 'my_pictures-583ce862')
    """
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)
    return name if name == text else f"{name}-{sha256(text.encode()).hexdigest()[:8]}"
