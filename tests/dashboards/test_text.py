"""The catalogue: both languages say the same, and every key that is asked for is there."""

import ast
import re
from pathlib import Path

import pytest

from toushi.dashboards import messages as text
from toushi.probe.base.bilingual_text import language_of_locale

HERE = Path(text.__file__).parent
EVERY = {**text.PAGE, **text.COMPONENT}


@pytest.mark.parametrize("key", EVERY)
def test_both_languages_fill_in_the_same_names(key):
    english, chinese = EVERY[key].en, EVERY[key].zh
    assert english and chinese
    assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese))


def asked_in_python(source: str) -> set[str]:
    """Patterns of the keys in say("key"), say(language, "key"), say(f"key_{part}") and say("one" if … else "other")."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    said = (node for node in calls if getattr(node.func, "id", getattr(node.func, "attr", "")) in ("say", "warn_cut"))
    return {key for call in said for argument in call.args[:2] for key in _patterns(argument)}


def _patterns(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return [*_patterns(node.body), *_patterns(node.orelse)]
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in node.values)]
    return []


def asked_in_scripts(source: str) -> set[str]:
    """The same of t('key'), t(`key_${part}`) and t(this ? 'one' : 'other')."""
    found = set()
    for start in (match.end() for match in re.finditer(r"\bt\(", source)):
        depth, end = 1, start
        while depth:
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
        key = re.split(r",\s*\{", source[start : end - 1])[0]  # without the values that are filled in
        found |= set(re.findall(r"'(\w+)'", key))
        found |= {re.sub(r"\$\{.*?\}", r"\\w+", template) for template in re.findall(r"`(.*?)`", key)}
    return found


def asked() -> list[tuple[dict, set[str]]]:
    """Each catalogue with the patterns of its keys in the code."""
    python = [asked_in_python(file.read_text(encoding="utf-8")) for file in HERE.rglob("*.py")]
    scripts = [asked_in_scripts(file.read_text(encoding="utf-8")) for file in HERE.rglob("*.js")]
    return [(text.PAGE, set().union(*python)), (text.COMPONENT, set().union(*scripts))]


def test_every_key_that_is_asked_for_exists():
    for catalogue, patterns in asked():
        assert len(patterns) > 50
        assert not [one for one in patterns if not any(re.fullmatch(one, key) for key in catalogue)]


def test_no_key_is_left_over():
    for catalogue, patterns in asked():
        assert not [key for key in catalogue if not any(re.fullmatch(one, key) for one in patterns)]


def test_how_keys_are_found():
    python = """say("a"); text.say(language, "b", n=say("c")); say(f"d_{kind}_help"); say("e" if x else "f"); other("steps")"""
    assert asked_in_python(python) == {"a", "b", "c", r"d_\w+_help", "e", "f"}
    script = "t('a'); fill(t('b', { n: at('g') })); t(`c_${view.scale}_help`); t(x === null ? 'd' : 'e'); let steps = 'steps'"
    assert asked_in_scripts(script) == {"a", "b", r"c_\w+_help", "d", "e"}


def test_the_browser_or_the_machine_decides_the_language():
    assert [language_of_locale(locale) for locale in ("zh-CN", "zh_CN.UTF-8", "ZH-tw", "en-GB", "de", None)] == [
        "zh", "zh", "zh", "en", "en", "en",
    ]  # fmt: skip
