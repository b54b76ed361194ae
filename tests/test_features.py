from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import capbench.vision.features as store
from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.files import fingerprint
from capbench.base.processor import computes_bf16
from capbench.data.captions import CaptionDataset
from capbench.data.images import ImageFolder, one_crop, ten_crops, whole_image
from capbench.vision.encoders import Encoder, Output
from capbench.vision.extraction import View
from capbench.vision.features import Features, features
from tests.processes import begin

COUNT = 11  # more than a batch


def dataset_of(folder: Path) -> CaptionDataset:
    names = tuple(f"{i}.jpg" for i in range(COUNT))
    words = tuple((f"w{i}",) for i in range(COUNT))
    return CaptionDataset(
        name="little",
        images=ImageFolder(folder, names),
        image_names=names,
        image_ids=tuple(range(COUNT)),
        split_of_image=("train",) * COUNT,
        captions=tuple(w[0] for w in words),
        tokens=words,
        caption_ids=tuple(range(COUNT)),
        image_of_caption=np.arange(COUNT),
    )


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return dataset_of(folder)


@pytest.fixture(scope="module")
def encoder():
    return Encoder("scenes")


def only_folder(root: Path) -> Path:
    (folder,) = [path for path in (root / "features").iterdir() if path.is_dir()]
    return folder


def test_features_are_what_the_encoder_makes_of_each_image(dataset, encoder, tmp_path):
    made = features(dataset, encoder, store=tmp_path)
    crops = torch.stack([one_crop(dataset.images[i], 64) for i in range(COUNT)])
    with torch.inference_mode():
        expected = encoder(crops).numpy()
    assert made.array.dtype == np.float32
    assert isinstance(made.array, np.memmap)
    assert not made.array.flags.writeable
    assert np.abs(made.array - expected).max() <= 1e-4 * np.abs(expected).max()
    assert made.skipped == ()


def test_ten_crops_are_averaged(dataset, encoder, tmp_path):
    made = features(dataset, encoder, "10C", store=tmp_path)
    with torch.inference_mode():
        expected = torch.stack([encoder(ten_crops(dataset.images[i], 64)).mean(0) for i in range(COUNT)]).numpy()
    assert np.abs(made.array - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_grid_keeps_its_locations(dataset, tmp_path):
    encoder = Encoder("scenes", "grid")
    made = features(dataset, encoder, store=tmp_path)
    assert made.array.shape == (COUNT, 64, encoder.dim)


def test_the_second_time_no_image_is_read(dataset, encoder, tmp_path, monkeypatch):
    made = features(dataset, encoder, store=tmp_path)
    monkeypatch.setattr(ImageFolder, "__getitem__", lambda *_: pytest.fail("an image was read"))
    again = features(dataset, encoder, store=tmp_path)
    assert again.fingerprint == made.fingerprint
    assert np.array_equal(again.array, made.array)


def test_the_number_of_threads_does_not_change_the_features(dataset, encoder, tmp_path):
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(features(dataset, encoder, store=tmp_path / str(threads)).array)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(made[0], made[1])


def test_all_that_makes_the_features_is_in_their_fingerprint(dataset, encoder, tmp_path):
    made = [features(dataset, encoder, store=tmp_path), features(dataset, encoder, "10C", store=tmp_path)]
    made.append(features(dataset, Encoder("scenes", "grid"), store=tmp_path))
    made.append(features(dataset, Encoder("scenes", weights="random"), store=tmp_path))
    if computes_bf16(torch.device("cpu"), "convolution"):
        made.append(features(dataset, encoder.fold(torch.bfloat16), store=tmp_path))
    Image.new("RGB", (50, 50)).save(dataset.images.root / "3.jpg")
    made.append(features(dataset_of(dataset.images.root), encoder, store=tmp_path))
    assert len({one.fingerprint for one in made}) == len(made)


def test_the_fingerprint_of_a_vector_or_a_grid_is_of_these_fields_and_no_others(dataset, tmp_path):
    """Records name features by it: a field more would make all of them again under another name."""
    asked: list[tuple[Output, str, View]] = [
        ("vector", "trunk.vector", "1C"),
        ("vector", "trunk.vector", "10C"),
        ("grid", "trunk", "1C"),
    ]
    for output, layer, view in asked:
        encoder = Encoder("scenes", output)
        spec = {
            "images": dataset.images.fingerprint,
            "encoder": encoder.fingerprint,
            "name": "scenes",
            "output": output,
            "layer": layer,
            "crop": view,
            "size": 64,
            "computed_in": "float32",
            "version": 1,
        }
        made = features(dataset, encoder, view, store=tmp_path)
        assert made.fingerprint == fingerprint(spec)
        assert made.boxes is None


def test_the_default_place_follows_the_environment(dataset, encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "elsewhere"))
    made = features(dataset, encoder)
    assert made.path == tmp_path / "elsewhere" / "features" / made.fingerprint / "features.npy"


@pytest.mark.parametrize("output", ["regions", "grid"])
def test_features_that_are_not_defined_are_refused(dataset, output, tmp_path):
    with pytest.raises(CapbenchError, match="not defined"):
        features(dataset, Encoder("scenes", output), "10C", store=tmp_path)


def flip_a_byte(folder):
    with (folder / "features.npy").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def cut(folder):
    os.truncate(folder / "features.npy", 500)


def spoil_the_description(folder):
    (folder / "meta.json").write_text("{")


def describe_another_spec(folder):
    meta = json.loads((folder / "meta.json").read_text())
    meta["spec"]["crop"] = "10C"
    (folder / "meta.json").write_text(json.dumps(meta))


def lose_the_array(folder):
    (folder / "features.npy").unlink()


@pytest.mark.fault("features that fail their checksum")
@pytest.mark.parametrize("damage", [flip_a_byte, cut, spoil_the_description, describe_another_spec, lose_the_array])
def test_damaged_features_are_set_aside_and_made_again_with_a_warning(dataset, encoder, tmp_path, damage):
    expected = features(dataset, encoder, store=tmp_path).array.copy()
    folder = only_folder(tmp_path)
    for n in (1, 2):
        damage(folder)
        with pytest.warns(UserWarning, match=rf"damaged.*set aside as .*\.corrupt-{n}"):
            again = features(dataset, encoder, store=tmp_path)
        assert np.array_equal(again.array, expected)
        assert folder.with_name(f"{folder.name}.corrupt-{n}").is_dir()


def test_views_are_the_mean_over_two_sizes_and_their_mirrors(dataset, tmp_path):
    encoder = Encoder("squeezenet1_0", weights="random")
    made = features(dataset, encoder, "views", store=tmp_path).array
    picture = dataset.images[3]
    vectors = []
    for size in (224, 288):
        whole = whole_image(picture, size)
        vectors += [encoder(view[None])[0] for view in (whole, whole.flip(2))]
    assert np.allclose(made[3], torch.stack(vectors).mean(0).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_views_of_a_size_that_the_network_cannot_take_are_refused_before_any_image_is_read(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(ImageFolder, "__getitem__", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(CapbenchError, match=r"timm/test_vit takes .* 160 pixels.* 205 .*--set view=whole") as caught:
        features(dataset, Encoder("timm/test_vit", weights="random"), "views", store=tmp_path)
    assert "\n" not in str(caught.value)
    assert not [left for left in (tmp_path / "features").iterdir() if left.suffix != ".lock"]


@pytest.mark.fault("truncated JPEG among the images of a data set")
def test_a_bad_image_stops_the_work_and_what_was_done_before_is_not_done_again(dataset, encoder, tmp_path, monkeypatch):
    path = dataset.images.root / "9.jpg"
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(CapbenchError, match=r"9\.jpg is truncated"):
        features(dataset, encoder, store=tmp_path)
    asked = noted(monkeypatch)
    with pytest.warns(UserWarning, match=r"1 images of little could not be decoded"):
        made = features(dataset, encoder, store=tmp_path, tolerant=True)
    assert sorted(asked) == [8, 9, 10]
    with pytest.warns(UserWarning, match=r"1 images of little could not be decoded"):
        anew = features(dataset, encoder, store=tmp_path / "anew", tolerant=True)
    assert np.array_equal(made.array, anew.array, equal_nan=True)
    assert {path.name for path in only_folder(tmp_path).iterdir()} == {"features.npy", "meta.json"}


def test_features_that_could_not_be_described_need_no_image_when_they_are_made_again(
    dataset, encoder, tmp_path, monkeypatch
):
    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "sha256", full)
        with pytest.raises(CapbenchError, match=r"cannot write .*No space left"):
            features(dataset, encoder, store=tmp_path)
    asked = noted(monkeypatch)
    assert features(dataset, encoder, store=tmp_path).array.shape == (COUNT, 512)
    assert asked == []


def noted(monkeypatch):
    """The numbers of the images that are asked for from now on."""
    asked, read = [], ImageFolder.__getitem__

    def noting(images, index):
        asked.append(index)
        return read(images, index)

    monkeypatch.setattr(ImageFolder, "__getitem__", noting)
    return asked


@pytest.fixture
def alike(tmp_path):
    """Two folders of other pictures with equal names and sizes."""
    for seed, place in enumerate(("one", "other")):
        (tmp_path / place).mkdir()
        for i in range(COUNT):
            pixels = np.random.default_rng([seed, i]).integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{i}.jpg", "BMP")
    return tmp_path / "one", tmp_path / "other"


def test_features_of_other_pictures_of_the_same_names_and_sizes_are_made_again(alike, encoder, tmp_path):
    one, other = map(dataset_of, alike)
    before = features(one, encoder, store=tmp_path)
    kept = before.array.copy()
    with pytest.warns(UserWarning, match=r"made again: they are of other images, which had the names and sizes"):
        after = features(other, encoder, store=tmp_path)
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.array, features(other, encoder, store=tmp_path / "anew").array)
    assert not np.array_equal(after.array, kept)
    assert [path.name for path in (tmp_path / "features").iterdir() if path.is_dir()] == [after.fingerprint]


def test_features_that_do_not_say_what_their_pictures_held_stay_valid(alike, encoder, tmp_path):
    made = features(dataset_of(alike[0]), encoder, store=tmp_path)
    description = only_folder(tmp_path) / "meta.json"
    meta = json.loads(description.read_text())
    assert meta.pop("pictures")
    description.write_text(json.dumps(meta))
    assert np.array_equal(features(dataset_of(alike[1]), encoder, store=tmp_path).array, made.array)


def test_unfinished_features_of_other_pictures_are_not_continued(alike, encoder, tmp_path):
    def press(done, total):
        raise KeyboardInterrupt

    one, other = map(dataset_of, alike)
    with pytest.raises(StoppedError):
        features(one, encoder, store=tmp_path, progress=press)
    made = features(other, encoder, store=tmp_path)
    assert np.array_equal(made.array, features(other, encoder, store=tmp_path / "anew").array)


def test_features_get_a_picture_that_was_left_out_once_it_is_repaired(dataset, encoder, tmp_path):
    paths = [dataset.images.root / name for name in ("4.jpg", "9.jpg")]
    whole = [path.read_bytes() for path in paths]
    expected = features(dataset, encoder, store=tmp_path / "whole").array
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))  # of the same size: a download that never came
    with pytest.warns(UserWarning, match="2 images"):
        features(dataset_of(dataset.images.root), encoder, store=tmp_path, tolerant=True)
    paths[0].write_bytes(whole[0])
    with pytest.raises(CapbenchError, match=r"1 images of little could not be decoded .*: 9\.jpg; repair them"):
        features(dataset_of(dataset.images.root), encoder, store=tmp_path)
    with pytest.warns(UserWarning, match=r"made again: images that were left out can be decoded now: 4\.jpg"):
        made = features(dataset_of(dataset.images.root), encoder, store=tmp_path, tolerant=True)
    assert made.skipped == ("9.jpg",)
    paths[1].write_bytes(whole[1])
    with pytest.warns(UserWarning, match=r"can be decoded now: 9\.jpg"):
        made = features(dataset_of(dataset.images.root), encoder, store=tmp_path)
    assert np.array_equal(made.array, expected)


@pytest.mark.fault("truncated JPEG among the images of a data set")
def test_tolerant_features_leave_bad_images_out_and_count_them(dataset, encoder, tmp_path):
    whole = features(dataset, encoder, store=tmp_path).array.copy()
    for name in ("4.jpg", "9.jpg"):
        path = dataset.images.root / name
        path.write_bytes(path.read_bytes()[:-900])
    spoilt = dataset_of(dataset.images.root)
    with pytest.warns(UserWarning, match=r"2 images of little could not be decoded .*4\.jpg, 9\.jpg"):
        made = features(spoilt, encoder, store=tmp_path, tolerant=True)
    assert made.skipped == ("4.jpg", "9.jpg")
    bad = np.isin(np.arange(COUNT), [4, 9])
    assert np.isnan(made.array[bad]).all()
    assert np.allclose(made.array[~bad], whole[~bad], rtol=1e-5)
    with pytest.raises(CapbenchError, match=r"2 images of little could not be decoded and have no features.*4\.jpg"):
        features(spoilt, encoder, store=tmp_path)
    assert features(spoilt, encoder, store=tmp_path, tolerant=True).skipped == made.skipped


def test_a_data_set_of_bad_images_is_refused_even_when_tolerant(dataset, encoder, tmp_path):
    for i in range(COUNT):
        (dataset.images.root / f"{i}.jpg").write_bytes(b"<html>")
    with pytest.raises(CapbenchError, match="no image of little could be decoded"):
        features(dataset, encoder, store=tmp_path, tolerant=True)


def test_missing_images_are_all_listed_before_any_work(dataset, encoder, tmp_path):
    for i in (2, 5):
        (dataset.images.root / f"{i}.jpg").unlink()
    with pytest.raises(CapbenchError, match=r"2 of 11 images are missing .*2\.jpg, 5\.jpg"):
        features(dataset, encoder, store=tmp_path)


def test_progress_counts_up_to_the_whole(dataset, encoder, tmp_path):
    seen = []
    features(dataset, encoder, store=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (COUNT, COUNT)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_progress_bar_shows_images_a_second(dataset, encoder, tmp_path, capsys):
    features(dataset, encoder, store=tmp_path, progress=True)
    shown = capsys.readouterr().err  # what is printed may be read by a program
    assert "features of little" in shown
    assert "images/s" in shown


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_store_is_named_at_the_start(dataset, encoder, tmp_path):
    (tmp_path / "s").mkdir(mode=0o500)
    with pytest.raises(CapbenchError, match="cannot write to"):
        features(dataset, encoder, store=tmp_path / "s")


def test_a_store_that_is_a_file_is_named_at_the_start(dataset, encoder, tmp_path):
    (tmp_path / "s").write_text("")
    with pytest.raises(CapbenchError, match="cannot write to"):
        features(dataset, encoder, store=tmp_path / "s")


@pytest.mark.fault("limit on the size of files while features are stored")
@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_full_disk_is_reported_and_leaves_nothing_behind(dataset, encoder, tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CapbenchError, match=r"cannot write .*features"):
            features(dataset, encoder, store=tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [left for left in (tmp_path / "s" / "features").iterdir() if left.suffix != ".lock"]


HOLD = """
    import sys, time
    from filelock import FileLock
    lock = FileLock(sys.argv[1])
    lock.acquire()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(dataset, encoder, tmp_path):
    """A process that holds the lock of the features, which are not made."""
    made = features(dataset, encoder, store=tmp_path)
    folder = only_folder(tmp_path)
    folder.rename(tmp_path / "away")
    lock = folder.with_name(f"{made.fingerprint}.lock")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.fault("lock of a process that goes on")
def test_the_wait_for_another_process_is_bounded(dataset, encoder, tmp_path, holder, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(CapbenchError, match=r"another process has held .*\.lock for 0\.3 s"):
        features(dataset, encoder, store=tmp_path)
    assert time.monotonic() - start < 20


@pytest.mark.fault("lock and remains of a dead process")
def test_the_lock_and_the_remains_of_a_dead_process_are_no_obstacle(dataset, encoder, tmp_path, holder, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 5.0)
    lock = next((tmp_path / "features").glob("*.lock"))
    remains = lock.with_name(f".{lock.stem}.dead")
    remains.mkdir()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert isinstance(features(dataset, encoder, store=tmp_path), Features)
    assert not remains.exists()


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from capbench.base.errors import StoppedError
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from tests.test_features import dataset_of

def press(done, total):
    if done == 8:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        time.sleep(1)  # so that no other batch begins

try:
    features(dataset_of(Path(sys.argv[1]) / "images"), Encoder("scenes"), store=Path(sys.argv[1]), progress=press)
except StoppedError:
    print("stopped and saved")
"""


@pytest.mark.fault("signal while features are computed")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_to_stop_keeps_the_batches_that_are_done_and_the_next_call_makes_the_others(
    dataset, encoder, tmp_path, monkeypatch, name
):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STOPPED, str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.stdout == "stopped and saved\n", done.stderr
    asked, seen = noted(monkeypatch), []
    resumed = features(dataset, encoder, store=tmp_path, progress=lambda *step: seen.append(step))
    assert asked == [8, 9, 10]
    assert seen == [(COUNT, COUNT)]
    assert np.array_equal(resumed.array, features(dataset, encoder, store=tmp_path / "anew").array)
    assert {path.name for path in only_folder(tmp_path).iterdir()} == {"features.npy", "meta.json"}


@pytest.mark.parametrize("spoil", ["{", '{"size": 4, "done": [0, 4]}', '{"size": 8}'])
def test_unfinished_features_that_cannot_be_continued_are_made_from_the_start(dataset, encoder, tmp_path, spoil):
    def press(done, total):
        raise KeyboardInterrupt

    for first in (press, None):
        if first is None:
            (state,) = (tmp_path / "features").glob(".*.part/done.json")
            state.write_text(spoil)
            made = features(dataset, encoder, store=tmp_path)
        else:
            with pytest.raises(StoppedError):
                features(dataset, encoder, store=tmp_path, progress=first)
    assert np.array_equal(made.array, features(dataset, encoder, store=tmp_path / "anew").array)


def make_slowly(folder: Path, told: Connection) -> None:
    def slowly(done, total):
        told.send(done)
        time.sleep(1)

    made = features(dataset_of(folder / "images"), Encoder("scenes"), store=folder, progress=slowly)
    told.send(made.fingerprint)


@pytest.mark.fault("two processes with one cache")
def test_of_two_processes_at_once_one_makes_the_features_and_the_other_waits(dataset, encoder, tmp_path):
    process, heard = begin(make_slowly, tmp_path)
    assert isinstance(heard.recv(), int)  # it is at work
    worked_here = []
    made = features(dataset, encoder, store=tmp_path, progress=lambda done, _: worked_here.append(done))
    told = []
    with suppress(EOFError):
        while True:
            told.append(heard.recv())
    process.join()
    assert process.exitcode == 0
    assert told[-1] == made.fingerprint
    assert worked_here == []
