"""Encoders that are models of timm: names and options, layers, normalisation, padding, weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d, pad

from capbench.base.errors import CapbenchError
from capbench.runs.paper import paper
from capbench.runs.plan import plan
from capbench.vision import networks
from capbench.vision.encoders import Encoder
from capbench.vision.folding import fold_convolutions
from capbench.vision.weights import find_timm_weights, hash_tensors
from tests.test_encoders import images, spread

SMALL, SMALL_VIT = "test_efficientnet", "test_vit"  # timm's own for tests


def shaken(name, **options):
    """A model of timm, with batch statistics that are not the identity."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.1)
    return model


def model_of(encoder: Encoder) -> Any:
    """timm's model in an encoder."""
    return encoder.body.model


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A folder of weights, the only place that has any."""
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.mark.parametrize("name", [SMALL, "tf_efficientnet_lite0", "resnet10t"])
def test_vector_and_grid_are_timm_s_own_with_its_normalisation_and_size(given, name):
    model = shaken(name)
    save_file(model.state_dict(), given / f"{name}.safetensors")
    vector, grid = Encoder(f"timm/{name}"), Encoder(f"timm/{name}", "grid")
    config = model.pretrained_cfg
    assert vector.input_size == config["input_size"][-1]
    batch = images(2, vector.input_size)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        features = model.forward_features((batch / 255 - mean) / std)
        expected = model.forward_head(features, pre_logits=True)
        assert spread(vector(batch), expected) < 1e-5
        assert spread(grid(batch), features.flatten(2).transpose(1, 2)) < 1e-5
    assert vector.dim == expected.shape[1]
    assert grid.dim == features.shape[1]


@pytest.mark.parametrize("name", [SMALL, "tf_efficientnet_lite0", "mobilenetv2_050", "resnet10t"])
@pytest.mark.parametrize("output", ["vector", "grid"])
def test_the_folded_copy_agrees_and_has_no_batch_norm_left(given, name, output):
    save_file(shaken(name).state_dict(), given / f"{name}.safetensors")
    encoder = Encoder(f"timm/{name}", output)
    folded = encoder.fold()
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.body.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.body.modules())
    batch = images(1, encoder.input_size)
    with torch.inference_mode():
        assert spread(folded(batch), encoder(batch)) < 1e-4
    assert folded.fingerprint == encoder.fingerprint


def test_a_network_that_cannot_be_folded_computes_as_it_is(given):
    save_file(timm.create_model(SMALL_VIT).state_dict(), given / f"{SMALL_VIT}.safetensors")
    encoder = Encoder(f"timm/{SMALL_VIT}", "grid")
    batch = images(1, encoder.input_size)
    with torch.inference_mode():
        assert spread(encoder.fold()(batch), encoder(batch)) < 1e-4


def test_the_map_of_a_vision_transformer_is_its_patches_and_its_vector_their_mean():
    vector, grid = (Encoder(f"timm/{SMALL_VIT}", output, "random") for output in ("vector", "grid"))
    body: Any = grid.body
    model = body[0].model
    batch = images(2, grid.input_size)
    with torch.inference_mode():
        tokens = model.forward_features((batch / 255 - grid.mean) / grid.std)[:, model.num_prefix_tokens :]
        assert torch.allclose(grid(batch), tokens, atol=1e-5)
        assert torch.allclose(vector(batch), tokens.mean(1), atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_s3_tiny_224"])
def test_a_transformer_takes_a_second_size_and_at_its_own_its_bits_are_those_of_timm_s_plain_model(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain: Any = timm.create_model(name).eval()
    encoder = Encoder(f"timm/{name}", "grid", "random")
    batch = images(1)
    with torch.inference_mode():
        expected = plain.forward_features((batch / 255 - encoder.mean) / encoder.std).flatten(1, -2)
        assert torch.equal(encoder(batch), expected[:, getattr(plain, "num_prefix_tokens", 0) :])
        assert encoder(images(1, 288)).shape[2] == encoder.dim
    body: Any = encoder.body
    assert hash_tensors(plain.state_dict()) == hash_tensors(body[0].model.state_dict())


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "pit_ti_224"])
def test_a_network_whose_output_is_no_map_of_the_image_is_refused(name):
    with pytest.raises(CapbenchError, match="no map of the image; take a network that does"):
        Encoder(f"timm/{name}", weights="random")


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_a_convolution_of_other_padding_than_zeros_is_folded_and_agrees(padding):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, **padding), nn.BatchNorm2d(4), nn.ReLU()).eval()
    folded = fold_convolutions(body)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        assert torch.allclose(folded(x), body(x), atol=1e-5)


def test_channels_that_come_last_are_put_first():
    encoder = Encoder("timm/swin_s3_tiny_224", "grid", "random")
    assert encoder.dim == 768
    with torch.inference_mode():
        assert encoder(images(1)).shape == (1, 49, 768)


def test_pad_type_same_pads_strided_convolutions_at_the_bottom_and_right_alone():
    """As TensorFlow does for an even side; the weights of MobileNetV2 that come from Keras need it."""
    same, plain = (Encoder(f"timm/mobilenetv2_100{options}", "grid", "random") for options in (",pad_type=same", ""))
    batch = images(1)
    stem = model_of(same).conv_stem
    x = (batch.float() / 255 - same.mean) / same.std
    with torch.inference_mode():
        assert torch.allclose(stem(x), conv2d(pad(x, (0, 1, 0, 1)), stem.weight, stride=2), atol=1e-5)
        assert spread(same(batch), plain(batch)) > 0.01


def test_regions_take_the_model_s_own_head():
    encoder = Encoder(f"timm/{SMALL}", "regions", "random")
    size = encoder.input_size
    whole = torch.tensor([[[0.0, 0.0, size, size]]]).expand(2, 1, 4)
    vector = Encoder(f"timm/{SMALL}", "vector", "random")
    with torch.inference_mode():
        assert spread(encoder.regions(images(2, size), whole)[:, 0], vector(images(2, size))) < 1e-4


def test_the_licence_is_the_one_that_timm_states():
    config = timm.get_pretrained_cfg("resnet10t")
    assert config is not None
    assert config.license
    assert Encoder("timm/resnet10t", weights="random").licence == config.license
    assert Encoder("squeezenet1_0", weights="random").licence == ""


def test_options_are_part_of_the_name_and_of_the_fingerprint():
    assert Encoder(f"timm/{SMALL_VIT},img_size=96", weights="random").input_size == 96
    prints = {Encoder(f"timm/{SMALL}{options}", weights="random").fingerprint for options in ("", ",pad_type=same")}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("timm/tf_efficientnet_lite9", "has no model 'tf_efficientnet_lite9'; near it are tf_effi"),
        ("timm/", "has no model ''"),
        (f"timm/{SMALL},pad_type", "'pad_type' in the encoder .* is no option; write name=value"),
        (f"timm/{SMALL},colour=red", "timm cannot make .*colour"),
    ],
)
def test_unknown_models_and_options_are_refused(name, fault):
    with pytest.raises(CapbenchError, match=fault):
        Encoder(name, weights="random")


def test_an_unknown_model_is_refused_before_any_job():
    with pytest.raises(CapbenchError, match="has no model 'resnet51'"):
        plan(paper("vsepp"), "flickr8k", ["vse0"], ["timm/resnet51"])


def test_weights_of_another_model_are_refused(given):
    save_file(timm.create_model(SMALL).state_dict(), given / "resnet10t.safetensors")
    with pytest.raises(CapbenchError, match=r"resnet10t\.safetensors holds the weights of another architecture"):
        Encoder("timm/resnet10t")


def test_damaged_weights_are_named(given):
    (given / f"{SMALL}.safetensors").write_bytes(b"no weights")
    with pytest.raises(CapbenchError, match=rf"{SMALL}\.safetensors"):
        Encoder(f"timm/{SMALL}")


def test_half_precision_weights_are_read_as_float32(given):
    state = timm.create_model(SMALL).half().state_dict()
    save_file(state, given / f"{SMALL}.safetensors")
    encoder = Encoder(f"timm/{SMALL}")
    assert next(encoder.parameters()).dtype == torch.float32
    assert torch.equal(model_of(encoder).conv_stem.weight, state["conv_stem.weight"].float())


def test_a_failed_download_says_which_file_to_put_where(given, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(CapbenchError, match=rf"no route to the hub\. Put {SMALL}\.safetensors into {given}"):
        find_timm_weights(SMALL, f"{SMALL}.safetensors")


def test_weights_come_from_the_hub_as_safetensors(given, tmp_path, monkeypatch):
    asked = []

    def download(repository, file, cache_dir):
        asked.append((repository, file))
        save_file(timm.create_model(SMALL).state_dict(), tmp_path / file)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert Encoder(f"timm/{SMALL}").dim
    config = timm.get_pretrained_cfg(SMALL)
    assert config is not None
    assert asked == [(config.hf_hub_id, "model.safetensors")]


def test_a_model_that_torchvision_has_too_is_not_read_from_torchvision_s_file(given, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_file(shaken("densenet121").state_dict(), given / "densenet121.safetensors")
    with pytest.raises(
        CapbenchError, match=rf"no weights of densenet121: .*Put timm_densenet121\.safetensors into {given}"
    ):
        Encoder("timm/densenet121")
    (given / "densenet121.safetensors").rename(given / "timm_densenet121.safetensors")
    assert Encoder("timm/densenet121").dim == 1024


def test_names_of_options_parse():
    assert networks._timm_name("timm/a,b=1,c=true,d=x") == ("a", {"b": 1, "c": True, "d": "x"})


@pytest.mark.skipif("CAPBENCH_WEIGHTS" not in os.environ, reason="CAPBENCH_WEIGHTS is not set")
@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite2", "timm/mobilenetv2_100,pad_type=same"])
def test_the_given_weights_load_and_fold(name):
    encoder = Encoder(name)
    batch = images(1, encoder.input_size)
    with torch.inference_mode():
        assert spread(encoder.fold()(batch), encoder(batch)) < 1e-4
