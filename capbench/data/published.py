"""Where the data sets and GloVe come from: addresses, sizes and hashes of archives, and who is asked for the rest.

Sizes and SHA-256 of COCO and of the split files are those of tensorflow/datasets
(tensorflow_datasets/url_checksums/coco_captions.txt). GloVe's SHA-256 stands in pytorch/text
(torchtext/experimental/vectors.py), its size in keras-team/keras-io (examples/nlp/md/pretrained_word_embeddings.md).
Numbers of files are those that COCO's authors give. No hash of the photographs of Flickr8K and Flickr30K is published.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from capbench.base.downloads import Remote
from capbench.data.datasets import SPLIT_FILES


@dataclass(frozen=True)
class Archive:
    """An archive that may be downloaded, and what is taken from it."""

    file: str  # its name
    remote: Remote
    places: Mapping[str, str]  # a file, or a folder with "/" at its end, in the archive: its place in the data set
    files: int  # that these have
    unpacked: int  # their bytes, about: to see beforehand whether the disk has room

    def place(self, wanted: Collection[str]) -> Callable[[str], str | None]:
        """The function from the name of a member to its place, if that is one of `wanted`."""

        def of(name: str) -> str | None:
            for source, target in self.places.items():
                if target in wanted and (name == source or (source.endswith("/") and name.startswith(source))):
                    return target + name[len(source) :]
            return None

        return of


@dataclass(frozen=True)
class Request:
    """Photographs that their authors give to those who ask."""

    form: str  # its address
    archives: tuple[str, ...]  # the names under which they come


def split_file(name: str) -> Archive:
    """Karpathy's archive, for the split file of one data set."""
    remote = Remote(
        (
            SPLIT_FILES,
            "https://huggingface.co/datasets/gpantaz/karpathy_split/resolve/main/caption_datasets.zip",
        ),
        "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
        36_745_453,
    )
    return Archive("caption_datasets.zip", remote, {f"dataset_{name}.json": f"dataset_{name}.json"}, 1, 150_000_000)


def _coco(path: str, sha256: str, size: int) -> Remote:
    """A file of COCO's bucket, whose own host has no certificate: first by https, then by that host."""
    hosts = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
    return Remote(tuple(f"{host}/{path}" for host in hosts), sha256, size)


ARCHIVES: Mapping[str, tuple[Archive, ...]] = {
    "flickr8k": (split_file("flickr8k"),),
    "flickr30k": (split_file("flickr30k"),),
    "coco": (
        split_file("coco"),
        Archive(
            "annotations_trainval2014.zip",
            _coco(
                "annotations/annotations_trainval2014.zip",
                "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
                252_872_794,
            ),
            {"annotations/": "annotations/"},  # captions, instances and person_keypoints, of train and val
            6,
            1_000_000_000,
        ),
        Archive(
            "val2014.zip",
            _coco(
                "zips/val2014.zip",
                "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                6_645_013_297,
            ),
            {"val2014/": "images/val2014/"},
            40_504,
            6_650_000_000,
        ),
        Archive(
            "train2014.zip",
            _coco(
                "zips/train2014.zip",
                "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
                13_510_573_713,
            ),
            {"train2014/": "images/train2014/"},
            82_783,
            13_520_000_000,
        ),
    ),
    "glove": (
        Archive(
            "glove.6B.zip",
            Remote(
                (
                    "https://nlp.stanford.edu/data/glove.6B.zip",
                    "https://huggingface.co/stanfordnlp/glove/resolve/main/glove.6B.zip",
                ),
                "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb",
                862_182_613,
            ),
            {f"glove.6B.{size}d.txt": f"glove.6B.{size}d.txt" for size in (50, 100, 200, 300)},
            4,
            2_300_000_000,
        ),
    ),
}

REQUESTS: Mapping[str, Request] = {
    "flickr8k": Request("https://forms.illinois.edu/sec/1713398", ("Flickr8k_Dataset.zip",)),
    "flickr30k": Request(
        "https://forms.illinois.edu/sec/229675",
        ("flickr30k-images.tar.gz", "flickr30k-images.tar", "flickr30k-images.zip"),
    ),
}
