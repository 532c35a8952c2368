"""Z-Image's denoiser against its released index and against diffusers' class, on tiny random weights."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.dit import DiT, DiTConfig, padded_length, rope_cos_sin

transformer_z_image = pytest.importorskip("diffusers.models.transformers.transformer_z_image")

RELEASED = json.loads(
    """{"_class_name": "ZImageTransformer2DModel", "all_f_patch_size": [1], "all_patch_size": [2],
    "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "dim": 3840, "in_channels": 16,
    "n_heads": 30, "n_kv_heads": 30, "n_layers": 30, "n_refiner_layers": 2, "norm_eps": 1e-05, "qk_norm": true,
    "rope_theta": 256.0, "t_scale": 1000.0}"""
)
TINY = RELEASED | {
    "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16,
    "axes_dims": [8, 4, 4], "axes_lens": [258, 32, 32],
}  # fmt: skip


def theirs(config: dict):
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return transformer_z_image.ZImageTransformer2DModel(**settings)


def released_names() -> list[str]:
    names = []
    for line in (Path(__file__).parent / "z_image_tensors.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        stem, _, inner = line.partition(": ")
        if not inner:
            names.append(stem)
            continue
        part, count = stem.split(" * ")
        names += [f"{part}.{i}.{name}" for i in range(int(count)) for name in inner.split()]
    return names


@pytest.fixture(scope="module")
def pair() -> tuple[DiT, torch.nn.Module]:
    """Ours and diffusers' with the same weights. All of them are random: a scale or a pad token left at its usual
    1 or 0 would hide whether it is used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = DiT(DiTConfig.from_released(TINY)).eval().requires_grad_(False)
        for name, parameter in ours.named_parameters():
            fan_in = parameter.shape[-1] if parameter.dim() == 2 else 10
            parameter.normal_(1.0 if parameter.dim() == 1 and "bias" not in name else 0.0, fan_in**-0.5)
    reference = theirs(TINY).eval().requires_grad_(False)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return ours, reference


def evaluated(pair, latents, time, texts) -> tuple[torch.Tensor, torch.Tensor]:
    ours, reference = pair
    released = reference([picture[:, None] for picture in latents], time, list(texts), return_dict=False)[0]
    return ours(latents, time, texts), torch.stack(released)[:, :, 0]


def inputs(lengths: list[int], height: int, width: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(lengths), 16, height, width, generator=generator)
    time = torch.rand(len(lengths), generator=generator)
    return latents, time, [torch.randn(n, 16, generator=generator) * 3 for n in lengths]


def test_names_are_those_of_the_released_index():
    with torch.device("meta"):
        ours = DiT(DiTConfig())
    names = released_names()
    assert len(names) == len(set(names)) == 521
    assert set(ours.state_dict()) == set(names)


def test_the_default_config_and_its_shapes_are_the_released_ones():
    assert DiTConfig() == DiTConfig.from_released(RELEASED)
    with torch.device("meta"):
        ours, reference = DiT(DiTConfig()), theirs(RELEASED)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in reference.state_dict().items()
    }
    assert all(RELEASED[name] == (list(v) if isinstance(v, tuple) else v) for name, v in asdict(DiTConfig()).items())


@pytest.mark.parametrize(
    ("lengths", "height", "width"),
    [
        ([9], 8, 8),  # pads on both sides: 16 cells, 9 tokens
        ([32], 8, 16),  # no pads at all
        ([40, 9, 33], 12, 8),  # captions of 64, 32 and 64 with pads: one of them is masked
        ([1, 70], 6, 22),  # wide, 33 cells
        ([5, 12], 22, 6),  # high; both captions fill up to 32, so nothing is masked
    ],
)
def test_output_is_that_of_diffusers(pair, lengths, height, width):
    ours, released = evaluated(pair, *inputs(lengths, height, width))
    assert ours.shape == released.shape == (len(lengths), 16, height, width)
    assert released.std() > 0.1
    assert (ours - released).abs().max() <= 1e-5


def test_positions_are_taken_to_their_very_end(pair):
    """256 tokens of text from 1 on, then the image: 258 places; 32 columns."""
    ours, released = evaluated(pair, *inputs([250], 2, 64))
    assert (ours - released).abs().max() <= 1e-5


def test_rotations_are_those_of_diffusers_where_angles_are_large():
    config = DiTConfig()
    embedder = transformer_z_image.RopeEmbedder(config.rope_theta, config.axes_dims, config.axes_lens)
    positions = torch.tensor([[1535, 511, 511], [1000, 300, 7], [0, 0, 0]])
    cos, sin = rope_cos_sin(positions[None], config)
    expected = embedder(positions)
    assert (torch.complex(cos, sin)[0, 0] - expected).abs().max() <= 1e-6


def test_a_batch_gives_what_each_row_gives_alone(pair):
    latents, time, texts = inputs([70, 3], 8, 12)
    model = pair[0]
    together = model(latents, time, texts)
    for i in range(2):
        alone = model(latents[i : i + 1], time[i : i + 1], texts[i : i + 1])
        assert (together[i : i + 1] - alone).abs().max() <= 1e-5


def test_pads_are_attended(pair):
    model = pair[0]
    latents, time, texts = inputs([9], 8, 8)
    before = model(latents, time, texts)
    for token in (model.x_pad_token, model.cap_pad_token):
        kept = token.clone()
        token.add_(1)
        assert (model(latents, time, texts) - before).abs().max() > 1e-3
        token.copy_(kept)
    assert torch.equal(model(latents, time, texts), before)


def test_each_attention_can_be_intercepted_and_joins_image_and_text(pair, monkeypatch):
    seen, original = [], F.scaled_dot_product_attention

    def reading(query, key, value, **kwargs):
        seen.append((query.shape[2], kwargs["attn_mask"]))
        return original(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", reading)
    pair[0](*inputs([40, 9], 12, 8))
    image, text = padded_length(24), padded_length(40)
    assert [n for n, _ in seen] == [image, text, image + text, image + text]
    assert seen[0][1] is None
    assert seen[-1][1].sum(dim=-1).flatten().tolist() == [image + 64, image + 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(texts=[torch.zeros(9, 16)]), "2 latents, 2 times and 1 texts"),
        (dict(time=torch.zeros(1)), "2 latents, 1 times"),
        (dict(latents=torch.zeros(2, 16, 7, 8)), "even number of cells"),
        (dict(latents=torch.zeros(2, 16, 2, 66)), "positions reach"),
        (dict(texts=[torch.zeros(257, 16), torch.zeros(1, 16)]), r"positions reach .* \(290, 4, 4\)"),
        (dict(texts=[torch.zeros(9, 16), torch.zeros(0, 16)]), "no tokens"),
    ],
)
def test_errors_say_what_came(pair, change, message):
    latents, time, texts = inputs([9, 9], 8, 8)
    with pytest.raises(ToushiError, match=message):
        pair[0](**dict(latents=latents, time=time, texts=texts) | change)


def test_a_design_that_is_not_this_one_is_refused():
    for other in ({"n_kv_heads": 10}, {"all_patch_size": [2, 4]}, {"siglip_feat_dim": 1152}, {"qk_norm": False}):
        (name,) = other
        with pytest.raises(ToushiError, match=name):
            DiTConfig.from_released(RELEASED | other)
