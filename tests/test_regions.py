"""The regions of images: where the boxes come from, what is refused, and what an encoder makes of them."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision.models._api import WeightsEnum

from capbench.base.errors import CapbenchError
from capbench.base.files import locked
from capbench.data.captions import CaptionDataset
from capbench.data.images import ImageFolder, PictureFiles, whole_image
from capbench.data.scenes import scenes
from capbench.data.vocabulary import Vocabulary
from capbench.runs.job import Job
from capbench.runs.loaded import Trained
from capbench.runs.materials import Materials
from capbench.training.experiment import Recipe, Training
from capbench.vision import regions
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from capbench.vision.networks import DETECTORS, load_detector
from capbench.vision.regions import GRID, PROVIDERS, region_boxes

SIZES = ((50, 40), (30, 60), (64, 64))  # width, height
WHOLE = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def drawn():
    return scenes(seed=3, train=12, val=2, test=2)


@pytest.fixture
def photos(tmp_path) -> CaptionDataset:
    """Three pictures in the folder of a data set that the user brings."""
    folder, names = tmp_path / "data" / "images", tuple(f"{i}.png" for i in range(len(SIZES)))
    folder.mkdir(parents=True)
    for i, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / names[i])
    count = len(names)
    return CaptionDataset(
        name="photos",
        images=ImageFolder(folder, names),
        image_names=names,
        image_ids=tuple(range(count)),
        split_of_image=("train",) * count,
        captions=("word",) * count,
        tokens=(("word",),) * count,
        caption_ids=tuple(range(count)),
        image_of_caption=np.arange(count),
    )


def put(photos, content, encoding="utf-8"):
    path = photos.images.root.parent / "regions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding=encoding)
    return path


def with_first(boxes):
    """A file that is right but for the boxes of the first picture."""
    return {"0.png": boxes, "1.png": [], "2.png": []}


# ---- the grid and the true boxes ---------------------------------------------


def test_the_grid_is_whole_then_halves_then_small_squares(drawn):
    boxes = region_boxes(drawn, "multiscale")
    assert boxes.array.shape == (16, 20, 4)
    assert boxes.array.dtype == np.float32
    assert (boxes.array == boxes.array[0]).all()
    assert boxes.array[0, 0].tolist() == WHOLE
    assert boxes.array[0, 2].tolist() == [0.25, 0, 0.75, 1]
    assert boxes.array[0, 4] == pytest.approx([0, 0, 0.4, 0.4])
    assert boxes.array[0, -1] == pytest.approx([0.6, 0.6, 1, 1])
    assert (boxes.count == 20).all()
    sides = boxes.array[0, :, 2:] - boxes.array[0, :, :2]
    assert (np.diff(sides.prod(1)) <= 1e-6).all()


def test_every_point_lies_in_a_box_of_both_scales():
    grid = np.array(GRID)
    points = np.random.default_rng(0).random((500, 2))
    inside = np.asarray(((points[:, None] >= grid[:, :2]) & (points[:, None] <= grid[:, 2:])).all(2))
    assert inside[:, :3].any(1).all()
    assert inside[:, 3:].any(1).all()


def test_the_objects_are_the_distinct_boxes_of_an_images_phrases_then_the_grid(drawn):
    boxes = region_boxes(drawn, "objects")
    for image in range(len(drawn.images)):
        expected = set()
        for caption in np.flatnonzero(drawn.image_of_caption == image):
            for phrase in drawn.phrases[caption]:
                expected |= {tuple(side / 64 for side in box) for box in phrase.boxes}
        count = boxes.count[image]
        assert count == 1 + len(expected)
        assert boxes.array[image, 0].tolist() == WHOLE
        assert {tuple(box) for box in boxes.array[image, 1:count].tolist()} == expected  # sixty-fourths are exact
        assert np.array_equal(boxes.array[image, count:], np.array(GRID[: 20 - count], np.float32))


def test_objects_of_a_data_set_without_them_are_refused(photos):
    with pytest.raises(CapbenchError, match="photos has no boxes of objects"):
        region_boxes(photos, "objects")


def test_an_unknown_provider_is_refused_with_the_known_ones(drawn):
    with pytest.raises(CapbenchError, match=r"no provider of regions 'yolo'; there is multiscale, objects, file, fa"):
        region_boxes(drawn, "yolo")


def test_the_fingerprint_tells_providers_and_boxes_apart(drawn):
    other = scenes(seed=4, train=12, val=2, test=2)
    found = [region_boxes(drawn, "multiscale"), region_boxes(drawn, "objects"), region_boxes(other, "objects")]
    assert len({boxes.fingerprint for boxes in found}) == 3
    assert region_boxes(drawn, "objects").fingerprint == found[1].fingerprint


# ---- the file ----------------------------------------------------------------


def test_all_styles_of_a_box_are_read_and_the_highest_score_comes_first(photos, tmp_path):
    content = {
        "0.png": [
            [5, 4, 25, 20],
            {"x": 10, "y": 10, "width": 30, "height": 20, "score": 0.2, "name": "dog"},
            {"x": 0, "y": 0, "w": 50, "h": 10, "score": 0.9},
            {"xmin": 25, "ymin": 20, "xmax": 50, "ymax": 40},
        ],
        "1.png": [],
        "2.png": [[0, 0, n + 1, 64] for n in range(30)],
        "not in the data set.png": [[0, 0, 900, 900]],
    }
    put(photos, content)
    boxes = region_boxes(photos, "file", store=tmp_path)
    expected: list[list[float]] = [
        WHOLE,
        [0, 0, 1, 0.25],
        [0.2, 0.25, 0.8, 0.75],
        [0.1, 0.1, 0.5, 0.5],
        [0.5, 0.5, 1, 1],
    ]
    assert np.allclose(boxes.array[0, :5], expected)
    assert boxes.count.tolist() == [5, 1, 20]
    assert np.allclose(boxes.array[0, 5:], GRID[:15])
    assert np.allclose(boxes.array[1, 1:], GRID)
    assert np.allclose(boxes.array[2, 1:, 2] * 64, np.arange(1, 20))


def test_a_byte_order_mark_is_tolerated_and_up_to_a_pixel_outside_is_cut_off(photos, tmp_path):
    put(photos, with_first([[-1, 0, 51, 40.5]]), "utf-8-sig")
    assert region_boxes(photos, "file", store=tmp_path).array[0, 1].tolist() == WHOLE


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", r"regions\.json, line 1.*malformed JSON"),
        ("<html>", r"regions\.json, line 1.*malformed JSON"),
        ([], r"regions\.json: images: .*dictionary"),
        ({"0.png": [], "2.png": []}, r"no entry for 1 of 3 images: 1\.png"),
        (with_first(5), r"images\.0\.png: .*list"),
        (with_first([[1, 2, 3]]), r"0\.png\[0\]: a box is \[x0, y0, x1, y1\], found 3 values"),
        (with_first(["box"]), r"0\.png\[0\]: a box is a list"),
        (with_first([[1, 2, 3, "4"]]), r"0\.png\[0\]: y1 is no finite number"),
        (with_first([[1, 2, 3, True]]), r"0\.png\[0\]: y1 is no finite number"),
        (with_first([[1, 2, 3, 4], [0, float("nan"), 3, 4]]), r"0\.png\[1\]: y0 is no finite number"),
        (with_first([[1, 2, float("inf"), 4]]), r"0\.png\[0\]: x1 is no finite number"),
        (with_first([[1, 2, 10**400, 4]]), r"0\.png\[0\]: x1 is no finite number"),
        (with_first([[5, 2, 5, 9]]), r"0\.png\[0\]: x1 makes the box empty or reversed"),
        (with_first([{"x": 1, "y": 2, "w": 3, "h": -4}]), r"0\.png\[0\]: h makes the box empty or reversed"),
        (with_first([{"x": 1, "y": 2, "width": 3}]), r"0\.png\[0\]: height is missing"),
        (with_first([{"xmin": 1, "ymin": 2, "xmax": 3}]), r"0\.png\[0\]: ymax is missing"),
        (with_first([{}]), r"0\.png\[0\]: xmin is missing"),
        (with_first([{"x": 1, "y": 2, "w": 3, "h": 4, "score": "high"}]), r"0\.png\[0\]: score is no finite number"),
        (with_first([[0, 0, 52.5, 9]]), r"0\.png\[0\]: x1 is 52\.5, outside the image of 50 x 40 pixels"),
        (with_first([[0, -2, 5, 9]]), r"0\.png\[0\]: y0 is -2, outside"),
        (with_first([[50.2, 0, 50.8, 9]]), r"0\.png\[0\]: the box lies outside"),
    ],
)
def test_a_bad_file_is_refused_by_its_image_box_and_field(photos, tmp_path, content, told):
    path = put(photos, content)
    with pytest.raises(CapbenchError, match=told) as caught:
        region_boxes(photos, "file", store=tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_is_asked_for_where_it_belongs(photos, drawn):
    with pytest.raises(CapbenchError, match=r"data.regions\.json is missing; put a JSON object"):
        region_boxes(photos, "file")
    with pytest.raises(CapbenchError, match=r"no folder for a regions\.json of scenes"):
        region_boxes(drawn, "file")


def test_regions_lie_beside_the_split_file_also_in_a_folder_called_images(photos, tmp_path):
    (photos.images.root / "regions.json").write_text(json.dumps({name: [[0, 0, 9, 9]] for name in photos.image_names}))
    assert region_boxes(photos, "file", tmp_path).count.tolist() == [2, 2, 2]


# ---- detectors ---------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    model: Any = load_detector("fasterrcnn_mobilenet_v3_large_fpn", "random")
    model.transform.min_size, model.roi_heads.score_thresh = (64,), 0.0
    return model


def test_a_detectors_boxes_are_those_of_its_highest_scores(photos, tmp_path, detector, monkeypatch):
    monkeypatch.setattr(regions, "_detector", lambda name: detector)
    seen = []
    boxes = region_boxes(photos, DETECTORS[2], store=tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for i, (width, height) in enumerate(SIZES):
        image = torch.from_numpy(photos.images[i]).permute(2, 0, 1) / 255
        with torch.no_grad():
            (found,) = detector([image])
        ranked = sorted(zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True), key=lambda p: -p[0])
        expected = np.array([box for _, box in ranked[:19]]) / [width, height, width, height]
        assert boxes.count[i] == 20
        assert np.allclose(boxes.array[i, 1:], expected, atol=1e-5)
        path = photos.images.root / photos.image_names[i]
        assert np.array_equal(region_boxes(PictureFiles([path]), DETECTORS[2], tmp_path).array[0], boxes.array[i])


def fake(boxes, scores):
    """A detector that always finds the same."""

    class Fake(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, images):
            return [{"boxes": torch.tensor(boxes), "scores": torch.tensor(scores)}]

    return Fake()


def test_empty_and_repeated_detections_are_left_out_and_the_grid_fills_up(photos, tmp_path, monkeypatch):
    boxes = [[0.0, 0, 32, 32], [16, 16, 80, 70], [5, 5, 5, 9], [0, 0, 32, 32]]
    monkeypatch.setattr(regions, "_detector", lambda name: fake(boxes, [0.3, 0.9, 0.8, 0.2]))
    found = region_boxes(photos, DETECTORS[0], tmp_path).array[2]
    assert found[:4].tolist() == [WHOLE, [0.25, 0.25, 1, 1], [0, 0, 0.5, 0.5], list(GRID[0])]


def test_boxes_are_made_once_for_the_same_weights_and_again_where_damaged(photos, tmp_path, monkeypatch):
    def ask(weight, detect=lambda *_: [(0.0, 0.0, 0.5, 0.5)]):
        model = fake([], [])
        torch.nn.init.constant_(model.weight, weight)
        monkeypatch.setattr(regions, "_detector", lambda name: model)
        monkeypatch.setattr(regions, "_detect", detect)
        return region_boxes(photos, DETECTORS[0], store=tmp_path)

    made = ask(1.0)
    again = ask(1.0, lambda *_: pytest.fail("an image was looked at again"))
    assert again.fingerprint == made.fingerprint
    assert np.array_equal(again.array, made.array)
    (path,) = (tmp_path / "boxes").glob("*.npz")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert ask(1.0).fingerprint == made.fingerprint
    ask(2.0)
    assert len(list((tmp_path / "boxes").glob("*.npz"))) == 2
    photos.images.__dict__["sample"] = "of other pictures"
    with pytest.warns(UserWarning, match="of other pictures; they are made again"):
        assert ask(2.0, lambda *_: [(0.0, 0.0, 0.5, 1.0)]).fingerprint != made.fingerprint


def test_the_wait_for_another_process_that_detects_is_bounded(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(regions, "_detector", lambda name: fake([], []))
    put(photos, with_first([]))
    region_boxes(photos, "file", store=tmp_path)
    (path,) = (tmp_path / "boxes").glob("*.npz")
    path.unlink()
    lock = path.with_suffix(".lock")
    with (
        locked(lock, 1.0),
        pytest.raises(CapbenchError, match=r"another process has held .*\.lock for 0\.1 s"),
    ):
        region_boxes(photos, "file", store=tmp_path)


def old_names(state):
    """The state as the first published files have it: FPN and RPN under older names, no counters of batches."""
    renamed = {}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            short = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            for block in ("inner_blocks", "layer_blocks"):
                for i in range(5):
                    short = short.replace(f"fpn.{block}.{i}.0.", f"fpn.{block}.{i}.")
            renamed[short] = value
    return renamed


@pytest.mark.parametrize(("name", "old"), [(name, not name.endswith("v2")) for name in DETECTORS])
def test_a_detector_with_weights_of_a_file_is_torchvisions_own(name, old, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    state = load_detector(name, "random").state_dict()
    first = next(value for key, value in state.items() if key.endswith("running_var"))
    first.copy_(torch.rand(first.shape, generator=generator) * 1e-4 + 1e-5)  # so small that the epsilon counts
    path = tmp_path / f"{name}.safetensors"
    save_file(old_names(state) if old else state, path)
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    theirs = torchvision.models.get_model(name, weights="COCO_V1").eval()
    ours: Any = load_detector(name)
    batch = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        expected, found = theirs.backbone(batch), ours.backbone(batch)
    assert not any(weight.requires_grad for weight in ours.parameters())
    for level in expected:
        assert expected[level].isfinite().all()
        assert torch.allclose(found[level], expected[level], rtol=1e-4, atol=1e-4 * float(expected[level].abs().max()))


def test_detectors_without_weights_or_of_an_unknown_name_are_refused(tmp_path, photos, monkeypatch):
    save_file({"a": torch.zeros(1)}, tmp_path / f"{DETECTORS[2]}.safetensors")
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(tmp_path))
    regions._detector.cache_clear()
    with pytest.raises(CapbenchError, match="weights of another architecture"):
        region_boxes(photos, DETECTORS[2], tmp_path)
    with pytest.raises(CapbenchError, match=r"no detector 'yolo'; known are fasterrcnn_resnet50_fpn_v2"):
        load_detector("yolo")
    assert set(DETECTORS) < set(PROVIDERS)


# ---- features ----------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    return Encoder("scenes", "regions")


@pytest.mark.parametrize("provider", ["multiscale", "objects"])
def test_features_of_regions_are_the_encoders_vectors_of_the_boxes(drawn, encoder, provider, tmp_path):
    made = features(drawn, encoder, region_provider=provider, store=tmp_path)
    boxes = region_boxes(drawn, provider)
    assert made.array.shape == (16, 20, encoder.dim)
    assert made.boxes is not None
    assert made.boxes.fingerprint == boxes.fingerprint
    with torch.inference_mode():
        images = torch.stack([whole_image(drawn.images[i], 64) for i in range(16)])
        expected = encoder.regions(images, torch.from_numpy(boxes.array) * 64).numpy()
    assert np.abs(made.array - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_first_region_is_the_vector_of_the_whole_image(photos, tmp_path):
    made = features(
        photos, Encoder("squeezenet1_0", "regions", weights="random"), region_provider="multiscale", store=tmp_path
    )
    whole = features(photos, Encoder("squeezenet1_0", weights="random"), "whole", store=tmp_path).array
    assert np.abs(made.array[:, 0] - whole).max() <= 1e-5 * np.abs(whole).max()
    assert np.abs(made.array[:, 1] - whole).max() > 1e-3 * np.abs(whole).max()


def test_the_boxes_are_in_the_fingerprint_of_the_features(photos, encoder, tmp_path):
    made = [features(photos, encoder, region_provider="multiscale", store=tmp_path)]
    for boxes in ([], [[0, 0, 10, 10]]):
        put(photos, with_first(boxes))
        made.append(features(photos, encoder, region_provider="file", store=tmp_path))
    assert len({one.fingerprint for one in made}) == 3
    assert made[2].boxes is not None
    assert made[2].boxes.count.tolist() == [2, 1, 1]


def test_the_second_time_boxes_and_features_are_read_and_no_image(photos, encoder, tmp_path, monkeypatch):
    put(photos, with_first([[0, 0, 10, 10]]))
    made = features(photos, encoder, region_provider="file", store=tmp_path)
    monkeypatch.setattr(ImageFolder, "__getitem__", lambda *_: pytest.fail("an image was read"))
    again = features(photos, encoder, region_provider="file", store=tmp_path)
    assert again.fingerprint == made.fingerprint


def test_tolerant_features_of_regions_leave_bad_images_out(photos, encoder, tmp_path):
    (photos.images.root / "1.png").write_bytes(b"<html>")
    with pytest.warns(UserWarning, match=r"1 images of photos could not be decoded"):
        made = features(photos, encoder, region_provider="multiscale", store=tmp_path, tolerant=True)
    assert made.skipped == ("1.png",)
    assert np.isnan(made.array[1]).all()
    assert np.isfinite(made.array[[0, 2]]).all()


def test_a_view_that_does_not_fit_the_output_is_refused_with_those_that_do(photos, encoder):
    with pytest.raises(CapbenchError, match=r"'regions' with region_provider None are not defined; take multiscale, o"):
        features(photos, encoder)
    with pytest.raises(CapbenchError, match=r"'grid' with view '10C' are not defined; take 1C, whole, RC$"):
        features(photos, Encoder("scenes", "grid"), "10C")
    for output in ("vector", "grid"):
        with pytest.raises(CapbenchError, match=rf"output '{output}' takes a view, not a region_provider"):
            features(photos, Encoder("scenes", output), region_provider="multiscale")


# ---- trained models and materials --------------------------------------------


def run_with(recipe):
    job = Job("paper", "preset", "scenes", "scenes", 0)
    return Trained(job, recipe, Vocabulary.build([("word",)], 1), torch.nn.Identity(), {})


def test_a_trained_model_sees_the_regions_of_pictures_as_those_of_the_store(drawn, encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(drawn.images[i]).save(paths[-1])
    run = run_with(SimpleNamespace(output="regions", view="whole", region_provider="multiscale"))
    stored = features(drawn, encoder, region_provider="multiscale", store=tmp_path)
    assert np.abs(run.features(paths) - stored.array[:3]).max() <= 1e-4 * np.abs(stored.array).max()
    assert stored.boxes is not None
    assert np.array_equal(run.boxes(paths).numpy(), stored.boxes.array[:3])


def test_boxes_are_refused_where_a_model_sees_none_or_those_of_a_data_set(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    Image.fromarray(drawn.images[0]).save(tmp_path / "0.png")
    with pytest.raises(CapbenchError, match="sees no regions of a picture but its vector"):
        run_with(SimpleNamespace(output="vector", view="1C", region_provider=None)).boxes([tmp_path / "0.png"])
    with pytest.raises(CapbenchError, match=r"no folder for a regions\.json of the pictures; take regions of multis"):
        run_with(SimpleNamespace(output="regions", view="whole", region_provider="file")).features([tmp_path / "0.png"])


def test_a_model_of_true_objects_sees_the_grid_of_a_picture_whose_objects_are_unknown(drawn, tmp_path):
    Image.fromarray(drawn.images[0]).save(tmp_path / "0.png")
    run = run_with(SimpleNamespace(output="regions", view="whole", region_provider="objects"))
    assert run.boxes([tmp_path / "0.png"])[0].tolist() == region_boxes(drawn, "multiscale").array[0].tolist()


def test_materials_give_the_regions_that_a_recipe_asks_for(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: drawn)
    materials = Materials(tmp_path)
    for provider in ("multiscale", "objects"):
        recipe = Recipe(output="regions", region_provider=provider, min_count=1, training=Training(1, 1, 1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inputs = materials.inputs(Job("paper", "preset", "scenes", "scenes", 0), recipe)
        assert inputs.features.boxes is not None
        assert inputs.features.boxes.provider == provider
        assert inputs.encoder is not None
        assert replace(inputs).features.array.shape == (16, 20, inputs.encoder.dim)
