"""The catalogue: both languages say the same, and every key that is asked for is there."""

import re
from pathlib import Path

import pytest

from dashboards import text
from probe.language import of_locale

HERE = Path(text.__file__).parent
EVERY = {**text.PAGE, **text.COMPONENT}


@pytest.mark.parametrize("key", EVERY)
def test_both_languages_fill_in_the_same_names(key):
    english, chinese = EVERY[key]
    assert english and chinese
    assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese))


def test_every_key_that_is_asked_for_exists():
    python = "\n".join(file.read_text(encoding="utf-8") for file in HERE.rglob("*.py"))
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in HERE.rglob("*.js"))
    said = set(re.findall(r"""(?:\bsay\(|say\(language, )["'](\w+)["']""", python))
    drawn = set(re.findall(r"""\bt\(["'](\w+)["']""", scripts))
    assert said and drawn
    assert said <= set(text.PAGE), said - set(text.PAGE)
    assert drawn <= set(text.COMPONENT), drawn - set(text.COMPONENT)


def test_no_key_is_left_over():
    everything = "\n".join(
        file.read_text(encoding="utf-8") for file in HERE.rglob("*") if file.suffix in (".py", ".js")
    )
    stems = ("kind_", "branch_", "scale_", "page_")  # put together from two parts where they are used
    unused = [
        key for key in EVERY if not key.startswith(stems) and len(re.findall(rf"""["']{key}["']""", everything)) < 2
    ]
    assert not unused


def test_the_browser_or_the_machine_decides_the_language():
    assert [of_locale(locale) for locale in ("zh-CN", "zh_CN.UTF-8", "ZH-tw", "en-GB", "de", None)] == [
        "zh", "zh", "zh", "en", "en", "en",
    ]  # fmt: skip
