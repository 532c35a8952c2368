"""What is done with a word of the picture page, the verdict on a picture, and what visitors may do."""

import time

import made_trace
import pytest

from toushi.dashboards import permissions, verdict_view, word_actions
from toushi.dashboards import sampling_worker as worker
from toushi.dashboards.heat_map import component, payload
from toushi.experiments.scene_world.recogniser import Detection, Recognition
from toushi.probe.trace.open import open_trace

PICTURE, COMPARE, LAYERS = "app_pages/picture_page.py", "app_pages/compare_page.py", "app_pages/layers_page.py"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a trace that the explorer has drawn."""
    job = worker.start(worker.Order("左边是蓝色的狗", steps=2), tmp_path_factory.mktemp("explorer") / "runs")
    wait()
    assert job.state == "done", job.error
    return job.folder


def wait():
    for _ in range(6000):
        if not worker.running():
            return
        time.sleep(0.02)
    raise AssertionError(worker.running())


def press(monkeypatch, test, unit, action, text=""):
    """The page as if this button of the component were pressed; AppTest has no components."""
    real = component.heat_map
    monkeypatch.setattr(
        component,
        "heat_map",
        lambda *how, **named: (real(*how, **named), {"unit": unit, "action": action, "text": text})[1],
    )
    test.run()
    monkeypatch.setattr(component, "heat_map", real)
    assert not test.exception


def header(test):
    (found,) = test.get("bidi_component")
    return payload.unpack_header(found.proto.bytes)


def index(test, label):
    return [unit["label"] for unit in header(test)["units"]].index(label)


def test_only_own_pictures_have_buttons_for_edits(app, recorded, tmp_path):
    assert header(app(recorded, PICTURE))["actions"] == ["why", "ignore", "halve", "double", "keep", "swap"]
    foreign = made_trace.write(tmp_path / "foreign", steps=1, family="sd")
    assert header(app(foreign, PICTURE))["actions"] == ["why"]


@pytest.mark.parametrize("action, changes", [
    ("ignore", {"remove": ["猫#2"]}), ("halve", {"scale": {"猫#2": 0.5}}), ("double", {"scale": {"猫#2": 2.0}}),
    ("keep", {"keep_only": ["猫#2"]}), ("swap", {"swap": {"猫#2": "狗"}}),
])  # fmt: skip
def test_each_button_is_a_change_of_edit_run(action, changes):
    assert word_actions.changes({"unit": 0, "action": action, "text": "狗"}, "猫#2") == changes


def test_an_edit_opens_in_compare_with_what_it_changed(app, recorded, monkeypatch):
    test = app(recorded, PICTURE)
    press(monkeypatch, test, index(test, "狗"), "ignore")
    (job,) = worker.running()
    assert job.order.changes == {"remove": ["狗"]} and any(button.label == "Stop" for button in test.button)
    wait()
    assert job.state == "done", job.error
    test.run()  # which leads to Compare
    test.switch_page(COMPARE).run()
    assert not test.exception and "of the pixels" in next(one.value for one in test.markdown if "pixels" in one.value)
    edited = open_trace(job.folder)
    assert edited.manifest.parent.name == recorded.name and edited.manifest.edits
    assert test.session_state["other"] == str(job.folder) and test.session_state["folder"] == str(recorded)


@pytest.mark.parametrize("locale, said", [("en-GB", "share of attention"), ("zh-CN", "注意力占比")])
def test_why(app, recorded, monkeypatch, locale, said):
    test = app(recorded, PICTURE, locale)
    press(monkeypatch, test, index(test, "狗"), "why")
    (table,) = test.table
    assert said in [str(name) for name in table.value.index]


def test_an_action_of_another_page_does_nothing(app, recorded, monkeypatch):
    test = app(recorded, PICTURE)
    for unit, action in ((99, "ignore"), (0, "nonsense")):
        press(monkeypatch, test, unit, action)
        assert worker.running() == [] and not test.table


@pytest.mark.parametrize("locale, drawn, reason", [
    ("en-GB", "✗ dog", "never shown a blue dog"), ("zh-CN", "✗ 狗", "从没见过蓝色的狗"),
])  # fmt: skip
def test_asked_and_drawn(app, recorded, monkeypatch, locale, drawn, reason):
    dog = Detection("dog", None, 34, 19, 33, 0.9)
    monkeypatch.setattr(verdict_view, "_recognition", lambda *_: Recognition("plain", "day", "flat", (dog,)))
    test = app(recorded, PICTURE, locale)
    assert not test.table
    test.toggle[0].set_value(True).run()
    (row,) = test.table[0].value.to_numpy().tolist()
    assert row[1] == drawn and reason in row[2]


# --- visitors


def test_a_show_can_only_be_seen(app, recorded, monkeypatch, tmp_path):
    made_trace.write(tmp_path / "runs" / "cat", steps=1)
    made_trace.write(tmp_path / "runs" / "owl", steps=1)
    monkeypatch.setattr(permissions, "arguments", lambda: ["--read-only"])
    test = app()
    assert not test.text_area and len(test.text_input) == 1, "only the search"
    assert {(button.key or "").split()[0] for button in test.button} == {"open"}
    assert header(app(recorded, PICTURE))["actions"] == ["why"]
    labels = [button.label for page in (PICTURE, COMPARE) for button in app(recorded, page).button]
    assert not any("Change" in label or "again" in label for label in labels)


def test_visitors_open_no_other_folders_and_load_no_encoders(app, monkeypatch):
    monkeypatch.setattr(permissions, "arguments", lambda: ["--shared"])
    test = app()
    assert test.text_area and not any("Folder" in field.label for field in test.text_input)
    assert app(page=LAYERS).text_input[2].disabled
