"""Encoders by hub id, and untrained twins."""

import hashlib
import shutil
from copy import deepcopy

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers

from tests.encoders.tiny_encoders import made
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import UnknownEncoder, open_encoder, wrap_encoder
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load
from toushi.probe.trace.open import open_encoder_trace


@pytest.fixture
def saved(tmp_path):
    model, tokenizer = made("bert")
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_hub_id_is_fetched_without_anything_that_would_be_unpickled(saved, monkeypatch):
    asked = []

    def fetched(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    encoder = open_encoder("somebody/bert-small", "cpu")
    assert encode_layers(encoder, ["红色的猫"])[0].states.sizes["layer"] == 4
    ((name, patterns),) = asked
    assert name == "somebody/bert-small" and not any(p.endswith((".bin", ".pt", ".py")) for p in patterns)


def test_what_the_hub_does_not_give_is_told_in_a_line(monkeypatch):
    def fails(*_, **__):
        raise OSError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(UnknownEncoder, match="no encoder 'somebody/nothing' here, and the hub.*offline and more"):
        open_encoder("somebody/nothing")
    with pytest.raises(UnknownEncoder, match="no encoder 'no/such/folder'; .*its id on the hub"):
        open_encoder("no/such/folder")


@pytest.mark.parametrize("which", ["bert", "mini-unet"])
def test_an_untrained_twin_has_the_design_and_other_weights(which, saved, tmp_path):
    folder = saved
    if which == "mini-unet":
        folder = tmp_path / "mini"
        MiniUNet.tiny().save(folder)
    before = torch.random.get_rng_state()
    trained, twin, again, other = (open_encoder(folder, "cpu", untrained=seed) for seed in (None, 1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    states = [encode_layers(one, ["红色的猫"])[0] for one in (trained, twin, again, other)]
    assert len({reading.states.shape for reading in states}) == 1
    assert states[0].attention.shape == states[1].attention.shape
    np.testing.assert_array_equal(states[1].states, states[2].states)
    assert not np.allclose(states[0].states, states[1].states) and not np.allclose(states[1].states, states[3].states)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_trace_says_which_weights_were_read(saved, tmp_path, sharded):
    home = tmp_path / "encoder"
    shutil.copytree(saved, home)
    if sharded:
        transformers.AutoModel.from_pretrained(home).save_pretrained(home, max_shard_size="20KB")
        (home / "model.safetensors").unlink()
    files = sorted(home.glob("*.safetensors"))
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert (len(files) > 1) == sharded
    record_texts(str(home), ["猫"], tmp_path / "run")
    told = open_encoder_trace(tmp_path / "run").manifest.model.weights_sha256
    assert told == (sums[0] if not sharded else hashlib.sha256(" ".join(sums).encode()).hexdigest())
    assert open_encoder(str(home), untrained=0).weights_sha256() is None
    assert open_encoder("mini-unet").weights_sha256() == load("mini-unet", "cpu").weights_sha256


def test_the_encoder_half_as_a_pipeline_saves_it(tmp_path):
    """Its configuration says that it is no encoder-decoder, and it has no decoder that could be missed."""
    model, tokenizer = made("t5")
    alone = transformers.T5EncoderModel(deepcopy(model.config))
    alone.encoder.load_state_dict(model.encoder.state_dict())
    alone.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    states = encode_layers(open_encoder(tmp_path / "half", "cpu"), ["红色的猫"], attention=False)[0].states
    whole = encode_layers(wrap_encoder(model, tokenizer), ["红色的猫"], attention=False)[0].states
    np.testing.assert_allclose(states, whole, atol=1e-6)
