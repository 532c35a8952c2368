"""One follower of a run: shared by everybody, told in order, gone at the end."""

import numpy as np
import pytest
import torch

from tests.recording.tiny_runs import PROMPT, draw, same
from toushi.probe.base.errors import ToushiError
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.record import record
from toushi.probe.session.sampling_session import session_of, subscribe
from toushi.probe.session.subscriber import Subscriber
from toushi.probe.trace.open import open_trace

MIDDLE = "unet.middle.cross_attention"
LAYER = "encoder.layers.5"


@pytest.fixture(scope="module")
def model():
    return MiniUNet.tiny()


class Diary(Subscriber):
    """Every event, in words."""

    sites = MIDDLE

    def __init__(self):
        self.events, self.rows, self.latents = [], [], []

    def on_sample(self, arguments):
        self.events.append(f"sample {arguments['steps']}")

    def on_prompts(self, prompts, call):
        self.events.append(f"prompts {' '.join(prompts)}")

    def on_run_begin(self, run):
        self.events.append(f"begin {run.count}")

    def on_evaluation(self, evaluation):
        self.events.append("evaluation")
        self.rows.append(evaluation.rows)

    def on_attention(self, call):
        self.events.append(f"attention {call.site}")

    def on_step(self, run, step):
        self.events.append(f"step {run.index}")
        self.latents.append(step.latents.clone())

    def on_run_end(self, run, images, result, error):
        self.events.append("end" if error is None else f"end {type(error).__name__}")


def test_the_events_of_a_run_in_their_order(model):
    with subscribe(model, diary := Diary()):
        draw(model, steps=2)
    step = ["evaluation", f"attention {MIDDLE}"]
    assert diary.events == ["sample 2", "prompts cond uncond", "begin 2", *step, "step 0", *step, "step 1", "end"]
    assert diary.rows == [[("uncond", 0), ("cond", 0)]] * 2
    assert session_of(model) is None


def test_a_subscriber_changes_nothing(model):
    free = draw(model)
    with subscribe(model, Diary()):
        assert same(draw(model), free)


def test_the_latents_are_those_of_the_sampler(model):
    kept = []
    with subscribe(model, diary := Diary()):
        model.sample(PROMPT, steps=3, callback=lambda index, latents: kept.append(latents.clone()))
    assert all(map(torch.equal, diary.latents, kept)) and len(kept) == 3


def test_all_subscribers_share_one_session(model, tmp_path):
    with subscribe(model, Diary()) as session:
        with record(model, tmp_path / "run") as recording, subscribe(model, Diary()) as inner:
            assert inner is session is recording.session is session_of(model)
            draw(model)
        assert session_of(model) is session
    assert session_of(model) is None and not vars(model).keys() & {"sample", "encode_prompt", "denoise"}


def test_what_a_subscriber_raises_ends_the_run_and_leaves_nothing(model, tmp_path):
    class Stop(Subscriber):
        def on_step(self, run, step):
            if run.index == 1:
                raise ToushiError("enough")

    with (
        pytest.raises(ToushiError, match="enough"),
        record(model, tmp_path / "run"),
        subscribe(model, diary := Diary()),
        subscribe(model, Stop()),
    ):
        draw(model)
    assert diary.events[-1] == "end ToushiError" and session_of(model) is None
    assert open_trace(tmp_path / "run").steps == [0, 1] and not open_trace(tmp_path / "run").complete


class Remark(Subscriber):
    def __init__(self, name):
        self.name = name

    def describe(self):
        return {self.name: "a cat"}


class Note(Remark):
    pass


def test_each_subscriber_describes_fields_of_its_own(model, tmp_path):
    with record(model, tmp_path / "run"), subscribe(model, Remark("remark")), subscribe(model, Note("note")):
        draw(model)
    manifest = open_trace(tmp_path / "run").manifest
    assert manifest.remark == manifest.note == "a cat" and manifest.edits == []


def test_two_subscribers_that_describe_one_field_are_refused(model, tmp_path):
    with (
        pytest.raises(ToushiError, match="the manifest field 'note': Remark and Note.*rename"),
        record(model, tmp_path / "run"),
        subscribe(model, Remark("note")),
        subscribe(model, Note("note")),
    ):
        draw(model)
    assert not (tmp_path / "run/manifest.json").exists()


@pytest.mark.parametrize("name", ["prompt", "seed", "versions"])
def test_a_subscriber_that_describes_a_field_of_the_recording_is_refused(model, tmp_path, name):
    with (
        pytest.raises(ToushiError, match=f"'{name}', which a recording writes"),
        record(model, tmp_path / "run"),
        subscribe(model, Remark(name)),
    ):
        draw(model)


def test_an_evaluation_between_two_steps_is_no_part_of_the_run(model):
    latents = model.noise(1, 64, 64, 0)

    class Aside(Diary):
        def on_step(self, run, step):
            super().on_step(run, step)
            if not run.single:
                model.denoise(latents, 0.5, "猫")

    with subscribe(model, diary := Aside()):
        draw(model, steps=2)
    assert [e for e in diary.events if e.startswith(("begin", "step", "end"))] == [
        *("begin 2", "step 0", "begin 1", "step 0", "end"),
        *("step 1", "begin 1", "step 0", "end"),
        "end",
    ]


def test_attention_is_recorded_as_before_an_edit_and_states_as_after_it_whoever_comes_first(model, tmp_path):
    edits = [Edit(MIDDLE, "zero", word="猫"), Edit(LAYER, "scale", word="月亮", factor=0.5)]
    with record(model, tmp_path / "inside", dtype="float32"), edit(model, edits):
        first = draw(model)
    with edit(model, edits), record(model, tmp_path / "around", dtype="float32"):
        second = draw(model)
    with record(model, tmp_path / "free", dtype="float32"):
        draw(model)
    inside, around, free = (open_trace(tmp_path / name) for name in ("inside", "around", "free"))
    assert same(first, second) and inside.manifest.edits == around.manifest.edits != []
    for site, maps in inside.attention(grid="native").items():
        assert same(maps, around.attention(grid="native")[site])
    assert inside.attention("猫", sites=MIDDLE).max() > 0  # before the edit, which zeroes it
    states, plain = inside.encoder_states(), free.encoder_states()
    assert same(states, around.encoder_states())
    positions = [token.position for token in inside.tokens() if token.text in "月亮"]
    assert np.allclose(states.sel(layer=6)[positions], 0.5 * plain.sel(layer=6)[positions], atol=1e-6)


def test_an_edit_of_the_encoder_runs_it_once(model):
    runs = []
    handle = model.encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        with edit(model, Edit(LAYER, "zero", word="猫")):
            draw(model)
    finally:
        handle.remove()
    assert len(runs) == 2  # the prompt, and the empty negative prompt


def test_an_evaluation_aside_leaves_the_recorded_encoder_alone(model, tmp_path):
    latents = model.noise(1, 64, 64, 0)
    with record(model, tmp_path / "plain"):
        draw(model, steps=3)
    with record(model, tmp_path / "run", steps=[2]):
        model.sample(PROMPT, steps=3, callback=lambda index, _: model.denoise(latents, 0.5, "狗"))
    plain, trace = open_trace(tmp_path / "plain"), open_trace(tmp_path / "run")
    assert same(trace.encoder_states(), plain.encoder_states()) and not trace.verify()
    assert same(trace.attention(), plain.attention(steps=[2]))


def test_a_run_that_cannot_begin_does_not_hide_the_next_one(model, tmp_path):
    latents = model.noise(1, 64, 64, 0)
    with record(model, tmp_path / "run", steps=[3]):
        with pytest.raises(ToushiError, match="no step 3"):
            model.denoise(latents, 0.5, "猫")
        with pytest.raises(ToushiError, match="no step 3"):
            model.denoise(latents, 0.5, "猫")
        draw(model, steps=5)
    assert open_trace(tmp_path / "run").steps == [3]


def test_a_loop_by_hand_that_is_over_does_not_swallow_an_evaluation(model, tmp_path):
    latents = model.noise(1, 64, 64, 0)
    with edit(model, Edit(MIDDLE, "scale", word="猫", factor=1.0)):
        model.scheduler.set_timesteps(1)
        model.scheduler.step(lambda latents, t: model.denoise(latents, t, "猫"), latents, 0)
        with record(model, tmp_path / "run"):
            model.denoise(latents, 0.5, "猫")
    assert open_trace(tmp_path / "run").steps == [0]


def test_one_subscriber_that_fails_at_the_end_does_not_cost_the_trace_its_picture(model, tmp_path):
    class Fails(Subscriber):
        def on_run_end(self, run, images, result, error):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), subscribe(model, Fails()), record(model, tmp_path / "run"):
        draw(model)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.image() is not None and not trace.verify()


def test_what_the_encoder_computed_is_not_kept_alive(model, tmp_path):
    captures = []
    with record(model, tmp_path / "run") as recording:
        model.sample(PROMPT, steps=1, callback=lambda *_: captures.append(recording.capture))
    assert captures == [None] and not recording.session.prompts and recording.session.evaluation is None
