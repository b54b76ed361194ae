from __future__ import annotations

import os

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from capbench.base.errors import CapbenchError
from capbench.base.processor import computes_bf16
from capbench.vision import encoders, networks
from capbench.vision.encoders import Encoder

LAYERS = {  # vector and grid as torchvision's own tool takes them out, before pooling over locations
    "alexnet": ("classifier.5", "features.11"),
    "resnet50": ("avgpool", "layer4"),
    "densenet121": ("adaptive_avg_pool2d", "relu"),
    "googlenet": ("avgpool", "inception5b"),
    "squeezenet1_0": ("features.12", "features.12"),
    "mobilenet_v2": ("features.18", "features.18"),
}
SHAPES = {
    "alexnet": (4096, (169, 256)),
    "resnet50": (2048, (49, 2048)),
    "densenet121": (1024, (49, 1024)),
    "googlenet": (1024, (49, 1024)),
    "squeezenet1_0": (512, (169, 512)),
    "mobilenet_v2": (1280, (49, 1280)),
}


def images(count=2, size=224, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def shake(module):
    """Batch statistics that are not the identity, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            layer.weight.data.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            layer.bias.data.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)


def torchvision_model(name):
    """As torchvision builds the network around its published weights: googlenet's input is scaled once more."""
    options = {"transform_input": True, "aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **options)


def spread(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def squeezenet():
    return Encoder("squeezenet1_0", weights="random")


@pytest.fixture(scope="module", params=LAYERS)
def network(request):
    """A shaken torchvision model, and encoders of both outputs that share its weights."""
    model = torchvision_model(request.param).eval()
    shake(model)

    def encoder(output):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(networks, "_load", lambda *_: model)
            return Encoder(request.param, output)

    return request.param, model, encoder("vector"), encoder("grid")


def normalised(batch):
    return torchvision.transforms.functional.normalize(
        batch.float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


def test_vector_and_grid_are_the_layers_of_the_torchvision_model(network):
    name, model, vector, grid = network
    batch = images(1)
    oracle = create_feature_extractor(model, dict(zip(LAYERS[name], ("vector", "grid"), strict=True)))
    with torch.inference_mode():
        expected = oracle(normalised(batch))
        vectors, grids = vector(batch), grid(batch)
    last = expected["grid"]
    whole = expected["vector"].relu() if name == "alexnet" else last.mean((2, 3))
    assert vectors.shape == (1, SHAPES[name][0])
    assert vector.dim == SHAPES[name][0]
    assert (vectors - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert grids.shape == (1, *SHAPES[name][1])
    assert grid.dim == SHAPES[name][1][1]
    rows, columns = last.shape[2:]
    assert torch.allclose(grids.view(rows, columns, -1)[2, 1], last[0, :, 2, 1], atol=1e-6)


def test_the_folded_copy_agrees_with_the_plain_encoder(network):
    _, _, vector, grid = network
    batch = images(1)
    for encoder in (vector, grid):
        folded = encoder.fold()
        assert (
            not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.body.modules())
            or encoder.name == "densenet121"
        )
        with torch.inference_mode():
            assert spread(folded(batch), encoder(batch)) < 1e-4
        assert folded.fingerprint == encoder.fingerprint


def test_the_folded_copy_agrees_where_gradients_are_recorded(squeezenet):
    assert spread(squeezenet.fold()(images(1)), squeezenet(images(1))) < 1e-4


REFUSAL = r"\(cpu\) has no convolutions in bfloat16: fold in float32"


def test_bfloat16_stays_near_float32_or_is_refused(squeezenet):
    if not computes_bf16(torch.device("cpu"), "convolution"):
        with pytest.raises(CapbenchError, match=REFUSAL):
            squeezenet.fold(torch.bfloat16)
        return
    with torch.inference_mode():
        vectors = squeezenet.fold(torch.bfloat16)(images(2))
        assert vectors.dtype == torch.float32
        assert spread(vectors, squeezenet(images(2))) < 0.05


def test_bfloat16_is_refused_where_the_processor_does_not_say_that_it_has_it(squeezenet, monkeypatch):
    monkeypatch.setattr(encoders, "computes_bf16", lambda device, operation: False)
    with pytest.raises(CapbenchError, match=REFUSAL):
        squeezenet.fold(torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.01), (torch.bfloat16, 0.05)])
def test_a_cuda_encoder_agrees_with_the_processor(squeezenet, dtype, tolerance):
    with torch.inference_mode():
        expected = squeezenet(images(2))
        on_cuda = Encoder("squeezenet1_0", weights="random").cuda().fold(dtype)
        assert spread(on_cuda(images(2).cuda()).cpu(), expected) < tolerance


def test_vgg19_gives_fc7_and_the_map_of_conv5_4(monkeypatch):
    with torch.device("meta"):
        model = torchvision.models.vgg19(weights=None).eval()
    parts = networks._trunk("vgg19", model)
    batch = torch.empty(2, 3, 224, 224, device="meta")
    grid = parts.body(batch)
    assert grid.shape == (2, 512, 14, 14)
    assert parts.head(grid).shape == (2, 4096)
    assert isinstance(list(parts.body.children())[-1], nn.ReLU)
    assert isinstance(list(parts.head.children())[-1], nn.ReLU)


@pytest.mark.parametrize("name", [n for n in networks.ENCODERS if n not in {"scenes", *LAYERS}])
def test_every_other_trunk_has_the_shapes_it_states(name):
    with torch.device("meta"):
        model = torchvision_model(name).eval()
        parts = networks._trunk(name, model)
        grid = parts.body(torch.empty(2, 3, 224, 224))
        assert grid.shape[1] == parts.channels
        assert parts.head(grid).shape == (2, parts.dim)


def test_the_region_of_the_whole_image_has_the_vector_of_the_image(squeezenet):
    whole = torch.tensor([[[0.0, 0.0, 224.0, 224.0]]]).expand(2, 1, 4)
    with torch.inference_mode():
        assert spread(squeezenet.regions(images(2), whole)[:, 0], squeezenet(images(2))) < 1e-5


def test_a_region_sees_its_part_of_the_image(squeezenet):
    """Pictures that agree in their left half have the same region there, and others on the right."""
    first, second = images(1, seed=1), images(1, seed=2)
    second[..., :150] = first[..., :150]
    boxes = torch.tensor([[[0.0, 0.0, 60.0, 224.0], [170.0, 0.0, 224.0, 224.0]]])
    encoder = squeezenet
    with torch.inference_mode():
        a, b = encoder.regions(first, boxes)[0], encoder.regions(second, boxes)[0]
    assert torch.allclose(a[0], b[0], atol=1e-5)
    assert spread(a[1], b[1]) > 0.01


def test_regions_ask_for_boxes():
    encoder = Encoder("squeezenet1_0", "regions", weights="random")
    assert encoder.dim == 512
    with pytest.raises(CapbenchError, match="boxes"):
        encoder(images(1))


def test_the_scenes_trunk_is_an_encoder_of_64_pixels():
    vector, grid = Encoder("scenes"), Encoder("scenes", "grid")
    batch = images(3, 64)
    with torch.inference_mode():
        assert vector(batch).shape == (3, vector.dim)
        assert grid(batch).shape == (3, 64, grid.dim)
        assert spread(vector.fold()(batch), vector(batch)) < 1e-4
        boxes = torch.tensor([[[0.0, 0.0, 64.0, 64.0]]]).expand(3, 1, 4)
        assert spread(vector.regions(batch, boxes)[:, 0], vector(batch)) < 1e-5
    assert vector.input_size == 64


def test_an_encoder_is_frozen_and_stays_in_eval_mode_inside_a_model_that_trains(squeezenet):
    model = nn.Sequential(squeezenet).train()
    assert not any(layer.training for layer in squeezenet.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_trainable_encoder_gets_gradients_and_can_be_frozen_again():
    encoder = Encoder("squeezenet1_0", weights="random").trainable()
    before = encoder.fingerprint
    encoder.train()
    assert encoder.body.training
    encoder(images(1)).sum().backward()
    weight = next(encoder.parameters())
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    with torch.no_grad():
        weight.add_(weight.grad)
    assert encoder.fingerprint != before
    assert not encoder.trainable(False).body.training
    assert not weight.requires_grad


def test_a_folded_encoder_cannot_be_trained_or_folded_again(squeezenet):
    folded = squeezenet.fold()
    with pytest.raises(CapbenchError, match="unfolded"):
        folded.trainable()
    with pytest.raises(CapbenchError, match="folded already"):
        folded.fold()


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(squeezenet):
    state = torch.get_rng_state()
    assert Encoder("squeezenet1_0", weights="random").fingerprint == squeezenet.fingerprint
    assert torch.equal(state, torch.get_rng_state())


def test_the_fingerprint_tells_weights_and_outputs_apart(squeezenet, tmp_path):
    state = torchvision.models.squeezenet1_0(weights=None).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    prints = {
        squeezenet.fingerprint,
        Encoder("squeezenet1_0", "grid", weights="random").fingerprint,
        Encoder("squeezenet1_0", weights=tmp_path / "w.safetensors").fingerprint,
    }
    assert len(prints) == 3


def test_weights_given_by_their_folder_are_used(squeezenet, tmp_path, monkeypatch):
    state = {key: value.half() for key, value in torchvision.models.squeezenet1_0(weights=None).state_dict().items()}
    save_file(state, tmp_path / "squeezenet1_0.safetensors")
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(tmp_path))
    encoder = Encoder("squeezenet1_0")
    assert torch.equal(next(encoder.parameters()), state["features.0.weight"].float())


def test_googlenet_reads_torchvision_s_file_with_its_two_auxiliary_classifiers(tmp_path):
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "googlenet.pth")
    encoder = Encoder("googlenet", weights=tmp_path / "googlenet.pth")
    assert torch.equal(next(encoder.parameters()), model.conv1.conv.weight)


def test_weights_of_another_architecture_are_refused_with_the_names(tmp_path):
    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CapbenchError, match=r"w\.safetensors holds the weights of another.*features\.0\.weight"):
        Encoder("squeezenet1_0", weights=tmp_path / "w.safetensors")


def test_unknown_names_and_outputs_are_refused():
    with pytest.raises(CapbenchError, match=r"no encoder 'resnet51'; known are alexnet"):
        Encoder("resnet51")


@pytest.mark.skipif("CAPBENCH_WEIGHTS" not in os.environ, reason="CAPBENCH_WEIGHTS is not set")
def test_the_given_mobilenet_is_the_torchvision_module_with_those_weights():
    encoder = Encoder("mobilenet_v2")
    batch = images(1)
    with torch.inference_mode():
        assert spread(encoder.fold()(batch), encoder(batch)) < 1e-4
