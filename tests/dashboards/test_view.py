"""What the address asks for, whether a trace can be trusted, and the form and cards of the gallery."""

import time
from pathlib import Path

import made_trace
import pytest

from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import payload
from toushi.probe.base.errors import ToushiError

PICTURE, COMPARE, TRACES = "app_pages/picture_page.py", "app_pages/compare_page.py", "app_pages/traces_page.py"


def component(test) -> bytes:
    (found,) = test.get("bidi_component")
    return found.proto.bytes


def pressed(test, label):
    (button,) = [button for button in test.button if button.label == label]
    return button.click().run()


# --- the address


def test_the_address_opens_a_trace_in_a_branch_and_a_language(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "cat", steps=1)
    made_trace.write(tmp_path / "runs" / "owl", prompt="猫头鹰在右边", negative="模糊", steps=1)
    test = app(page=PICTURE, trace="runs/owl", branch="uncond", lang="zh")
    header = payload.unpack_header(component(test))
    assert header["prompt"] == "模糊" and header["text"]["step"] == "步"
    (script,) = [html.proto.body for html in test.get("html") if "replaceState" in html.proto.body]
    assert '"trace": "runs/owl"' in script and '"branch": "uncond"' in script and "zh-Hans" in script


@pytest.mark.parametrize(
    "name", ["..", "../outside", "/etc", "runs/../../outside", "runs/link", "runs/a\0b", "x" * 5000]
)
@pytest.mark.parametrize("key", ["trace", pytest.param("other", marks=pytest.mark.slow)])
def test_an_address_leads_nowhere_outside_the_gallery(app, tmp_path, key, name, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    outside = made_trace.write(tmp_path / "outside", steps=1)
    made_trace.write(tmp_path / "home" / "runs" / "cat", steps=1)
    (tmp_path / "home" / "runs" / "link").symlink_to(outside)
    test = app(page=PICTURE, **{key: name})
    assert "folder" not in test.session_state and "other" not in test.session_state
    assert "outside the folders" in app(**{key: name}).warning[0].value
    assert "不在探索界面" in app(**{key: name, "lang": "zh"}).warning[0].value


def test_an_unknown_branch_or_language_in_the_address_is_passed_over(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "cat", steps=1)
    test = app(page=PICTURE, trace="runs/cat", branch="../x", lang="</script>")
    assert payload.unpack_header(component(test))["prompt"] == made_trace.PROMPT


def test_a_script_in_the_name_of_a_folder_stays_a_name(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "<script>alert(1)<", steps=1)
    test = app(page=PICTURE, trace="runs/<script>alert(1)<")
    assert component(test) and not any("<script>alert" in html.proto.body for html in test.get("html"))


# --- trust


@pytest.mark.parametrize("locale, said", [("en-GB", "not what was recorded"), ("zh-CN", "已不是当初写下的样子")])
def test_a_changed_file_is_told(app, tmp_path, locale, said):
    folder = made_trace.write(tmp_path / "run", steps=2)
    test = app(folder, PICTURE, locale)
    assert not test.warning and any("✓" in caption.value for caption in test.caption)
    step = folder / "step_0001.safetensors"
    data = bytearray(step.read_bytes())
    data[-1] ^= 1
    step.write_bytes(data)
    test.run()
    assert said in test.warning[0].value and "step\\_0001" in test.warning[0].value and component(test)


def test_the_maps_are_shown_without_the_picture(app, tmp_path):
    for name, damage in {"gone": Path.unlink, "bad": lambda path: path.write_bytes(b"no picture")}.items():
        damage(made_trace.write(tmp_path / name, steps=2) / "image.png")
        test = app(tmp_path / name, PICTURE)
        assert component(test) and "image\\.png" in test.warning[0].value and not test.error


def test_what_is_wrong_is_told_in_chinese_first(app, tmp_path):
    (tmp_path / "here").mkdir()
    assert app(tmp_path / "here", PICTURE, "zh-CN").error[0].value.startswith("这里没有可以打开的记录。")
    folder = made_trace.write(tmp_path / "run", steps=1)
    (folder / "step_0000.safetensors").unlink()
    assert app(folder, PICTURE, "zh-CN").error[0].value.startswith("记录已损坏，或被改动过。")


# --- branches


def test_the_difference_of_the_branches(app, tmp_path):
    test = app(made_trace.write(tmp_path / "run", steps=2), PICTURE)
    assert not any("Classifier-free" in caption.value for caption in test.caption)
    test.segmented_control(key="branch").set_value("difference").run()
    header = payload.unpack_header(component(test))
    assert header["names"] == ["cond", "uncond"] and header["sign"] == -1
    assert {unit["label"] for unit in header["units"]} == {"<bos>", "<eos>"}
    assert any("Classifier" in caption.value for caption in test.caption)
    test.switch_page(COMPARE).run()
    assert not test.exception and not test.error


# --- the gallery


def test_searching_the_gallery(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "cat", steps=1)
    made_trace.write(tmp_path / "runs" / "Owl", prompt="猫头鹰在右边", steps=1)
    test = app()
    (search,) = [field for field in test.text_input if field.label.startswith("Search")]
    for asked, left in (("猫头鹰", {"Owl"}), ("owl", {"Owl"}), ("runs", {"cat", "Owl"}), ("dog", set())):
        search.set_value(asked).run()
        keys = [button.key for button in test.button if (button.key or "").startswith("open ")]
        assert {key.rpartition("/")[2] for key in keys} == left


def test_deleting_a_trace_spares_other_files(tmp_path):
    cat, owl = (made_trace.write(tmp_path / name, steps=1) for name in ("cat", "owl"))
    library.delete(library.entry(cat))
    assert not cat.exists()
    (owl / "notes.txt").write_text("mine")
    with pytest.raises(ToushiError, match="notes"):
        library.delete(library.entry(owl))
    assert (owl / "manifest.json").exists()


@pytest.mark.slow
def test_a_long_prompt_makes_no_long_card(app, tmp_path):
    made_trace.write(tmp_path / "runs" / "long", prompt="猫，" * 3000, steps=1)
    assert max(len(markdown.value) for markdown in app().markdown) < 200


def test_an_example_fills_the_form(app):
    test = pressed(app(), "a hippo")
    assert test.text_area[0].value == "a hippo"


def test_the_prompt_of_a_trace_can_be_changed(app, tmp_path):
    folder = made_trace.write(tmp_path / "runs" / "cat", steps=2, negative="模糊", seed=5, guidance=7.0, sampler="heun")
    test = pressed(app(folder, PICTURE), "Change this prompt").switch_page(TRACES).run()
    fields = {
        field.label: field.value for field in [*test.text_area, *test.text_input, *test.number_input, *test.selectbox]
    }
    assert fields["Prompt"] == made_trace.PROMPT and fields["Negative prompt"] == "模糊"
    assert (fields["Steps"], fields["Seed"], fields["Guidance"], fields["Sampler"]) == (2, 5, 7.0, "heun")
    test.text_area[0].set_value("红色的猫")
    pressed(test, "Draw and record")
    while worker.running():
        time.sleep(0.01)
    test.run()  # opens the picture
    test.switch_page(TRACES).run()
    assert not test.exception and test.text_area[0].value == "红色的猫", "the form keeps what was typed"


def test_fifty_words_look_different():
    looks = [tuple(payload._look(number).values()) for number in range(50)]
    assert len(set(looks)) == 50 and len({colour for colour, _ in looks}) == 50


def test_a_collections_member_and_a_running_trace_are_not_deleted(tmp_path):
    from toushi.probe.trace.collection import write_collection

    folder = made_trace.write(tmp_path / "batch" / "000", steps=1)
    assert library.can_be_deleted(library.entry(folder))
    write_collection(tmp_path / "batch", ["000"])
    assert not library.can_be_deleted(library.entry(folder))
