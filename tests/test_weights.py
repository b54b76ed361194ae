from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from capbench.base import downloads
from capbench.base.errors import CapbenchError
from capbench.vision import weights
from capbench.vision.weights import (
    download,
    find_weights,
    hash_tensors,
    load_state_dict,
    load_weights,
    published_address,
)
from tests.servers import serving, status, whole


@pytest.fixture
def layer():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def stored(tmp_path, layer):
    path = tmp_path / "layer.safetensors"
    save_file(layer.state_dict(), path)
    return path


BODY = Random(0).randbytes(5000)
FILE = f"net-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.001)


def test_a_download_with_the_right_hash_is_kept(tmp_path):
    with serving(whole(BODY)) as server:
        path = download(f"{server.address}/{FILE}", tmp_path / "sub" / FILE)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (whole(BODY[:1000], Content_Length=len(BODY)), "no whole answer"),
        (lambda request: (request.head(), request.wfile.write(BODY[:1000])), "1,000 bytes with SHA-256"),
        (whole(b"<html>please sign in</html>", Content_Type="text/html"), "the answer is text/html"),
        (status(404), "the server answers 404"),
        (status(503), "the server answers 503"),
    ],
)
def test_a_wrong_answer_is_never_accepted_and_the_place_of_the_file_is_said(tmp_path, monkeypatch, answer, said):
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(tmp_path / "given"))
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with serving(answer) as server, pytest.raises(CapbenchError, match=said) as caught:
        find_weights("net", f"{server.address}/{FILE}")
    message = str(caught.value)
    assert f"{server.address}/{FILE}" in message
    assert f"Put {FILE}, or net.safetensors, into {tmp_path / 'given'}" in message
    assert not list(tmp_path.rglob(FILE))


@pytest.mark.fault("no network")
def test_without_a_network_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.delenv("CAPBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with serving(whole(BODY)) as server:
        pass  # nobody listens there any more
    with pytest.raises(CapbenchError, match=f"no whole answer.*Put {FILE}.*into {re.escape(str(tmp_path))}"):
        find_weights("net", f"{server.address}/{FILE}")


def test_weights_that_are_there_are_found_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPBENCH_WEIGHTS", str(tmp_path / "given"))
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    places = [
        tmp_path / "hub" / "hub" / "checkpoints" / FILE,
        tmp_path / "cache" / "weights" / FILE,
        tmp_path / "given" / FILE,
        tmp_path / "given" / "net.safetensors",
    ]
    for path in places:  # each is preferred to those before it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        assert find_weights("net", f"http://127.0.0.1:9/{FILE}") == path


def test_nothing_is_downloaded_where_the_hub_is_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = pytest.raises(CapbenchError, match="nothing is downloaded while HF_HUB_OFFLINE is set")
    with serving(whole(BODY)) as server, refused:
        download(f"{server.address}/{FILE}", tmp_path / FILE)
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_look_finds_the_download(tmp_path, monkeypatch):
    monkeypatch.delenv("CAPBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with serving(whole(BODY)) as server:
        paths = {find_weights("net", f"{server.address}/{FILE}") for _ in range(2)}
    assert len(paths) == len(server.asked) == 1


def test_a_name_without_a_hash_is_not_downloaded(tmp_path):
    with pytest.raises(CapbenchError, match="carries no hash"):
        download("http://127.0.0.1:9/net.pth", tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["alexnet", "vgg19", "resnet152", "densenet121", "squeezenet1_0"])
def test_published_addresses_carry_a_hash(name):
    assert weights.hash_in_name(published_address(name))


def test_safetensors_come_back_as_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    half, count = torch.randn(4).half(), torch.tensor(3)
    save_file({"half": half, "count": count}, path)
    loaded = load_weights(path)
    assert torch.equal(loaded["half"], half.float())
    assert loaded["count"].dtype == torch.int64


@pytest.mark.fault("truncated safetensors")
@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_safetensors_are_refused(stored, kept):
    stored.write_bytes(stored.read_bytes()[:kept])
    with pytest.raises(CapbenchError, match=r"layer\.safetensors is (no whole|truncated)"):
        load_weights(stored)


@pytest.mark.fault("safetensors with a huge header")
@pytest.mark.parametrize("claimed", [10**7, 2**40, 2**64 - 1])
def test_a_huge_header_is_refused_without_being_read(stored, claimed):
    stored.write_bytes(claimed.to_bytes(8, "little") + stored.read_bytes()[8:])
    with pytest.raises(CapbenchError, match="its header claims"):
        load_weights(stored)


@pytest.mark.parametrize(
    "header",
    [b"[1, 2]", b"{", b'{"a": 3}', b'{"a": {"data_offsets": [0]}}', b"[" * 50_000, b"\xff\xfe",
     b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 0]}}',
     b'{"a": {"data_offsets": [0, "x"]}}'],
    ids=range(8),
)  # fmt: skip
def test_a_malformed_header_is_refused(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CapbenchError, match=r"bad\.safetensors"):
        load_weights(path)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.fault("pickle payload in a weights file")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickle_payload_is_refused_and_nothing_is_executed(tmp_path, suffix, write):
    target, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    write({"weight": Payload(target)}, path)
    with pytest.raises(CapbenchError, match=f"evil{suffix}"):
        load_weights(path)
    assert not target.exists()


def test_a_table_of_tensors_in_a_pth_file_is_read(tmp_path, layer):
    torch.save(layer.state_dict(), tmp_path / "layer.pth")
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    load_state_dict(other, load_weights(tmp_path / "layer.pth"), tmp_path)
    for name, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("value", [{"weight": 3}, [torch.ones(1)], torch.ones(1)])
def test_a_pth_file_with_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(CapbenchError, match="no plain table of tensors"):
        load_weights(tmp_path / "other.pth")


def test_a_pth_file_whose_hash_is_not_that_of_its_name_is_refused(tmp_path, layer):
    path = tmp_path / "net-0123abcd.pth"
    torch.save(layer.state_dict(), path)
    with pytest.raises(CapbenchError, match=r"net-0123abcd\.pth has SHA-256 .* and not 0123abcd"):
        load_weights(path)


def test_a_truncated_pth_file_is_refused(tmp_path, layer):
    path = tmp_path / "net.pth"
    torch.save(layer.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CapbenchError, match=r"net\.pth is refused: it is truncated"):
        load_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapbenchError, match=r"there is no weights file .*gone"):
        load_weights(tmp_path / "gone.safetensors")


@pytest.mark.fault("weights of another architecture")
def test_another_architecture_is_told_by_its_entries(tmp_path, layer):
    state = layer.state_dict()
    del state["0.bias"]
    state |= {"0.weight": torch.ones(2, 4), "9.extra": torch.ones(1)}
    with pytest.raises(CapbenchError) as caught:
        load_state_dict(layer, state, tmp_path / "x.pth")
    message = str(caught.value)
    for said in ("1 missing (0.bias)", "1 unexpected (9.extra)", "0.weight [2, 4] for [2, 3]", "x.pth"):
        assert said in message


def test_counters_that_old_files_lack_are_zero(tmp_path, layer):
    state = layer.state_dict()
    del state["1.num_batches_tracked"]
    load_state_dict(layer, state, tmp_path)
    assert layer[1].num_batches_tracked == 0


def test_old_names_of_densenet_files_are_understood(tmp_path):
    block = nn.ModuleDict({"denselayer1": nn.ModuleDict({"norm1": nn.BatchNorm2d(2), "conv2": nn.Conv2d(2, 2, 1)})})
    state = {k.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for k, v in block.state_dict().items()}
    assert "denselayer1.norm.1.weight" in state
    expected = {key: value.clone() + 1 for key, value in block.state_dict().items()}
    load_state_dict(block, {key: value + 1 for key, value in state.items()}, tmp_path)
    for name, value in expected.items():
        assert torch.equal(block.state_dict()[name], value), name


def test_the_hash_follows_names_shapes_types_and_values_but_not_their_order():
    one, two = torch.arange(6.0), torch.ones(2)
    base = hash_tensors({"a": one, "b": two})
    assert base == hash_tensors({"b": two, "a": one.clone()})
    others = [{"a": one, "c": two}, {"a": one.view(2, 3), "b": two}, {"a": one.half(), "b": two}]
    others.append({"a": one, "b": two * 2})
    assert len({base, *map(hash_tensors, others)}) == 5
