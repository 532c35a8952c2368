"""Concepts: what the image would attend to outside its prompt."""

import diffusers
import numpy as np
import pytest

from tests.pipelines.tiny import draw, made
from toushi import load, main, open_collection, open_trace, record
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.resume import resume

PROMPT = "左边是猫，右边是月亮"
FAMILIES = ["stable-diffusion", "stable-diffusion-xl", "pixart", "sana", "hunyuan-dit", "kolors"]


@pytest.fixture(scope="module")
def model():
    return MiniUNet.tiny(layers=2)


def drawn(model, folder, prompt=PROMPT, **options):
    with record(model, folder, dtype="float32", **options):
        return model.sample(prompt, steps=3, seed=0)


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
def test_a_word_of_this_prompt_given_as_a_concept_has_the_words_map(model, tmp_path, keep):
    drawn(model, tmp_path / "run", concepts=[f"猫@{PROMPT}", f"月亮@{PROMPT}"], keep=keep)
    trace = open_trace(tmp_path / "run")
    for word in ("猫", "月亮"):
        concept = trace.attention(f"{word}@{PROMPT}", branch="concepts")
        assert np.abs(concept - trace.attention(word)).max() < 2e-6
    assert trace.verify() == []


def test_the_picture_and_the_other_maps_are_the_same(model, tmp_path):
    bare = drawn(model, tmp_path / "bare")
    assert np.array_equal(drawn(model, tmp_path / "run", concepts="a dog"), bare)
    one, other = (open_trace(tmp_path / name) for name in ("bare", "run"))
    assert other.branches == [*one.branches, "concepts"]
    for step in one.steps:
        for key in one.files.step(step).keys:
            assert np.array_equal(one.files.step(step).read(key), other.files.step(step).read(key))


def test_another_text_is_another_map(model, tmp_path):
    concepts = ["猫", "dog", "动物", f"猫@{PROMPT}"]
    drawn(model, tmp_path / "run", concepts=concepts)
    trace = open_trace(tmp_path / "run")
    assert [word.text for word in trace.words("concepts")] == concepts
    found = [trace.heat_map(name, branch="concepts") for name in concepts]
    assert all(np.isfinite(one).all() and (one > 0).all() for one in found)
    assert all(np.abs(one - other).max() > 1e-4 for i, one in enumerate(found) for other in found[:i])


def test_each_picture_of_a_batch_has_its_own(model, tmp_path):
    alone = {}
    for prompt in (PROMPT, "a red dog"):
        drawn(model, tmp_path / prompt, prompt, concepts=["dog"])
        alone[prompt] = open_trace(tmp_path / prompt).heat_map("dog", branch="concepts")
    drawn(model, tmp_path / "batch", list(alone), concepts=["dog"])
    for trace, expected in zip(open_collection(tmp_path / "batch"), alone.values()):
        assert np.abs(trace.heat_map("dog", branch="concepts") - expected).max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_law_holds_in_families_with_cross_attention(name, tmp_path):
    pipeline, prompt = made(name), "a cat on the left"
    bare = np.asarray(draw(pipeline, prompt)[0])
    with record(pipeline, tmp_path / "run", dtype="float32", concepts=[f"cat@{prompt}", "moon"]):
        assert np.array_equal(np.asarray(draw(pipeline, prompt)[0]), bare)
    trace = open_trace(tmp_path / "run")
    ours, theirs = trace.heat_map("cat"), trace.heat_map(f"cat@{prompt}", branch="concepts")
    assert np.abs(ours - theirs).max() < 2e-6
    assert float(trace.heat_map("moon", branch="concepts").max()) > 0


def test_joint_attention_is_refused_with_the_reason(tmp_path):
    pipeline = made("flux")
    with pytest.raises(ToushiError, match="joint attention"), record(pipeline, tmp_path / "run", concepts=["dog"]):
        draw(pipeline)
    draw(pipeline)  # and the pipeline goes on as before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("concept", "reason"), [("", "a concept is"), ("鸟@一只猫", "鸟"), ("@ ", "a concept is")])
def test_what_is_no_concept_is_refused(model, tmp_path, concept, reason):
    with pytest.raises(ToushiError, match=reason), record(model, tmp_path / "run", concepts=[concept]):
        pass


def test_concepts_need_sites_and_labels(model, tmp_path):
    with (
        pytest.raises(ToushiError, match="an attention of the image to the text"),
        record(model, tmp_path / "run", concepts="dog", sites="encoder.*"),
    ):
        pass
    parts = made("stable-diffusion").components
    unknown = diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    with (
        pytest.raises(ToushiError, match="not known here"),
        record(unknown, tmp_path / "run", concepts="dog"),
    ):
        pass


def test_the_command_draws_them(tmp_path, capsys, figures_in_this_process):
    options = ["--steps", "2", "--out", str(tmp_path / "run")]
    assert main(["trace", "左边是猫", "--concepts", "dog", "猫@左边是猫", *options]) == 0
    out = capsys.readouterr().out
    assert "concept" in out and "猫@左边是猫" in out
    assert (tmp_path / "run" / "concepts.png").stat().st_size > 5000
    assert open_trace(tmp_path / "run").verify() == []


def test_an_interrupted_run_goes_on_with_them(tmp_path):
    model = load("mini-unet")

    class Stop(Exception):
        pass

    def stop(index, latents):
        if index == 1:
            raise Stop

    drawn(model, tmp_path / "whole", concepts=["dog"])
    with pytest.raises(Stop), record(model, tmp_path / "run", dtype="float32", concepts=["dog"]):
        model.sample(PROMPT, steps=3, seed=0, callback=stop)
    resume(model, tmp_path / "run")
    whole, resumed = (open_trace(tmp_path / name) for name in ("whole", "run"))
    assert resumed.complete and resumed.branches == whole.branches
    first, second = (trace.attention("dog", branch="concepts", steps=2).values for trace in (whole, resumed))
    assert np.array_equal(first, second, equal_nan=True)  # NaN: some sites have fewer heads


def test_without_the_branch_of_the_prompt_they_are_refused(model, tmp_path):
    with pytest.raises(ToushiError, match="add cond"):
        record(model, tmp_path / "run", concepts="dog", branches="uncond")
