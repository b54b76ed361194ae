from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.base.files import printable
from capbench.data.captions import Images
from capbench.data.images import (
    ImageFolder,
    PictureFiles,
    Pictures,
    decode,
    one_crop,
    random_crop,
    ten_crops,
)


def picture(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], 2).astype(np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_a_png_decodes_to_its_own_pixels(tmp_path):
    pixels = picture()
    assert np.array_equal(decode(saved(tmp_path / "a.png", Image.fromarray(pixels))), pixels)


@pytest.mark.fault("EXIF rotation")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(smooth())
    turned = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.rotate(180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.rotate(90, expand=True),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.rotate(270, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", turned, exif=exif, quality=100, subsampling=0)
    assert np.abs(decode(path).astype(int) - smooth()).max() <= 6


@pytest.mark.fault("grey or 16-bit picture")
def test_a_grey_picture_has_three_equal_channels(tmp_path):
    grey = picture()[:, :, 0]
    assert np.array_equal(decode(saved(tmp_path / "a.png", Image.fromarray(grey))), np.stack([grey] * 3, 2))


@pytest.mark.fault("grey or 16-bit picture")
def test_a_sixteen_bit_grey_picture_keeps_its_upper_bits(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (8, 9), dtype=np.uint16)
    decoded = decode(saved(tmp_path / "a.png", Image.fromarray(grey)))
    assert np.array_equal(decoded, np.stack([grey >> 8] * 3, 2))


@pytest.mark.fault("grey or 16-bit picture")
def test_a_sixteen_bit_pgm_keeps_its_upper_bits(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (8, 9), dtype=np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5\n9 8\n65535\n" + grey.astype(">u2").tobytes())
    assert np.array_equal(decode(tmp_path / "a.pgm"), np.stack([grey >> 8] * 3, 2))


@pytest.mark.fault("grey or 16-bit picture")
@pytest.mark.parametrize(("kind", "said"), [(np.float32, "floats"), (np.int32, "whole numbers of 32 bits")])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, kind, said):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.linspace(0, 1, 72).reshape(8, 9).astype(kind)))
    with pytest.raises(
        CapbenchError, match=rf"a\.tif has {said} for pixels, of an unknown range; save it with 8 or 16"
    ):
        decode(path)


@pytest.mark.fault("palette picture")
def test_a_palette_picture_gets_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert decode(saved(tmp_path / "a.png", image)).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_transparency_lies_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 255, 0, 128
    assert decode(saved(tmp_path / "a.png", Image.fromarray(rgba)))[0, :, 0].tolist() == [0, 255, 127]


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    path = saved(tmp_path / "a.png", image, transparency=0)
    assert decode(path).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.fault("CMYK picture")
def test_cmyk_becomes_rgb(tmp_path):
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode(saved(tmp_path / "a.jpg", inks, quality=100))
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.fault("truncated JPEG")
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_a_truncated_jpeg_is_named(tmp_path, share):
    path = saved(tmp_path / "cut.jpg", Image.fromarray(picture(200, 200)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CapbenchError, match=r"cut\.jpg is truncated or damaged"):
        decode(path)


@pytest.mark.fault("damaged picture of any kind")
@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 2000), noise=st.binary(max_size=30), at=st.integers(0, 2000))
def test_a_damaged_file_gives_pixels_or_a_named_error(tmp_path_factory, cut, noise, at):
    buffer = io.BytesIO()
    Image.fromarray(picture(20, 20)).save(buffer, "JPEG")
    content = buffer.getvalue()[:cut]
    path = tmp_path_factory.mktemp("damaged") / "d.jpg"
    path.write_bytes(content[:at] + noise + content[at + len(noise) :])
    said = "d.jpg"
    try:
        decode(path)
    except CapbenchError as error:
        said = str(error)
    assert "d.jpg" in said


@pytest.mark.fault("empty file or HTML saved as a picture")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "holds HTML"),
        (b"\n <html>", "holds HTML"),
        (b"not a picture at all", "is not a picture"),
    ],
)
def test_what_is_not_a_picture_is_named(tmp_path, content, said):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(CapbenchError, match=rf"page\.jpg {said}") as refused:
        decode(path)
    assert "object at" not in str(refused.value)


@pytest.mark.fault("decompression bomb")
@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(CapbenchError, match=r"bomb\.png (has|is too large)"):
        decode(path)


@pytest.mark.fault("picture that is far longer than wide")
def test_a_picture_that_is_far_longer_than_wide_is_refused(tmp_path):
    """At 256 pixels of width it would be enlarged to 1,280,000 of height: some gigabytes."""
    Image.new("RGB", (1, 5000)).save(tmp_path / "thin.png")
    with pytest.raises(CapbenchError, match=r"thin\.png of 1 x 5000 pixels is more than 200 times"):
        decode(tmp_path / "thin.png")


def test_picture_files_are_known_by_their_content_alone(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, grey in zip(paths, (10, 20, 10), strict=True):
        Image.new("L", (4, 4), grey).save(path)
    a, b, c = paths
    pictures = PictureFiles([a, b])
    assert isinstance(pictures, Pictures)
    assert isinstance(pictures.images, Images)
    assert [int(pictures.images[i][0, 0, 0]) for i in range(len(pictures))] == [10, 20]
    assert pictures.fingerprint == PictureFiles([c, b]).fingerprint
    assert pictures.fingerprint != PictureFiles([b, a]).fingerprint
    with pytest.raises(CapbenchError, match=r"cannot read the image .*gone\.png"):
        _ = PictureFiles([tmp_path / "gone.png"]).fingerprint


@pytest.mark.fault("file name that is not UTF-8")
def test_a_file_name_that_is_not_utf8_is_printed_with_escapes(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    assert printable(path) == str(tmp_path) + "/caf\\xe9.png"
    with pytest.raises(CapbenchError) as caught:
        decode(path)
    assert str(caught.value).encode()


@pytest.mark.fault("missing images")
def test_every_missing_image_is_counted_and_listed_up_front(tmp_path):
    saved(tmp_path / "here.png", Image.fromarray(picture()))
    folder = ImageFolder(tmp_path, ["here.png", "gone.png", "sub/lost.png"])
    with pytest.raises(CapbenchError, match=r"2 of 3 images are missing .*gone\.png, sub/lost\.png"):
        folder.check()
    with pytest.raises(CapbenchError, match="missing"):
        _ = folder.fingerprint


def test_a_long_list_of_missing_images_is_shortened(tmp_path):
    with pytest.raises(CapbenchError, match=r"300 of 300 .* and 290 more"):
        ImageFolder(tmp_path, [f"{i}.jpg" for i in range(300)]).check()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CapbenchError, match=r"there is no image folder .*nowhere"):
        ImageFolder(tmp_path / "nowhere", ["a.jpg"]).check()


@pytest.mark.fault("image name that leads out of its folder")
@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "c:\\b.jpg", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(CapbenchError, match="are no paths inside"):
        ImageFolder(tmp_path, ["a.jpg", name])


def test_the_fingerprint_follows_names_and_sizes_but_not_the_place(tmp_path):
    prints = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for name in ("1.png", "2.png"):
            saved(tmp_path / place / name, Image.fromarray(picture(seed=int(name[0]))))
        prints.append(ImageFolder(tmp_path / place, ["1.png", "2.png"]).fingerprint)
    swapped = ImageFolder(tmp_path / "b", ["2.png", "1.png"]).fingerprint
    (tmp_path / "b" / "1.png").write_bytes(b"longer or shorter")
    changed = ImageFolder(tmp_path / "b", ["1.png", "2.png"]).fingerprint
    assert prints[0] == prints[1]
    assert len({prints[0], swapped, changed}) == 3


def test_a_folder_is_a_sequence_of_pictures(tmp_path):
    saved(tmp_path / "a.png", Image.fromarray(picture()))
    folder = ImageFolder(tmp_path, ["a.png"])
    assert isinstance(folder, Images)
    assert len(folder) == 1
    assert np.array_equal(folder[0], picture())


@pytest.mark.parametrize("shape", [(224, 224), (375, 500), (500, 333), (100, 101), (300, 1000)])
def test_one_crop_is_torchvisions_resize_and_centre_crop(shape):
    pixels = picture(*shape)
    oracle = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    assert torch.equal(one_crop(pixels, 224), oracle(Image.fromarray(pixels)))


@pytest.mark.parametrize("shape", [(375, 500), (511, 333)])
def test_ten_crops_are_torchvisions(shape):
    pixels = picture(*shape)
    oracle = transforms.Compose([transforms.Resize(256), transforms.TenCrop(224)])(Image.fromarray(pixels))
    assert torch.equal(ten_crops(pixels, 224), torch.stack([transforms.PILToTensor()(i) for i in oracle]))


def test_small_encoders_get_crops_in_proportion():
    assert one_crop(picture(64, 64), 64).shape == (3, 64, 64)
    assert ten_crops(picture(64, 64), 64).shape == (10, 3, 64, 64)


def test_a_random_crop_is_a_function_of_its_generator():
    crops = [random_crop(picture(), 32, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_random_crops_keep_to_their_area_and_are_mirrored_half_the_time():
    y, x = np.mgrid[:200, :200]
    pixels = np.stack([x, y, x], 2).astype(np.uint8)
    generator = np.random.default_rng(0)
    crops = torch.stack([random_crop(pixels, 16, generator) for _ in range(400)]).float()
    wide = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) / 15 * 16
    high = (crops[:, 1, -1, 0] - crops[:, 1, 0, 0]) / 15 * 16
    area = wide.abs() * high / 200**2
    assert 0.4 < (wide < 0).float().mean() < 0.6
    assert area.min() > 0.06
    assert area.max() < 1.02
    assert 0.45 < area.mean() < 0.6
    aspect = wide.abs() / high
    assert aspect.min() > 0.70
    assert aspect.max() < 1.42


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1)])
def test_a_random_crop_of_an_extreme_picture_exists(shape):
    assert random_crop(picture(*shape), 8, np.random.default_rng(0)).shape == (3, 8, 8)
