"""Whatever goes wrong: nothing is missed in silence, and what is finished stays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.recording.tiny_runs import PROMPT, draw, recorded, same
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import UnknownFamily, UnknownSite
from toushi.probe.recording.record import record
from toushi.probe.recording.unrecordable import Unrecordable
from toushi.probe.session.map_grid import UnknownGrid, grid_of
from toushi.probe.session.row_matching import BranchMismatch, match_rows
from toushi.probe.text.alignment import UnknownWord
from toushi.probe.trace import writer
from toushi.probe.trace.open import open_collection, open_trace
from toushi.probe.trace.trace_errors import WriteFailed


@pytest.mark.parametrize("trouble", [ValueError("inside"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 2])
def test_a_run_that_is_broken_off(model, tmp_path, trouble, at):
    plain = draw(model)

    def callback(index, latents):
        if index == at:
            raise trouble

    with pytest.raises(type(trouble)), record(model, tmp_path / "run"):
        draw(model, steps=5, callback=callback)
    trace = open_trace(tmp_path / "run")
    assert not trace.complete and trace.steps == list(range(at + 1)) and trace.image() is None
    assert trace.verify() == [f"The run did not end: {at + 1} of 5 steps are finished."]
    assert np.array_equal(draw(model), plain)


def test_an_exception_inside_the_denoiser(model, tmp_path, monkeypatch):
    plain, calls = draw(model), []

    def forward(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return type(model.unet.middle).forward(model.unet.middle, *arguments)

    monkeypatch.setattr(model.unet.middle, "forward", forward)
    with pytest.raises(RuntimeError, match="out of memory"), record(model, tmp_path / "run"):
        draw(model, steps=5)
    monkeypatch.undo()
    vars(model.unet.middle).pop("forward", None)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0, 1] and not trace.complete
    assert np.array_equal(draw(model), plain)


def test_a_run_after_one_that_failed_in_the_same_recording(model, tmp_path):
    def fail(index, latents):
        raise ValueError

    with record(model, tmp_path / "run"):
        with pytest.raises(ValueError):
            draw(model, callback=fail)
        draw(model)
    first, second = open_collection(tmp_path / "run")
    assert not first.complete and second.complete and not second.verify()


def test_the_disk_gives_out(model, tmp_path, monkeypatch):
    write_with_digest = writer.write_with_digest

    def full(path, *how, **more):
        if path.name == "step_0001.safetensors":
            raise OSError(28, "No space left on device")
        return write_with_digest(path, *how, **more)

    monkeypatch.setattr(writer, "write_with_digest", full)
    with pytest.raises(WriteFailed, match="No space left"), record(model, tmp_path / "run"):
        draw(model, steps=8)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0] and not trace.complete


def test_a_site_that_does_not_exist(model, tmp_path):
    with pytest.raises(UnknownSite, match=r"unet\.down\.0\.cross_attention"):
        record(model, tmp_path / "run", sites="unet.down.0.cros_attention")
    with pytest.raises(UnknownSite):
        record(model, tmp_path / "run", sites=[])
    assert not (tmp_path / "run").exists()


def test_a_word_that_is_not_in_the_prompt(model, tmp_path):
    with pytest.raises(UnknownWord, match="猫"), record(model, tmp_path / "run", words="猫头鹰"):
        draw(model)


@pytest.mark.parametrize(
    "wrong",
    [{"keep": "all"}, {"branches": "negative"}, {"dtype": "int8"}, {"words": []}, {"steps": []}, {"branches": []}],
)
def test_wrong_arguments(model, tmp_path, wrong):
    with pytest.raises(ToushiError):
        record(model, tmp_path / "run", **wrong)


def test_a_branch_that_the_run_does_not_have(model, tmp_path):
    with pytest.raises(Unrecordable, match="uncond.*has cond"), record(model, tmp_path / "run", branches="uncond"):
        draw(model, guidance=1.0)


def test_a_step_that_the_run_does_not_have(model, tmp_path):
    with pytest.raises(ToushiError, match="no step 7"), record(model, tmp_path / "run", steps=7):
        draw(model, steps=3)


def test_a_model_of_no_family(tmp_path):
    with pytest.raises(UnknownFamily, match="mini-unet"):
        record(torch.nn.Linear(2, 2), tmp_path / "run")


def test_nothing_drawn_is_said(model, tmp_path):
    with pytest.raises(ToushiError, match="nothing was sampled"), record(model, tmp_path / "run"):
        pass


def test_a_folder_with_other_files_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WriteFailed), record(model, tmp_path, overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_queries_that_are_changed_in_place_are_refused(model, tmp_path, monkeypatch):
    import toushi.probe.models.unet as unet

    class Namespace:
        def __getattr__(self, name):
            return getattr(F, name)

        @staticmethod
        def scaled_dot_product_attention(q, k, v, attn_mask=None):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
            q.zero_()
            return out

    monkeypatch.setattr(unet, "F", Namespace())
    with pytest.raises(Unrecordable, match="changed in place"), record(model, tmp_path / "run"):
        draw(model)


@pytest.mark.parametrize("held", [0, 20_000])
def test_reading_at_once_or_at_the_end_is_the_same(model, tmp_path, monkeypatch, held):
    _, late = recorded(model, tmp_path / "late")
    monkeypatch.setattr("toushi.probe.recording.run_recorder.PENDING_MAX_BYTES", held)
    _, early = recorded(model, tmp_path / "early")
    assert same(early.attention(), late.attention()) and list(early.sites) == list(late.sites)


def test_attention_that_cannot_be_read_is_refused(model, tmp_path, monkeypatch):
    import toushi.probe.models.unet as unet

    def explicit_attention(q, k, v, attn_mask=None):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return scores.masked_fill(~attn_mask, -torch.inf).softmax(-1) @ v

    class Namespace:
        scaled_dot_product_attention = staticmethod(explicit_attention)

        def __getattr__(self, name):
            return getattr(F, name)

    monkeypatch.setattr(unet, "F", Namespace())
    with pytest.raises(Unrecordable, match="scaled_dot_product_attention"), record(model, tmp_path / "run"):
        draw(model)
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_text_that_was_not_encoded_inside_is_refused(model, tmp_path):
    text = model.encode_text([PROMPT])
    with pytest.raises(BranchMismatch, match="Encode the prompts inside"), record(model, tmp_path / "run"):
        model.scheduler.set_timesteps(1)
        model.scheduler.step(lambda x, time: model.unet(x, torch.full((1,), time), text), model.noise(1, 64, 64, 0), 0)


@pytest.mark.parametrize("site", ["encoder.layers.5.attention", "encoder.layers.5"])
def test_rows_of_the_text_encoder_that_are_no_texts_are_refused(model, tmp_path, site):
    repeat = model.get_submodule(site).register_forward_pre_hook(
        lambda _, inputs: tuple(torch.cat([x, x]) for x in inputs)  # states and mask
    )
    expected = "expected 1 rows, one for each text, but 2 came"
    with repeat, pytest.raises(Unrecordable, match=expected), record(model, tmp_path / "run"):
        draw(model)


def test_texts_are_matched_by_value_and_a_mismatch_names_both_shapes():
    a, b, c = (torch.full((n, 4), float(n)) for n in (3, 5, 7))
    texts = {"cond": [a], "uncond": [b]}
    assert match_rows([b, a], texts, ("uncond", "cond")) == [("uncond", 0), ("cond", 0)]
    assert match_rows([a, b], texts, ("uncond", "cond")) == [("cond", 0), ("uncond", 0)]
    assert match_rows([a], texts, ("uncond", "cond")) == [("cond", 0)]
    with pytest.raises(BranchMismatch, match=r"\(7, 4\).*cond \(3, 4\), uncond \(5, 4\)"):
        match_rows([c], texts, ("uncond", "cond"))


def test_equal_texts_follow_the_familys_order():
    a, b = torch.ones(3, 4), torch.zeros(3, 4)
    both = {"cond": [a, b], "uncond": [a, a]}
    rows = [a, a, a, b]
    assert match_rows(rows, both, ("uncond", "cond")) == [("uncond", 0), ("uncond", 1), ("cond", 0), ("cond", 1)]
    assert match_rows([a, b], both, ("uncond", "cond")) == [("cond", 0), ("cond", 1)]
    assert match_rows([a, b, a, a], both, ("cond", "uncond")) == [
        ("cond", 0),
        ("cond", 1),
        ("uncond", 0),
        ("uncond", 1),
    ]
    with pytest.raises(BranchMismatch, match="several pictures of one prompt"):
        match_rows([a] * 4, {"cond": [a]}, ("cond",))


@pytest.mark.parametrize(
    "latent, cells, grid",
    [
        ((16, 16), 256, (16, 16)),
        ((16, 16), 16, (4, 4)),
        ((8, 24), 48, (4, 12)),
        ((9, 15), 40, (5, 8)),
        ((4, 28), 7, (1, 7)),
    ],
)
def test_the_grid_is_found_from_the_latent(latent, cells, grid):
    assert grid_of(latent, cells) == grid


def test_a_grid_that_is_none_is_refused():
    with pytest.raises(UnknownGrid, match="77 image positions are no whole fraction of a latent of 16x16 cells"):
        grid_of((16, 16), 77)
