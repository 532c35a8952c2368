"""A run that was broken off and gone on with ends as if nothing had happened."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.recording.tiny_runs import PROMPT, draw, recorded, same
from toushi.probe.base.errors import ToushiError
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.record import record
from toushi.probe.resume import CannotResume, resume
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.open import open_trace

STEPS = 5


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A model with weights that are saved, so that they can be known again."""
    folder = tmp_path_factory.mktemp("model")
    MiniUNet.tiny().save(folder, torch.float32)
    return MiniUNet.from_folder(folder)


def broken_off(model, folder, after, *, keeping=None, edits=None, **named):
    """Ends in the midst of the run, when `after` steps are finished."""

    def callback(index, latents):
        if index == after - 1:
            raise Stop

    with pytest.raises(Stop), record(model, folder, **(keeping or {})), edit(model, edits) if edits else nullcontext():
        draw(model, steps=STEPS, callback=callback, **named)
    return open_trace(folder)


def alike(one, two):
    """Every array of both traces."""
    assert one.verify() == [] and two.verify() == []
    assert one.steps == two.steps and one.complete and two.complete
    assert same(one.image(), two.image())
    names = sorted(path.name for path in one.folder.iterdir())
    assert names == sorted(path.name for path in two.folder.iterdir())
    for name in names:
        if name.endswith((".safetensors", ".png")):
            assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name
    ignored = {"argv", "files", "git"}
    first, second = ({k: v for k, v in trace.manifest.as_dict().items() if k not in ignored} for trace in (one, two))
    for manifest in (first, second):
        manifest["arguments"].pop("callback", None)  # the one that broke the run off
    assert first == second


@pytest.mark.parametrize(
    "keeping, named",
    [
        ({}, {}),
        ({"keep": "sum"}, {"sampler": "heun"}),
        ({"keep": "mean", "words": ["猫", (6, 7)], "dtype": "float32"}, {"guidance": 1.0}),
        ({"steps": [0, 1, 4], "sites": "unet.up.*.cross_attention"}, {"size": (48, 96), "negative": "狗"}),
        ({"steps": [0, 1]}, {}),  # all that is kept is there, but the picture has steps to go
    ],
)
def test_the_end_is_the_same(model, tmp_path, keeping, named):
    recorded(model, tmp_path / "whole", steps=STEPS, keeping=keeping, **named)
    broken = broken_off(model, tmp_path / "broken", 2, keeping=keeping, **named)
    assert not broken.complete and broken.steps == [0, 1]
    picture = resume(model, tmp_path / "broken")
    assert same(picture, open_trace(tmp_path / "whole").image())
    alike(open_trace(tmp_path / "whole"), open_trace(tmp_path / "broken"))


def test_the_budget_is_the_run_s_own(model, tmp_path, monkeypatch):
    monkeypatch.setattr("toushi.probe.resume.DEFAULT_BUDGET", 1)  # what a trace without one would be given
    broken_off(model, tmp_path / "run", 2, keeping={"budget": 10**7})
    resume(model, tmp_path / "run")
    assert open_trace(tmp_path / "run").complete


def test_edits_go_on_too(model, tmp_path):
    edits = [
        Edit("unet.*.cross_attention", "zero", word="猫", steps="1:4"),
        Edit("encoder.layers.2", "zero", word="猫"),
    ]
    with edit(model, edits):
        recorded(model, tmp_path / "whole", steps=STEPS)
    broken_off(model, tmp_path / "broken", 3, edits=edits)
    resume(model, tmp_path / "broken")
    alike(open_trace(tmp_path / "whole"), open_trace(tmp_path / "broken"))


def test_only_the_picture_is_missing(model, tmp_path):
    recorded(model, tmp_path / "whole", steps=STEPS)
    broken_off(model, tmp_path / "broken", STEPS)
    resume(model, tmp_path / "broken")
    alike(open_trace(tmp_path / "whole"), open_trace(tmp_path / "broken"))


def test_what_a_kill_leaves_half_done_is_cleared_away(model, tmp_path):
    recorded(model, tmp_path / "whole", steps=STEPS)
    broken_off(model, tmp_path / "broken", 2)
    folder = tmp_path / "broken"
    (folder / "step_0002.safetensors").write_bytes(b"renamed, not listed")
    (folder / "step_0003.safetensors.tmp").write_bytes(b"half")
    with (folder / layout.STEPS).open("ab") as file:
        file.write(b'{"step": 2, "file": "step_0')
    resume(model, folder)
    alike(open_trace(tmp_path / "whole"), open_trace(folder))


def test_a_kill_before_the_older_sum_is_removed(model, tmp_path):
    recorded(model, tmp_path / "whole", steps=STEPS, keeping={"keep": "sum"})
    folder = broken_off(model, tmp_path / "broken", 2, keeping={"keep": "sum"}).folder
    (folder / layout.step_file(0, "sum")).write_bytes((folder / layout.step_file(1, "sum")).read_bytes())
    resume(model, folder)
    alike(open_trace(tmp_path / "whole"), open_trace(folder))


def test_broken_off_twice(model, tmp_path):
    recorded(model, tmp_path / "whole", steps=STEPS)
    broken_off(model, tmp_path / "broken", 1)

    def callback(index, latents):
        if index == 2:
            raise Stop

    with pytest.raises(Stop):
        resume(model, tmp_path / "broken", callback)
    assert open_trace(tmp_path / "broken").steps == [0, 1, 2]
    resume(model, tmp_path / "broken")
    alike(open_trace(tmp_path / "whole"), open_trace(tmp_path / "broken"))


# --- what is refused


def changed(folder, **fields):
    path = folder / layout.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_complete_run(model, tmp_path):
    recorded(model, tmp_path / "run")
    with pytest.raises(CannotResume, match="complete"):
        resume(model, tmp_path / "run")


def test_another_computer(model, tmp_path):
    folder = tmp_path / "run"
    manifest = broken_off(model, folder, 2).manifest.as_dict()
    before = (folder / layout.STEPS).read_bytes()
    for fields, said in [
        ({"threads": 64}, "threads 64.*Load the model with threads=64"),
        ({"versions": {**manifest["versions"], "torch": "1.0"}}, "torch 1.0"),
        ({"model": {**manifest["model"], "weights_sha256": "0" * 64}}, "weights.*Load the model.*mini-unet"),
        ({"batch": 3}, "one of 3 pictures"),
        ({"seed": None}, "does not say its seed"),
    ]:
        changed(folder, **{**manifest, **fields})
        with pytest.raises(CannotResume, match=said):
            resume(model, folder)
    assert (folder / layout.STEPS).read_bytes() == before


def test_weights_that_were_never_saved(model, tmp_path):
    broken_off(model, tmp_path / "run", 2)
    with pytest.raises(CannotResume, match="never saved"):
        resume(MiniUNet.tiny(), tmp_path / "run")


def test_beginning_in_the_midst(model):
    seen = {}
    whole = draw(model, steps=4, callback=lambda index, latents: seen.setdefault(index, latents.clone()))
    assert same(draw(model, steps=4, latents=seen[1], first_step=2), whole)
    with pytest.raises(ToushiError, match=r"0\.\.4"):
        draw(model, steps=4, first_step=5)
    with pytest.raises(ToushiError, match="expected latents of shape"):
        draw(model, PROMPT, latents=seen[1][:, :4])


def test_a_recording_that_begins_in_the_midst(model, tmp_path):
    """The steps have the numbers and times that the sampler gave them, for maps and for edits."""
    seen = {}
    edits = Edit("unet.*.cross_attention", "zero", word="猫", steps="2:")
    with edit(model, edits):
        callback = lambda index, latents: seen.setdefault(index, latents.clone())  # noqa: E731
        _, whole = recorded(model, tmp_path / "whole", steps=4, callback=callback)
        _, late = recorded(model, tmp_path / "late", steps=4, latents=seen[0], first_step=1)
    assert late.steps == [1, 2, 3] and late.times == whole.times[1:] and late.complete and late.verify() == []
    for step in late.steps:
        assert np.array_equal(late.latent(step), whole.latent(step))
        assert same(late.attention(steps=step), whole.attention(steps=step))
    assert whole.manifest.seed == 0 and late.manifest.seed is None


def test_a_recording_that_begins_after_all_that_was_to_be_kept(model, tmp_path):
    seen = {}
    draw(model, steps=4, callback=lambda index, latents: seen.setdefault(index, latents.clone()))
    with (
        pytest.raises(ToushiError, match="begins at step 2, after all steps that were asked for"),
        record(model, tmp_path / "run", steps=[0, 1]),
    ):
        draw(model, steps=4, latents=seen[1], first_step=2)


def test_a_batch_says_so(model, tmp_path):
    with record(model, tmp_path / "run"):
        model.sample([PROMPT, "狗"], steps=2)
    assert {open_trace(tmp_path / "run" / name).manifest.batch for name in ("000", "001")} == {2}
    assert np.array_equal(open_trace(tmp_path / "run" / "000").steps, [0, 1])
