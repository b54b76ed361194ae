"""The finished runs that a page offers: listed by kind, loaded when they are first asked, the last one kept."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError
from capbench.base.progress import Report
from capbench.captioners.experiment import Captioner
from capbench.data.captions import Split
from capbench.data.datasets import load_dataset
from capbench.data.images import ImageFolder
from capbench.data.scenes.export import export_scenes
from capbench.leaderboard.markdown import plain
from capbench.runs.job import Job
from capbench.runs.loaded import Trained, Usable, load_run, usable_runs
from capbench.tools.align import Aligner
from capbench.tools.pictures import Seen, look_at, look_at_files
from capbench.tools.search import Candidates, JointEmbedding, candidates


class Kind(NamedTuple):
    """What a model can do."""

    protocol: type
    name: str
    command: str  # makes one


CAPTIONER = Kind(Captioner, "captioner", "capbench run show-attend-tell")
EMBEDDING = Kind(JointEmbedding, "joint embedding of images and captions", "capbench run vsepp")
ALIGNER = Kind(Aligner, "alignment model", "capbench run karpathy")


class Loaded:
    """A trained model, and what it has embedded so far."""

    def __init__(self, trained: Trained, images: Path | None) -> None:
        self.trained = trained
        self.images = images
        self._seen: Seen | None = None

    @cached_property
    def split(self) -> Split:
        """The test split of its data. Raises CapbenchError where the data are not at hand."""
        return load_dataset(self.trained.job.dataset).split("test")

    @property
    def searched(self) -> str:
        """Which pictures a search goes through, in words."""
        return f"the folder {plain(self.images)}" if self.images else f"the test images of {self.trained.job.dataset}"

    def pictures(self, progress: Report) -> Seen:
        """The pictures of the folder, or else of the test split; their features go to the feature store.

        Raises CapbenchError for a folder without a picture, and for data that are not at hand.
        """
        if self._seen is None:
            if self.images:
                self._seen = look_at(self.trained, self.images, progress=progress)
            else:
                self._seen = look_at_files(self.trained, _files(self.split), progress=progress)
        return self._seen

    @cached_property
    def captions(self) -> Candidates:
        """The captions of the test split. Raises CapbenchError where the data are not at hand."""
        return candidates(self.trained, self.split.captions, f"the test split of {self.trained.job.dataset}")


def _files(split: Split) -> list[Path]:
    """The picture files of a split; those of the scenes are drawn into the cache folder."""
    images, names = split.dataset.images, [split.dataset.image_names[i] for i in split.image_index]
    if isinstance(images, ImageFolder):
        return [images.root / name for name in names]
    folder = cache_folder() / "scenes" / images.fingerprint
    if not (folder / "dataset_scenes.json").is_file():  # it is written last
        export_scenes(folder)
    return [folder / "images" / f"{name}.png" for name in names]


def _called(job: Job) -> str:
    """A run in a list; what tells runs apart comes first."""
    return plain(f"{job.variant}, seed {job.seed}, on {job.dataset}, {job.encoder}")


class Models:
    """The finished runs under a folder."""

    def __init__(self, runs: Path, images: Path | None) -> None:
        self.runs = runs
        self.images = images
        self._listed: list[Usable] = []
        self._last: tuple[Path, Loaded] | None = None

    def refresh(self) -> list[str]:
        """Look for finished runs anew; returns why some cannot be used."""
        self._listed, refused = usable_runs(self.runs)
        return refused

    def of(self, kind: Kind) -> list[tuple[str, str]]:
        """The runs of a kind, newest first: how to call each, and the name of its folder."""
        usable = [entry for entry in self._listed if isinstance(entry.model, kind.protocol)]
        return [(_called(entry.job), entry.folder.relative_to(self.runs).as_posix()) for entry in usable]

    def get(self, folder: str | None, kind: Kind) -> Loaded:
        """The model of a listed run, loaded unless it was the last one.

        Raises CapbenchError for a folder that is not in the list, and as `load_run` does.
        """
        if folder is None or folder not in {listed for _, listed in self.of(kind)}:
            raise CapbenchError(f"no trained {kind.name} under {self.runs}; make one with: {kind.command}")
        path = self.runs / folder
        if self._last is None or self._last[0] != path:
            self._last = None  # its memory is free before the next one takes its own
            self._last = path, Loaded(load_run(path), self.images)
        return self._last[1]
