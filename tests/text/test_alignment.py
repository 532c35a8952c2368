import itertools
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.prompts import HARD, prompts
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import (
    AmbiguousWord,
    Token,
    UnknownWord,
    UnreadablePrompt,
    Word,
    _simplified_forms,
    find_word,
    segment,
    segmenter,
    token_shares,
    word_class,
    word_labels,
)
from toushi.probe.text.prompt_units import units_of


def words_of(prompt):
    return [word.text for word in segment(prompt)]


@given(prompts)
def test_words_are_ordered_disjoint_pieces_of_the_raw_prompt(prompt):
    end = 0
    for word in segment(prompt):
        assert end <= word.start < word.end <= len(prompt)
        assert prompt[word.start : word.end] == word.text
        end = word.end


@given(prompts)
def test_every_letter_and_digit_belongs_to_a_word(prompt):
    owned = {i for word in segment(prompt) for i in range(word.start, word.end)}
    assert all(i in owned for i, character in enumerate(prompt) if character.isalnum())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("，！？……——“”《》 \n", []),
        ("左边是猫，右边是月亮", ["左边", "是", "猫", "右边", "是", "月亮"]),
        ("猫头鹰和猫", ["猫头鹰", "和", "猫"]),
        ("𰻝𰻝面，龘！", ["𰻝", "𰻝", "面", "龘"]),
        ("👨‍👩‍👧和🇨🇳👍🏽1️⃣", ["👨‍👩‍👧", "和", "🇨🇳", "👍🏽", "1️⃣"]),
        ("T恤 café cafe\u0301 Привет 한국", ["T恤", "café", "cafe\u0301", "Привет", "한국"]),
        ("a cat's hot-dog. 3.5米", ["a", "cat", "'s", "hot-dog", "3.5", "米"]),
        ("ＡＢＣ１２", ["ＡＢＣ１２"]),
        ("1,000元 at 12:30, 1/2 or 1,2", ["1,000", "元", "at", "12:30", "1/2", "or", "1", "2"]),
        ("well\u2011known black-and-white", ["well\u2011known", "black-and-white"]),
    ],
)
def test_segment(prompt, expected):
    assert words_of(prompt) == expected


def test_offsets_are_code_points_after_a_wide_character():
    assert segment("𰻝👨‍👩‍👧猫")[-1] == Word("猫", 6, 7)


@pytest.mark.parametrize("prompt", ["\ud83d", b"cat", None, 3])
def test_what_is_not_text_is_refused(prompt):
    with pytest.raises(UnreadablePrompt):
        segment(prompt)


def test_segmenter_names_itself():
    about = segmenter()
    assert about["name"] == "rjieba" and len(about["dictionary_sha256"]) == 64


# --- find -----------------------------------------------------------------------------------------------


def look(prompt, asked):
    return find_word(prompt, segment(prompt), asked)


def test_a_word_is_found_by_text_number_word_and_span():
    prompt = "猫在左边，猫在右边"
    assert look(prompt, "左边") == (2, 4)
    assert look(prompt, "猫#1") == (0, 1)
    assert look(prompt, "猫#2") == (5, 6)
    assert look(prompt, Word("猫", 5, 6)) == (5, 6)
    assert look(prompt, (np.int64(1), 7)) == (1, 7)


def test_a_cat_is_not_an_owl():
    assert look("猫头鹰看着猫", "猫") == (5, 6)
    with pytest.raises(UnknownWord, match="猫头鹰"):
        look("一只猫头鹰", "猫")
    with pytest.raises(UnknownWord):
        look("a catfish", "cat")


def test_whole_words_and_punctuation_can_be_asked_for():
    prompt = "红色的猫，月亮"
    assert look(prompt, "红色的猫") == (0, 4)
    assert look(prompt, "，") == (4, 5)
    assert look("一只C#2猫", "C#2") == (2, 5)
    with pytest.raises(UnknownWord):
        look(prompt, "色的猫")


def test_ambiguity_names_the_places():
    with pytest.raises(AmbiguousWord, match="猫#1 at 0–1, 猫#2 at 5–6") as caught:
        look("猫在左边，猫在右边", "猫")
    assert caught.value.spans == ((0, 1), (5, 6))


def test_nearest_words_are_named():
    with pytest.raises(UnknownWord, match="猫头鹰"):
        look("猫头鹰在树上", "猫头")
    with pytest.raises(UnknownWord, match="moon"):
        look("the moon at night", "mooon")
    with pytest.raises(UnknownWord, match="occurs 2 times"):
        look("猫和猫", "猫#3")
    with pytest.raises(UnknownWord, match="no words"):
        look("", "猫")


@pytest.mark.parametrize("asked", ["", "#", "#1", "猫#", None, 3, (1,), (2, 1), (-1, 1), (0, 99), (0.5, 1), "\ud800"])
def test_nonsense_is_refused_with_our_own_error(asked):
    with pytest.raises(ToushiError):
        look("左边是月亮", asked)


@given(prompts)
def test_every_word_can_be_asked_for(prompt):
    words, seen = segment(prompt), {}
    for word in words:
        text = unicodedata.normalize("NFC", word.text)
        seen[text] = seen.get(text, 0) + 1
        asked = f"{word.text}#{seen[text]}"
        assert find_word(prompt, words, asked) == word.span
        assert find_word(prompt, words, word) == find_word(prompt, words, word.span) == word.span


@given(prompts, prompts)
def test_find_gives_a_span_of_that_text_or_our_own_error(prompt, asked):
    try:
        start, end = look(prompt, asked)
    except ToushiError:
        return
    found, asked = (unicodedata.normalize("NFC", text) for text in (prompt[start:end], asked))
    assert found == asked or asked.startswith(found + "#")


@pytest.mark.parametrize("word", ["cafe\u0301", "한국", "\U0002f800"])
def test_canonically_equal_text_is_found(word):
    forms = {word, *(unicodedata.normalize(form, word) for form in ("NFC", "NFD"))}
    assert len(forms) > 1
    for written in forms:
        for asked in forms:
            assert look(f"{written} left", asked) == (0, len(written))


# --- shares ---------------------------------------------------------------------------------------------


def token(span, kind="text"):
    return Token(0, "", span, kind, ("encoder",), 0, 0)


def test_shares_by_characters():
    tokens = [token(None, "special"), token((0, 2)), token((2, 3)), token((2, 3)), token((1, 5))]
    assert token_shares(tokens, (1, 3)).tolist() == [0, 0.5, 1, 1, 0.5]
    assert token_shares([], (0, 1)).shape == (0,)


@given(st.data())
def test_mass_is_conserved_over_any_partition(data):
    length = data.draw(st.integers(1, 40))
    spans = st.tuples(st.integers(0, length - 1), st.integers(1, length)).map(lambda s: (s[0], max(s[0] + 1, s[1])))
    tokens = [token(span) for span in data.draw(st.lists(spans, max_size=20))]
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=10))})
    total = sum(token_shares(tokens, part) for part in itertools.pairwise(cuts))
    np.testing.assert_allclose(total, np.ones(len(tokens)), atol=1e-12)


@pytest.mark.parametrize("prompt", HARD)
def test_words_and_gaps_share_out_all_mass_of_a_real_prompt(prompt, tokenizer):
    tokens = tokenizer.encode(prompt).tokens
    mass = np.random.default_rng(0).random(len(tokens))
    edges = sorted({0, len(prompt), *(edge for word in segment(prompt) for edge in word.span)})
    total = sum((mass * token_shares(tokens, part)).sum() for part in itertools.pairwise(edges))
    np.testing.assert_allclose(total, sum(m for m, t in zip(mass, tokens, strict=True) if t.kind == "text"))


def test_no_torch_and_no_segmenter_until_needed():
    code = "import sys, toushi.probe.text.alignment; assert not {'torch', 'rjieba', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_traditional_characters_are_words_as_the_simplified_are():
    """Character for character, so that spans stay; a simplified prompt is never changed."""
    for traditional, simplified in [
        ("左邊是貓，右邊是月亮", "左边是猫，右边是月亮"),
        ("河邊的銀行", "河边的银行"),
        ("一隻紅色的貓頭鷹在夜裡飛", "一只红色的猫头鹰在夜里飞"),
    ]:
        found = segment(traditional)
        assert [word.span for word in found] == [word.span for word in segment(simplified)]
        assert all(word.text == traditional[word.start : word.end] for word in found)
    assert not any(chr(character).encode("gb2312", "ignore") for character in _simplified_forms())


def test_a_traditional_word_has_the_class_of_its_simplified_form():
    for traditional, simplified in (("樹", "树"), ("飛", "飞"), ("銀行", "银行")):
        assert word_class(traditional) == word_class(simplified) != ""


def test_words_of_canonically_equal_text_are_numbered_in_labels_and_units():
    words = segment(unicodedata.normalize("NFC", "café") + " " + unicodedata.normalize("NFD", "café"))
    tokens = [Token(i, word.text, word.span, "text", (), i, i) for i, word in enumerate(words)]
    names = [unicodedata.normalize("NFC", name) for name in word_labels(words, words)]
    assert names == ["café#1", "café#2"]
    assert [unicodedata.normalize("NFC", unit.name) for unit in units_of(tokens, words)[0]] == names
