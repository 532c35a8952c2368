"""Tokens that cannot be followed: what they stand for is not known, and everything else keeps its place."""

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from tests.pipelines.vocabularies import (  # noqa: E402
    bert_tokenizer,
    clip_tokenizer,
    gemma_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)
from tests.text.prompts import prompts  # noqa: E402
from toushi.probe.text.spelling import SpellingError, Vocabulary, align_tokens  # noqa: E402


def gemma_with_runs_of_spaces():
    tokenizer = gemma_tokenizer()
    tokenizer.add_tokens([tokens_of_spaces(2), tokens_of_spaces(3)])
    return tokenizer


def tokens_of_spaces(count):
    return transformers.AddedToken("▁" * count, normalized=True)


TOKENIZERS = {
    "byte-level": qwen_tokenizer(),
    "lower-case": clip_tokenizer(),
    "WordPiece": bert_tokenizer(),
    "Unigram": t5_tokenizer(),
    "Gemma": gemma_with_runs_of_spaces(),
}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def align(kind, prompt, encoded=None, ids=None):
    """The alignment of the tokens of `encoded` with the prompt."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(prompt if encoded is None else encoded).input_ids if ids is None else ids
    return align_tokens(
        Vocabulary.from_tokenizer(tokenizer), ids, [1] * len(ids), prompt, list(range(len(ids))), ("encoder",)
    )


def check_order(prompt, tokens):
    """In order; two tokens overlap only where they share the bytes of one character, or one <unk>."""
    spans = [token.span for token in tokens if token.span]
    for (start, end), (after, last) in itertools.pairwise(spans):
        assert start <= after and end <= last
        marks = prompt[after + 1 : end]
        assert (start, end) == (after, last) or all(map(unicodedata.combining, marks)), (prompt, start, end, after)


def check_spelling(kind, prompt, tokens):
    """Each token of text spells its characters, after the normaliser, or a part of their bytes."""
    vocabulary = Vocabulary.from_tokenizer(TOKENIZERS[kind])
    for token in tokens:
        if token.kind == "text" and token.span:
            text = vocabulary.normalise(prompt[slice(*token.span)]).replace("　", " ")
            spelled = vocabulary.token_bytes(token.id).decode(errors="ignore")
            whole = text.encode().replace("▁".encode(), b"")
            assert vocabulary.token_bytes(token.id) in whole or not spelled.strip("　"), (prompt, token)


@kinds
@given(prompts)
@settings(deadline=None, max_examples=60)
def test_spans_are_in_order_and_spelled_by_their_tokens(kind, prompt):
    tokens, cut, changed = align(kind, prompt)
    assert cut is None and not changed
    check_order(prompt, tokens)
    check_spelling(kind, prompt, tokens)


@kinds
@given(
    st.sampled_from(["a red cat", "猫 red", "左边是猫，cat"]), st.sampled_from(["blue moon", "月亮，left", "the moon"])
)
@settings(deadline=None, max_examples=30)
def test_a_gap_does_not_shift_what_is_behind_it(kind, before, after):
    """The pipeline puts another text in place of a part of the prompt."""
    prompt, encoded = f"{before} https://example.org/xyz {after}", f"{before} qqqq zz {after}"
    whole, _, changed = align(kind, prompt, encoded)
    check_order(prompt, whole)
    found = {token.span for token in whole if token.span and token.text.strip()}
    alone = f"{before} {' ' * len('https://example.org/xyz')} {after}"
    expected = {token.span for token in align(kind, alone).tokens if token.span and token.text.strip()}
    assert expected <= found
    assert "example" in changed and not set(changed) & set("猫月亮左边")


@pytest.mark.parametrize("prompt", ["龘鑫", "饕餮", "龘鑫猫饕餮魑", "囍🦉 red", "a 龘鑫  魑 cat"])
def test_each_unknown_character_of_wordpiece_has_its_own_place(prompt):
    encoding = TOKENIZERS["WordPiece"](prompt, return_offsets_mapping=True)
    truth = [tuple(span) if span[1] else None for span in encoding.offset_mapping]
    tokens = align("WordPiece", prompt).tokens
    assert [token.span for token in tokens] == truth
    assert [token.kind for token in tokens].count("unknown") == encoding.input_ids.count(
        TOKENIZERS["WordPiece"].unk_token_id
    )


def test_unknown_characters_keep_their_places_if_the_pipeline_changed_another_part():
    tokens = align("WordPiece", "龘鑫 https://example.org 饕餮 red", "龘鑫 饕餮 red").tokens
    assert [token.span for token in tokens if token.span] == [(0, 1), (1, 2), (23, 24), (24, 25), (26, 29)]


@pytest.mark.parametrize("prompt", ["a red cat,  left", "a red cat \n\n  left  ", "   cat", "cat   "])
def test_runs_of_spaces_that_are_tokens(prompt):
    tokens, cut, changed = align("Gemma", prompt)
    spans = {token.text: token.span for token in tokens}
    assert cut is None and not changed and spans["cat"] == (prompt.index("cat"), prompt.index("cat") + 3)


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("WordPiece", "red [CLS] cat [MASK] 龘 moon"),
        ("lower-case", "red <|endoftext|> cat<|endoftext|>moon"),
        ("Unigram", "red </s> cat <unk> moon <extra_id_0>"),
        ("byte-level", "red <|im_end|> cat moon"),
        ("Gemma", "red <bos> cat <eos>moon"),
    ],
)
def test_special_tokens_typed_into_a_prompt(kind, prompt):
    tokens, cut, changed = align(kind, prompt)
    assert cut is None and not changed
    for word in ("red", "cat", "moon"):
        start = prompt.index(word)
        owned = [
            token for token in tokens if token.span and token.span[0] < start + len(word) and start < token.span[1]
        ]
        assert owned and all(start <= token.span[0] and token.span[1] <= start + len(word) for token in owned)


def test_lower_case_depends_on_the_word():
    prompt = "ΟΔΟΣ ΣΑΣ, İstanbul RED cat"
    tokens, cut, changed = align("byte-level", prompt, prompt.lower())
    assert cut is None and not changed
    assert tokens[-1].span == (len(prompt) - 3, len(prompt))


def test_a_prompt_that_is_padded_was_not_cut():
    tokenizer, prompt = TOKENIZERS["lower-case"], "red cat, https://example.org"
    ids = tokenizer("red cat,", padding="max_length", max_length=12).input_ids
    tokens, cut, changed = align_tokens(
        Vocabulary.from_tokenizer(tokenizer), ids, None, prompt, range(len(ids)), ("encoder",)
    )
    assert cut is None and changed == "https://example.org" and (4, 7) in [token.span for token in tokens]


def test_another_prompt_is_noticed():
    with pytest.raises(SpellingError, match="does not continue"):
        align("byte-level", "red cat", "an entirely different prompt of the blue moon")
