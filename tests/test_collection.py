"""Ranks of a collection in files: the same as of one pass in memory, whatever stops them, and in bounded memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from capbench.base.errors import CapbenchError, StoppedError
from capbench.cli.app import app
from capbench.metrics.retrieval import embedding_ranks, retrieval_metrics
from capbench.scoring import collection as module
from capbench.scoring.collection import Collection, rank_collection

IMAGES, CAPTIONS, DIM = 300, 900, 24


@pytest.fixture(autouse=True)
def small_shares(monkeypatch):
    monkeypatch.setattr(module, "SHARE", 64)


def saved(folder, dtype=np.float32, ties=True):
    """Files of a collection whose captions come in any order; some of its vectors are equal."""
    random = np.random.default_rng(3)
    owners = random.permutation(np.concatenate([np.arange(IMAGES), random.integers(0, IMAGES, CAPTIONS - IMAGES)]))
    images = random.standard_normal((IMAGES, DIM))
    captions = images[owners] + 1.5 * random.standard_normal((CAPTIONS, DIM))
    if ties:
        images[50:60], captions[7:40] = images[49], captions[6]
    arrays = {"images": images, "captions": captions}
    arrays = {name: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for name, x in arrays.items()}
    paths = [folder / f"{name}.npy" for name in ("images", "captions", "owners")]
    for path, array in zip(paths, (*arrays.values(), owners), strict=True):
        np.save(path, array)
    return Collection(*paths)


def of_one_pass(collection):
    images, captions, owners = (np.load(path) for path in (collection.images, collection.captions, collection.owners))
    ranks = embedding_ranks(images, captions, owners, collection.similarity)
    return ranks.image_to_caption.tolist(), ranks.caption_to_image.tolist()


def as_lists(ranks):
    return ranks.image_to_caption.tolist(), ranks.caption_to_image.tolist()


def call(*words):
    app([str(word) for word in words], exit_on_error=False, result_action="return_value")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_shares_add_up_to_the_ranks_of_one_pass(tmp_path, similarity, dtype):
    files = saved(tmp_path, dtype)
    collection = Collection(files.images, files.captions, files.owners, similarity)
    assert as_lists(rank_collection(collection)) == of_one_pass(collection)


def test_processes_rank_a_share_each(tmp_path):
    collection = saved(tmp_path)
    assert as_lists(rank_collection(collection, processes=2)) == of_one_pass(collection)


def stopping(after):
    """A progress that sends a signal to this process once."""
    calls = []

    def report(done, total):
        calls.append(done)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_stopped_continues(tmp_path, processes):
    collection, out = saved(tmp_path), tmp_path / "ranks.npz"
    with pytest.raises(StoppedError, match=r"the same command continues after [1-4] of 5 shares"):
        rank_collection(collection, processes, out, stopping(after=1))
    assert not out.exists()
    begun = []
    ranks = rank_collection(collection, 1, out, lambda done, total: begun.append(done))
    assert begun[0] > 64  # the shares of the first call are not made again
    assert as_lists(ranks) == of_one_pass(collection)
    with np.load(out) as file:
        assert (file["image_to_caption"].tolist(), file["caption_to_image"].tolist()) == as_lists(ranks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.npy", "images.npy", "owners.npy", "ranks.npz"]


def test_a_state_of_other_files_is_not_taken(tmp_path):
    collection, out = saved(tmp_path), tmp_path / "ranks.npz"
    with pytest.raises(StoppedError):
        rank_collection(collection, 1, out, stopping(after=2))
    np.save(collection.images, np.load(collection.images)[::-1])
    assert as_lists(rank_collection(collection, 1, out)) == of_one_pass(collection)


def test_a_damaged_state_is_made_again(tmp_path):
    collection, out = saved(tmp_path), tmp_path / "ranks.npz"
    with pytest.raises(StoppedError):
        rank_collection(collection, 1, out, stopping(after=2))
    state = tmp_path / ".ranks.npz.part"
    state.write_bytes(state.read_bytes()[:-200])
    assert as_lists(rank_collection(collection, 1, out)) == of_one_pass(collection)


@pytest.mark.parametrize("processes", [1, 2])
def test_files_that_change_while_they_are_ranked_are_noticed_and_nothing_is_kept(tmp_path, processes):
    collection, out = saved(tmp_path), tmp_path / "ranks.npz"

    def replace(done, total):
        np.save(tmp_path / "new.npy", np.load(collection.images)[::-1])
        os.replace(tmp_path / "new.npy", collection.images)

    with pytest.raises(CapbenchError, match=r"images\.npy.* has changed while they were ranked; run the same command"):
        rank_collection(collection, processes, out, replace)
    assert not out.exists()
    assert as_lists(rank_collection(collection, 1, out)) == of_one_pass(collection)


def test_nan_is_refused_in_a_process_too(tmp_path):
    collection = saved(tmp_path)
    images = np.load(collection.images)
    images[70] = np.nan
    np.save(collection.images, images)
    for processes in (1, 2):
        with pytest.raises(CapbenchError, match="NaN"):
            rank_collection(collection, processes)


def test_owners_may_be_of_any_integers_and_an_output_is_no_folder(tmp_path):
    collection = saved(tmp_path)
    expected = of_one_pass(collection)
    np.save(collection.owners, np.load(collection.owners).astype(np.uint32))
    assert as_lists(rank_collection(collection)) == expected
    with pytest.raises(CapbenchError, match="is a folder; name a file"):
        rank_collection(collection, out=tmp_path)


def dies(share):
    os.abort()


def test_a_process_that_dies_is_an_error_and_no_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_counted_there", dies)
    with pytest.raises(CapbenchError, match=r"a process that ranks has died.*fewer --processes"):
        rank_collection(saved(tmp_path), processes=2)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "images",
            np.ones((2, DIM), np.float32),
            r"owners\.npy: image_of_caption must lie in 0..1.*its row \d+ is \d+",
        ),
        ("images", np.ones((0, DIM), np.float32), "the 0 images"),
        ("images", np.ones((IMAGES, DIM), ">f4"), "images.npy has the byte order of other machines"),
        ("images", np.full((IMAGES, DIM), 2, np.float32), "row 0 of images has length"),
        ("images", np.ones((IMAGES, DIM), np.int64), "images is int64"),
        ("captions", np.ones((CAPTIONS, 3), np.float32), r"captions is float32 \[900, 3\]"),
        ("owners", np.zeros(CAPTIONS, np.int64), "images without a caption cannot be ranked"),
        ("owners", np.zeros(CAPTIONS, np.float32), "image_of_caption is float32"),
    ],
)
def test_files_that_fit_nothing_are_refused(tmp_path, name, array, message):
    collection = saved(tmp_path)
    np.save(getattr(collection, name), array)
    with pytest.raises(CapbenchError, match=message):
        rank_collection(collection, out=tmp_path / "ranks.npz")
    assert not list(tmp_path.glob("*ranks*"))


def test_a_file_that_cannot_be_mapped_is_refused(tmp_path):
    with pytest.raises(CapbenchError, match=r"images.npz cannot be mapped into memory; save it as .npy"):
        rank_collection(Collection(tmp_path / "images.npz", tmp_path / "c.npy", tmp_path / "o.npy"))


def test_nan_is_refused(tmp_path):
    collection = saved(tmp_path)
    images = np.load(collection.images)
    images[5, 2] = np.nan
    np.save(collection.images, images)
    with pytest.raises(CapbenchError, match="NaN"):
        rank_collection(collection)


def test_the_command_prints_the_metrics_of_one_pass(tmp_path, capsys):
    collection, out = saved(tmp_path, ties=False), tmp_path / "ranks.npz"
    files = [str(path) for path in (collection.images, collection.captions, collection.owners)]
    call("score", "collection", *files, "--json", "--out", out)
    arrays = (np.load(path) for path in files)
    assert json.loads(capsys.readouterr().out) == retrieval_metrics(embedding_ranks(*arrays))
    call("score", "collection", *files, "--similarity", "dot")
    assert "R@10" in capsys.readouterr().out
    with pytest.raises(CapbenchError, match=r"as .npz, not to .*ranks.txt; rename it"):
        call("score", "collection", *files, "--out", tmp_path / "ranks.txt")
    with pytest.raises(CapbenchError, match="0 processes rank nothing"):
        call("score", "collection", *files, "--processes", 0)


# What a process holds that no file backs; what is mapped, the system takes back when it needs memory.
HELD = """
    import re, sys, torch
    from pathlib import Path
    from capbench.scoring import collection as module
    module.SHARE = 256

    def held():
        return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    torch.set_num_threads(1)
    files = module.Collection(*map(Path, sys.argv[1:4]))
    small = module.Collection(*map(Path, sys.argv[4:7]))
    module.rank_collection(small)  # what torch keeps, whatever the size
    before, most = held(), 0

    def report(done, total):
        global most
        most = max(most, held() - before)

    module.rank_collection(files, progress=report)
    print(most)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's count of a process's memory")
def test_memory_is_that_of_numbers_for_each_item_and_a_tile(tmp_path):
    def files(name, images, dim=512):
        folder = tmp_path / name
        folder.mkdir()
        random = torch.Generator().manual_seed(0)
        v = torch.nn.functional.normalize(torch.randn(images, dim, generator=random), dim=1)
        arrays = v.numpy(), v.repeat_interleave(5, 0).numpy(), np.arange(images).repeat(5)
        paths = [folder / f"{part}.npy" for part in ("images", "captions", "owners")]
        for path, array in zip(paths, arrays, strict=True):
            np.save(path, array)
        return paths

    images = 8000
    large, small = files("large", images), files("small", 500)
    program = [sys.executable, "-c", textwrap.dedent(HELD), *map(str, (*large, *small))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True)
    mapped = sum(path.stat().st_size for path in large)
    law = 8 * 40 * 6 * images + 16 * 2**20  # numbers of 8 bytes for each image and caption, and what a tile leaves
    assert int(done.stdout) < law < mapped / 3


def test_a_process_of_a_killed_parent_ends(tmp_path):
    saved(tmp_path)
    program = textwrap.dedent(f"""
        import os, signal
        from multiprocessing import active_children
        from pathlib import Path
        from capbench.scoring import collection as module
        module.SHARE = 1

        def report(done, total):
            print(*[child.pid for child in active_children()], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            files = [Path("{tmp_path}") / f"{{name}}.npy" for name in ("images", "captions", "owners")]
            module.rank_collection(module.Collection(*files), 2, progress=report)
    """)
    script = tmp_path / "kill.py"
    script.write_text(program)
    killed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    children = list(map(int, killed.stdout.split()))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(children) == 2
    end = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{child}/stat") and not zombie(child) for child in children):
        assert time.monotonic() < end, "the processes of the pool outlive their parent"
        time.sleep(0.1)


def zombie(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
