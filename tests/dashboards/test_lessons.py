"""The lessons on the shipped model: what they claim holds, and each has its four parts in both languages."""

import re

import numpy as np
import pytest

from toushi.dashboards.lessons import (
    attention_lesson,
    cause_lesson,
    context_lesson,
    guidance_lesson,
    live_runs,
    noise_lesson,
    sense_lesson,
    steps_lesson,
    token_lesson,
)
from toushi.dashboards.lessons.lesson_list import LESSONS
from toushi.dashboards.lessons.lesson_texts import LESSONS as TEXTS
from toushi.experiments.scene_world.recogniser import recognise

PAGE = "app_pages/lessons_page.py"
OWN = {"en": "a blue cat by the bank on the right", "zh": "银行在右边，左边是红色的星星"}
BY_NAME = {lesson.name: lesson for lesson in LESSONS}
LANGUAGES = pytest.mark.parametrize("language", ["en", "zh"])


def opened(app, name, language="en"):
    """The lesson before the prediction."""
    return app(page=PAGE, locale={"en": "en-GB", "zh": "zh-CN"}[language], lesson=name)


def predicted(app, name, language="en", guess=0):
    test = opened(app, name, language)
    test.radio[0].set_value(BY_NAME[name].guesses[guess]).run()
    assert not test.exception and not test.warning
    return test


def pressed(test, label):
    next(button for button in test.button if button.label in label).click().run()
    assert not test.exception and not test.warning
    return test


def judged(test) -> list[str]:
    """What is said of the prediction, then of the answer."""
    return [one.value for one in [*test.success, *test.info]]


# --- the frame


def test_nothing_is_shown_before_the_prediction(app):
    test = opened(app, "tokens")
    assert not test.get("bidi_component") and not test.text_input and "Predict first" in test.info[0].value


def test_a_lesson_from_prediction_to_answer(app):
    test = predicted(app, "tokens", guess=0)
    assert test.get("bidi_component") and "It is otherwise: “3”" in judged(test)[0]
    assert any("Change something" in caption.value for caption in test.caption) and not test.number_input
    test.text_input[0].set_value("猫猫🐱")
    pressed(test, "Go")
    test.number_input[0].set_value(1)
    pressed(test, "Check")
    assert any("The answer is\\: 4" in one for one in judged(test))  # 10 bytes; 猫, 猫 and four bytes of an emoji
    test.number_input[0].set_value(4)
    pressed(test, "Check")
    assert any(one.startswith("**Right") for one in judged(test))
    test.run()
    assert test.selectbox[0].options[1].endswith("✓")


def test_the_next_class_begins_anew(app):
    test = predicted(app, "tokens")
    pressed(test, "Reset for the next class")
    assert test.radio and not test.get("bidi_component")


def test_the_other_language_keeps_the_prediction(app):
    test = predicted(app, "tokens", guess=2)
    assert test.success[0].value.startswith("**Your prediction was right")
    test.segmented_control(key="language").set_value("zh").run()
    assert not test.exception and test.success[0].value.startswith("**猜对了")


def test_large_type_and_an_unknown_lesson(app):
    test = app(page=PAGE, lesson="no such lesson")
    assert test.selectbox[0].value == LESSONS[0].name
    assert not any("150%" in html.proto.body for html in test.get("html"))
    test.toggle(key="lesson_large").set_value(True).run()
    assert any("150%" in html.proto.body for html in test.get("html"))


def test_odd_texts_break_no_lesson(app):
    test = predicted(app, "tokens")
    for text in ("!!!", "<b>$x$</b>", "𠮷"):
        test.text_input[0].set_value(text)
        pressed(test, "Go")
        assert test.number_input
    test.text_input[0].set_value("𠮷" * 60)  # 240 tokens: the count would be that of a cut text
    next(button for button in test.button if button.label == "Go").click().run()
    assert "more than the 77 tokens" in test.warning[0].value and not test.exception


@pytest.mark.parametrize("key", TEXTS)
def test_both_languages_fill_in_the_same_names(key):
    english, chinese = TEXTS[key].en, TEXTS[key].zh
    assert english and chinese
    assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese))


def test_every_lesson_has_the_texts_of_its_four_parts():
    for lesson in LESSONS:
        parts = ["title", "idea", "predict", "verdict", "see", "change", "question", "why"]
        keys = {f"{lesson.name}_{part}" for part in [*parts, *(f"guess_{guess}" for guess in lesson.guesses)]}
        assert not keys - set(TEXTS)


# --- the tokens and the sums, on the shipped model


@pytest.mark.parametrize("text", ["猫和龘", "a cat", " two  spaces ", "🐱𠮷é", "!"])
def test_the_tokens_hold_every_byte_of_a_text(text):
    tokenizer = live_runs.tokenizer()
    ids = tokenizer.encode(text).ids[1:-1]
    assert tokenizer.decode(ids) == text and len(ids) <= len(text.encode())


@LANGUAGES
def test_why_a_rare_character_is_several_tokens(language):
    right, numbers = token_lesson.verdict(BY_NAME["tokens"].defaults(language))
    tokenizer = live_runs.tokenizer()
    assert right == "3" and numbers["n"] == len("龘".encode())
    assert len(tokenizer.encode("猫").ids) == 3 and len("猫".encode()) == 3


def test_guidance_is_the_sum_that_the_sampler_computes():
    """The guided guess at the last step, from both guesses, is what the run itself went to."""
    folder = live_runs.record("a red cat", steps=4)
    trace = live_runs.trace_of(folder)
    guided = guidance_lesson.guide(live_runs.guesses_at(folder, 3), live_runs.GUIDANCE)
    np.testing.assert_allclose(guided.clip(0, 255), trace.preview(3), atol=3)


# --- claims about default prompts, and the whole way through each lesson; several runs each


@pytest.mark.slow
@LANGUAGES
def test_the_guess_changes_most_at_the_beginning(language):
    assert noise_lesson.verdict(BY_NAME["noise"].defaults(language))[0] == "early"


@pytest.mark.slow
def test_the_map_of_what_stands_on_the_right_is_brightest_on_the_right(app):
    parts = attention_lesson.thirds(live_runs.record("左边是猫，右边是月亮，夜晚"), "月亮")
    assert parts["right"] > 1.5 * parts["middle"] > 1.5 * parts["left"]


@pytest.mark.slow
@LANGUAGES
def test_without_guidance_the_words_do_not_count(language):
    right, numbers = guidance_lesson.verdict(BY_NAME["guidance"].defaults(language))
    assert right == "any" and float(str(numbers["empty"])) < 1 and float(str(numbers["asked"])) > 20


@pytest.mark.slow
@LANGUAGES
def test_the_word_that_is_looked_at_most_is_not_the_one_that_matters_most(language):
    right, numbers = cause_lesson.verdict(BY_NAME["cause"].defaults(language))
    assert right == "least" and float(str(numbers["change"])) > 4 * float(str(numbers["most_change"]))


@pytest.mark.slow
@pytest.mark.parametrize("language, kind, part", [("en", "hot_dog", "dog"), ("zh", "koala", "熊")])
def test_a_token_inside_another_word_is_not_drawn(language, kind, part):
    values = BY_NAME["context"].defaults(language)
    folder = live_runs.record(str(values["prompt"]))
    right, numbers = context_lesson.verdict(values)
    assert right == "whole" and numbers["token"] == part and kinds_in(folder) == {kind}
    assert len(live_runs.model().encoder.layers) == 12
    assert len(live_runs.tokenizer().encode("河马").ids) == 3, "one token, <bos> and <eos>"


@pytest.mark.slow
@LANGUAGES
def test_the_context_decides_what_a_bank_is(language, monkeypatch):
    monkeypatch.setattr(sense_lesson, "lesson_text", lambda key, **values: TEXTS.translate(language, key, **values))
    texts = {sense: TEXTS.translate(language, f"sense_text_{sense}") for sense in sense_lesson.SENSES}
    drawn = {sense: kinds_in(live_runs.record(text)) for sense, text in texts.items()}
    assert drawn == {"money": {"bank"}, "river": {"riverbank"}}
    values = BY_NAME["sense"].defaults(language)
    assert sense_lesson.verdict(values)[0] == "river"
    assert kinds_in(live_runs.record(str(values["prompt"]))) == {"riverbank"}


@pytest.mark.slow
@LANGUAGES
def test_other_noise_changes_more_than_fewer_steps(language):
    assert steps_lesson.verdict(BY_NAME["steps"].defaults(language))[0] == "seed"


def kinds_in(folder) -> set[str]:
    return {thing.kind for thing in recognise(live_runs.image_of(folder)).objects}


@pytest.mark.slow
@LANGUAGES
@pytest.mark.parametrize("name", BY_NAME)
def test_the_whole_way_through_a_lesson(app, name, language):
    """Some answer is right and another one is wrong; both are explained."""
    test = predicted(app, name, language)
    assert test.get("bidi_component") or test.get("image")
    if test.text_input:
        test.text_input[0].set_value(OWN[language])
        pressed(test, ("Go", "开始"))
    if test.radio:
        assert {is_right(answered(test, choice)) for choice in test.radio[0].options} == {True, False}
    else:
        said = answered(test, -1000)
        right = re.search(r"(-?[\d.]+)[。.]\*\*", said.replace("\\", ""))
        assert right and not is_right(said) and is_right(answered(test, round(float(right[1]))))


def answered(test, answer) -> str:
    """What the lesson says of this answer."""
    (test.radio[0] if test.radio else test.number_input[-1]).set_value(answer)
    pressed(test, ("Check", "检查"))
    return next(one for one in judged(test) if re.match(r"\*\*(Right|Not quite|答对了|不对)", one))


def is_right(said: str) -> bool:
    return said.startswith(("**Right", "**答对了"))
