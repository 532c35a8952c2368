"""The app's logic without a browser: what it opens, what it refuses and how it says so."""

import json
import time
from pathlib import Path

import made_trace
import numpy as np
import pytest

from toushi.dashboards import layers_charts
from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import word_maps
from toushi.probe.analysis.layer_measures import cosine
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import open_encoder
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.mini_unet import MiniUNet

PICTURE, ENCODER = "app_pages/picture_page.py", "app_pages/encoder_page.py"
COMPARE, LAYERS = "app_pages/compare_page.py", "app_pages/layers_page.py"


def component(test) -> bytes:
    (found,) = test.get("bidi_component")
    return found.proto.bytes


def test_an_empty_gallery_says_how_to_begin(app):
    test = app()
    assert any("There are no traces in runs" in caption.value for caption in test.caption)
    assert test.text_area[0].value == "a cat on the left, a moon on the right, at night"


def test_the_gallery_lists_the_traces_and_opens_them(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "cat")
    made_trace.write(tmp_path / "runs" / "batch" / "000", prompt="猫头鹰在右边")
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "manifest.json").write_text("{")
    test = app()
    shown = [markdown.value for markdown in test.markdown]
    assert f"**{made_trace.PROMPT}**" in shown and "**猫头鹰在右边**" in shown
    test.button(key=f"open {Path('runs/cat')}").click().run()
    assert not test.exception and made_trace.PROMPT.encode("unicode-escape") in component(test)


def test_the_folder_of_the_command_line_may_hold_traces(app, tmp_path, monkeypatch):
    made_trace.write(tmp_path / "runs" / "cat", steps=1)
    made_trace.write(tmp_path / "study" / "owls" / "owl", prompt="猫头鹰在右边", steps=1)
    monkeypatch.setattr(library, "argument", lambda: str(tmp_path / "study"))
    test = app()
    shown = [markdown.value for markdown in test.markdown]
    assert "**猫头鹰在右边**" in shown and f"**{made_trace.PROMPT}**" not in shown
    test.switch_page(PICTURE).run()
    assert "record one there" in test.info[0].value, "a folder of traces is none of them"
    assert library.gallery() == tmp_path / "study"


def test_the_folder_of_the_command_line_may_be_a_trace(app, tmp_path, monkeypatch):
    folder = made_trace.write(tmp_path / "elsewhere" / "cat", steps=1)
    monkeypatch.setattr(library, "argument", lambda: str(folder))
    assert component(app()) and library.gallery() == library.RUNS
    monkeypatch.setattr(library, "argument", lambda: str(tmp_path / "nowhere"))
    assert "no such folder" in app().error[0].value


def test_nothing_open(app):
    for page in (PICTURE, COMPARE, ENCODER):
        assert "record one there" in app(page=page).info[0].value


@pytest.mark.parametrize("page", [PICTURE, COMPARE, ENCODER])
def test_a_folder_that_is_no_trace(app, tmp_path, page):
    (tmp_path / "here").mkdir()
    assert "no such folder" in app(tmp_path / "nowhere_at_all", page).error[0].value
    assert "manifest" in app(tmp_path / "here", page).error[0].value


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
@pytest.mark.parametrize("name", ["a" * 5000, "run\0s", "loop"], ids=["long", "nul", "loop"])
def test_a_folder_whose_name_the_system_refuses(app, tmp_path, name, locale):
    """One sentence in the language of the page, on every page, and another trace can be opened."""
    made_trace.write(tmp_path / "runs" / "cat", steps=1)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    said = {
        "a" * 5000: ("5000 characters", "5000 个字符"),
        "run\0s": (r"U\+0000", r"U\+0000"),
        "loop": ("cannot be opened", "打不开"),
    }
    test = app(locale=locale)
    folder = next(one for one in test.text_input if "runs/demo" in (one.placeholder or ""))
    folder.set_value(name)
    next(button for button in test.button if button.key.startswith("FormSubmitter:open")).click().run()
    for page in (PICTURE, COMPARE, ENCODER, LAYERS, "app_pages/traces_page.py"):
        test.switch_page(page).run()
        assert not test.exception
        if page in (PICTURE, COMPARE, ENCODER):
            assert said[name][locale == "zh-CN"] in test.error[0].value
    test.button(key=f"open {Path('runs/cat')}").click().run()
    assert not test.exception and component(test)


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_an_encoder_whose_name_the_system_refuses(app, locale):
    test = app(page=LAYERS, locale=locale)
    test.text_input[2].set_value("a" * 5000)
    test.button[0].click().run()
    assert not test.exception
    assert ("5000 characters", "5000 个字符")[locale == "zh-CN"] in test.error[0].value


@pytest.mark.parametrize("manifest", ["{", "[]", '{"prompt": 5}', '{"prompt": ["猫"]}', "{}", "[" * 100_000])
def test_one_damaged_trace_leaves_the_gallery_standing(app, tmp_path, manifest):
    made_trace.write(tmp_path / "runs" / "cat")
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "manifest.json").write_text(manifest)
    shown = [markdown.value for markdown in app().markdown]
    assert f"**{made_trace.PROMPT}**" in shown and "**This trace cannot be opened**" in shown


def test_a_trace_of_a_text_encoder_is_no_picture(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "cat")
    (tmp_path / "runs" / "bank").mkdir()
    (tmp_path / "runs" / "bank" / "manifest.json").write_text('{"kind": "encoder"}')
    shown = [markdown.value for markdown in app().markdown]
    assert f"**{made_trace.PROMPT}**" in shown and not any("cannot be opened" in one for one in shown)


def test_a_trace_whose_prompt_is_not_known_is_no_damaged_one(app, tmp_path):
    folder = made_trace.write(tmp_path / "runs" / "cat")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "prompt": None}))
    shown = [markdown.value.replace("\\", "") for markdown in app().markdown]
    assert "**(unknown prompt)**" in shown


def buttons(test, label):
    return [button for button in test.button if button.label == label]


def test_a_session_sees_its_own_job_and_its_place_and_can_stop_it(app):
    other = worker.start(worker.Order("狗", steps=2000), library.RUNS)
    test = app()
    assert not buttons(test, "Stop"), "that is somebody else's job"
    buttons(test, "Draw and record")[0].click().run()
    assert len(worker.running()) == 2
    buttons(test, "Draw and record")[0].click().run()
    assert len(worker.running()) == 2 and "not finished" in test.warning[0].value
    (stop,) = buttons(test, "Stop")
    stop.click().run()
    assert worker.running() == [other] and not test.exception
    other.cancel()
    wait_for_the_worker()


def test_damaged_traces_are_explained(app, tmp_path):
    folder = made_trace.write(tmp_path / "cut")
    step = folder / "step_0003.safetensors"
    step.write_bytes(step.read_bytes()[:100])
    assert "must have" in app(folder, PICTURE).error[0].value
    folder = made_trace.write(tmp_path / "nonsense")
    (folder / "manifest.json").write_text('{"format": "something else"}')
    assert "so this is no trace" in app(folder, PICTURE).error[0].value


@pytest.mark.parametrize("page", [PICTURE, ENCODER, COMPARE])
def test_a_trace_of_texts_is_no_picture(app, tmp_path, page):
    record_texts(open_encoder(MiniUNet.tiny()), ["a red cat"], tmp_path / "texts")
    shown = app(tmp_path / "texts", page)
    assert not shown.exception and "is of a text encoder" in shown.info[0].value


def test_no_step_finished(app, tmp_path):
    folder = made_trace.write(tmp_path / "run", stop_after=0)
    assert "no image\\-to\\-text attention" in app(folder, PICTURE).error[0].value


def test_an_incomplete_trace_is_shown_with_a_warning(app, tmp_path):
    test = app(made_trace.write(tmp_path / "run", stop_after=4), PICTURE)
    assert "4 steps" in test.warning[0].value and component(test)


def test_the_empty_prompt(app, tmp_path):
    folder = made_trace.write(tmp_path / "run", prompt="", steps=2)
    assert component(app(folder, PICTURE)) and component(app(folder, ENCODER))


def test_without_a_recorded_encoder_the_text_is_still_aligned(app, tmp_path):
    test = app(made_trace.write(tmp_path / "run", steps=2, sites=made_trace.CROSS), ENCODER)
    assert component(test) and test.info[0].value == "This trace has no attention of the text encoder."


def test_why_there_is_no_attention_of_the_encoder(app, tmp_path):
    unseen = {"text_encoder.layers.*.self_attn": "it attends in eager", "transformer.*": "it is linear"}
    test = app(made_trace.write(tmp_path / "run", steps=2, sites=made_trace.CROSS, not_recorded=unseen), ENCODER)
    said = test.info[0].value
    assert "no attention of the text encoder" in said and "it attends in eager" in said and "linear" not in said


@pytest.mark.parametrize("locale, said", [("en-GB", "has no single heads"), ("zh-CN", "不显示单个头")])
def test_the_text_page_says_that_it_leaves_out_single_heads(app, tmp_path, monkeypatch, locale, said):
    small, large = (made_trace.write(tmp_path / name, steps=1) for name in ("small", "large"))
    assert not any(said in caption.value for caption in app(small, ENCODER, locale).caption)
    monkeypatch.setattr(word_maps, "BUDGET", 10_000)
    assert any(said in caption.value for caption in app(large, ENCODER, locale).caption)


def test_a_collection_opens_at_its_first_trace(app, tmp_path):
    from toushi.probe.trace.collection import write_collection

    for name, prompt in (("000", made_trace.PROMPT), ("001", "猫头鹰在右边")):
        made_trace.write(tmp_path / "batch" / name, prompt=prompt, steps=2)
    write_collection(tmp_path / "batch", ["000", "001"])
    test = app(tmp_path / "batch", PICTURE)
    assert component(test)
    assert [str(tmp_path / "batch" / name) for name in ("000", "001")] == [
        option.rpartition(" · ")[2] for option in test.selectbox[0].options[:2]
    ]


def test_the_other_branch(app, tmp_path):
    test = app(made_trace.write(tmp_path / "run", negative="模糊", steps=2), PICTURE)
    first = component(test)
    test.segmented_control(key="branch").set_value("uncond").run()
    assert not test.exception and component(test) != first


def test_the_language_follows_the_browser_and_can_be_changed(app):
    test = app(locale="zh-CN")
    assert test.button[0].label == "作画并记录"
    test.segmented_control(key="language").set_value("en").run()
    assert test.button[0].label == "Draw and record"


def test_prompts_are_not_markup():
    assert library.escape_markdown("*a* <b> 猫 :smile: $x$") == r"\*a\* \<b\> 猫 \:smile\: \$x\$"


@pytest.mark.parametrize("locale, said", [
    ("en-GB", "longer than the 77 tokens that the model reads. Cut: 猫、鸟"), ("zh-CN", "超过模型能读的 77 个词元，被截去的词：猫、鸟"),
])  # fmt: skip
def test_a_cut_prompt_is_told_in_the_language_of_the_page(app, tmp_path, locale, said):
    test = app(made_trace.write(tmp_path / "run", steps=1), locale=locale)
    test.session_state["cut"] = [(77, ["猫", "鸟", "猫"])]
    test.switch_page(PICTURE).run()
    assert not test.exception and said in test.warning[0].value.replace("\\", "")


def wait_for_the_worker():
    for _ in range(6000):
        if not worker.running():
            return
        time.sleep(0.02)
    raise AssertionError(worker.running())


def test_a_failure_of_the_worker_is_shown(app, tmp_path):
    (tmp_path / "runs").write_text("no folder")
    test = app()
    test.button[0].click().run()
    wait_for_the_worker()
    test.run()
    assert "runs" in test.error[0].value and not test.exception


def test_the_page_tells_the_negative_prompt_and_the_checker_s_verdict(app, tmp_path):
    test = app(made_trace.write(tmp_path / "run", steps=1, negative="模糊", safety="blocked"), PICTURE)
    (line,) = [caption.value for caption in test.caption if "guidance" in caption.value]
    assert "模糊" in line and "blocked by the safety checker" in line


def test_a_picture_drawn_under_edits_says_so(app, tmp_path):
    edits = [{"site": "unet.*", "kind": "zero", "word": "猫"}]
    made_trace.write(tmp_path / "edited", edits=edits)
    (note,) = app(tmp_path / "edited", PICTURE).info
    assert "猫" in note.value and "before the edit" in note.value
    made_trace.write(tmp_path / "free", edits=[])
    assert not app(tmp_path / "free", PICTURE).info


# --- two traces ---


def test_comparing_begins_with_a_trace_of_the_same_prompt(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "owl", prompt="猫头鹰在右边", steps=2)
    folder = made_trace.write(tmp_path / "runs" / "cat", steps=2)
    made_trace.write(tmp_path / "runs" / "again", steps=3, seed=7)
    test = app(folder, COMPARE)
    (other,) = [box for box in test.selectbox if box.label == "The trace to compare with"]
    assert other.options[0] == f"same prompt · {made_trace.PROMPT} · {Path('runs/again')}" and len(other.options) == 2
    header = component(test)
    assert b"seed 7" in header and b"3 steps" in header and b"guidance" not in header.split(b'"sides"')[1][:600]
    other.set_value(str(Path("runs/owl"))).run()
    assert not test.exception and component(test) != header


def test_comparing_needs_another_trace_and_a_common_word(app, tmp_path):
    folder = made_trace.write(tmp_path / "runs" / "cat", steps=2)
    assert "no other trace" in app(folder, COMPARE).info[0].value
    made_trace.write(tmp_path / "runs" / "dog", prompt="a red dog", steps=2)
    test = app(folder, COMPARE)
    assert "cannot be compared" in test.info[0].value and not test.error


def test_the_other_trace_may_lack_the_branch(app, tmp_path):
    folder = made_trace.write(tmp_path / "runs" / "guided", steps=2)
    made_trace.write(tmp_path / "runs" / "free", steps=2, guidance=1.0, branches=("cond",))
    test = app(folder, COMPARE)
    test.segmented_control(key="branch").set_value("uncond").run()
    for language, said in (("en", "Choose “Prompt” above"), ("zh", "请在上方选“提示词”")):
        test.session_state["language"] = language
        test.run()
        assert not test.exception and not test.error and said in test.info[0].value


def test_one_press_draws_the_prompt_again_with_another_seed(app, tmp_path):
    model = {"name": "mini-unet", "revision": "0", "weights_sha256": None}
    test = app(made_trace.write(tmp_path / "runs" / "cat", steps=2, seed=4, model=model), COMPARE)
    (again,) = [button for button in test.button if button.label == "Draw again with seed 5"]
    again.click().run()
    wait_for_the_worker()
    test.run()
    test.switch_page(COMPARE).run()
    assert not test.exception and b"seed 5" in component(test)
    assert any("of the pixels" in one.value for one in test.markdown)


# --- layers of a text encoder ---


def layers_page(app, monkeypatch, *values):
    """The page after a look with the encoder, the first and the second sentence."""
    from toushi.probe.encoders import load_encoder as opening

    monkeypatch.setattr(opening, "load_own", lambda *_, **__: MiniUNet.tiny())
    test = app(page=LAYERS)
    for field, value in zip(test.text_input, values):
        field.set_value(value)
    test.button[0].click().run()
    assert not test.exception
    return test


def charts_of(test) -> dict[str, dict]:
    """The page's charts by the beginning of their keys: curves, alike, attention."""
    found = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    kinds = {"scatter": "curves", "heatmap": "matrix"}
    return {kinds[kind]: [one for one in found if one["data"][0]["type"] == kind] for kind in kinds}


def test_the_layers_page_shows_two_sentences(app, monkeypatch):
    test = layers_page(app, monkeypatch, "河边的银行", "他去银行")
    found = charts_of(test)
    assert [tab.label for tab in test.tabs] == ["河边的银行", "他去银行"] and len(found["curves"]) == 2
    assert [line["name"] for line in found["curves"][1]["data"]] == ["他", "去", "银行", "different words, mean"]
    alike, *attention = found["matrix"]
    assert alike["layout"]["xaxis"]["ticktext"] == ["他", "去", "银行"]
    assert attention[1]["layout"]["xaxis"]["ticktext"] == ["他", "去", "银行", "other text", "special"]
    assert not test.error and not test.warning
    test.select_slider[0].set_value(0).run()
    assert len(charts_of(test)["matrix"]) == 1 and any("Layer 0 is the embeddings" in one.value for one in test.caption)


def test_the_layers_page_draws_in_its_language(app, monkeypatch):
    test = layers_page(app, monkeypatch, "河边的银行", "")
    test.session_state["language"] = "zh"
    test.run()
    assert charts_of(test)["curves"][0]["data"][-1]["name"] == "不同词，平均"


def test_the_charts_of_layers_show_the_numbers_of_the_encodings():
    encoding = encode_layers(open_encoder(MiniUNet.tiny()), ["河边的银行和银行"])[0]
    states = encoding.word_states()
    curves = layers_charts.embedding_curves(encoding, "en").data
    assert [line.name for line in curves][:-1] == states["word"].values.tolist()  # 银行#1 and 银行#2
    for line, word in zip(curves, states["word"].values):
        own = states.sel(word=word).values
        assert np.allclose(line.y, [cosine(own[:1], layer[None])[0, 0] for layer in own], atol=1e-6)
    matrix = layers_charts.word_matrix(np.eye(2), ["a", "a"], ["a", "a"], "cosine").data[0]
    assert np.array_equal(matrix.z, np.eye(2)) and matrix.x is None, "equal words are told apart by their places"


def test_the_layers_page_opens_kept_texts(app, tmp_path):
    record_texts(open_encoder(MiniUNet.tiny()), ["a red cat", "a blue cat", "月亮"], tmp_path / "texts")
    test = app(tmp_path / "texts", LAYERS)
    assert [tab.label for tab in test.tabs] == ["a red cat", "a blue cat"] and len(
        test.text_input
    ) == 3  # and one's own
    test.multiselect[0].set_value([2]).run()
    assert not test.exception and [tab.label for tab in test.tabs] == ["月亮"]
    test.multiselect[0].set_value([]).run()
    assert not test.exception and not test.get("plotly_chart")


@pytest.mark.parametrize("values, said", [
    (("", ""), "Enter a sentence"), (("猫" * 201, ""), "200 characters"), (("x" * 150, ""), "Cut"),
])  # fmt: skip
def test_the_layers_page_says_what_it_cannot_show(app, monkeypatch, values, said):
    assert said in layers_page(app, monkeypatch, *values).warning[0].value


def test_the_layers_page_says_in_chinese_what_was_cut(app, monkeypatch):
    test = layers_page(app, monkeypatch, "x" * 150, "")
    test.session_state["language"] = "zh"
    test.run()
    assert "被截去的词" in test.warning[0].value


def test_an_encoder_that_is_not_there(app, monkeypatch):
    test = layers_page(app, monkeypatch, "猫", "", "nowhere/at/all")
    assert "no encoder" in test.error[0].value and not test.get("plotly_chart")
