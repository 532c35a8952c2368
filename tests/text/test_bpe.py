import copy

import pytest
from hypothesis import given

from tests.text.prompts import HARD, TEXTS, prompts
from toushi.probe.text.alignment import UnreadablePrompt, segment
from toushi.probe.text.bpe import BadTokenizer, Tokenizer

TRAINED = Tokenizer.train(TEXTS, vocab_size=420)  # hypothesis and function fixtures do not mix


@given(prompts)
def test_ids_come_back_as_the_text(prompt):
    encoding = TRAINED.encode(prompt)
    text = TRAINED.decode(encoding.ids)
    assert text == prompt or (prompt.startswith(text) and len(encoding.ids) > TRAINED.length - 4)


@given(prompts)
def test_an_encoding_is_well_formed(prompt):
    encoding = TRAINED.encode(prompt)
    tokens = encoding.tokens
    assert encoding.prompt == prompt
    assert len(tokens) == len(encoding.ids) <= TRAINED.length
    assert tuple(token.id for token in tokens) == encoding.ids
    assert (encoding.ids[0], encoding.ids[-1]) == (TRAINED.bos, TRAINED.eos)
    assert [token.position for token in tokens] == [token.column for token in tokens] == list(range(len(tokens)))
    assert [token.kind for token in tokens] == ["special"] + ["text"] * (len(tokens) - 2) + ["special"]
    for token in tokens[1:-1]:
        assert prompt[token.span[0] : token.span[1]] == token.text != ""
    starts = [token.span[0] for token in tokens[1:-1]]
    assert starts == sorted(starts)


@given(prompts)
def test_every_word_is_covered_by_tokens_or_named_as_lost(prompt):
    encoding = TRAINED.encode(prompt)
    covered = {i for token in encoding.tokens if token.span for i in range(*token.span)}
    for word in segment(prompt):
        whole = set(range(word.start, word.end)) <= covered
        assert whole != (word in encoding.lost)


@pytest.mark.parametrize(("character", "count"), [("𰻝", 4), ("龘", 3)])
def test_a_rare_character_is_several_tokens_with_one_span(character, count):
    tokens = TRAINED.encode(f"猫{character}猫").tokens
    assert [token.text for token in tokens if token.span == (1, 2)] == [character] * count


def test_merges_are_real_but_learned_within_words():
    texts = [token.text for token in TRAINED.encode("河边的银行，左边是猫").tokens[1:-1]]
    assert "河边" in texts and "，" in texts
    assert not any("，" in text and len(text) > 1 for text in texts)
    assert "边是" not in "|".join(texts)


def test_a_space_belongs_to_no_word_so_english_words_keep_their_mass():
    encoding = TRAINED.encode("a red cat")
    assert [(t.text, t.span) for t in encoding.tokens[1:-1]] == [
        ("a", (0, 1)),
        ("red", (2, 5)),
        ("cat", (6, 9)),
    ]


def test_specials_written_in_a_prompt_are_text():
    encoding = TRAINED.encode("<eos>猫")
    assert TRAINED.eos not in encoding.ids[:-1] and TRAINED.decode(encoding.ids) == "<eos>猫"


def test_the_empty_prompt():
    assert TRAINED.encode("").ids == (TRAINED.bos, TRAINED.eos)


def test_a_long_prompt_is_cut_at_a_character_and_its_words_named():
    encoding = TRAINED.encode("龘" * 30 + "猫头鹰")
    assert len(encoding.ids) <= 77
    assert {t.span for t in encoding.tokens[1:-1]} == {(i, i + 1) for i in range(25)}
    assert encoding.lost[0].start == 25 and encoding.lost[-1].text == "猫头鹰"


@pytest.mark.parametrize("prompt", HARD)
def test_save_and_load_and_copy_are_identity(prompt, tmp_path):
    TRAINED.save(tmp_path / "tokenizer.json")
    for other in (Tokenizer.load(tmp_path / "tokenizer.json"), copy.deepcopy(TRAINED)):
        assert other.encode(prompt) == TRAINED.encode(prompt)
        assert (other.vocab_size, other.pad) == (TRAINED.vocab_size, TRAINED.pad)


def test_training_is_deterministic():
    assert Tokenizer.train(TEXTS, 420)._inner.to_str() == TRAINED._inner.to_str()


def test_vocabulary_holds_all_bytes_and_the_specials():
    bare = Tokenizer.train([], vocab_size=259)
    assert bare.vocab_size == 259 and (bare.bos, bare.eos, bare.pad) == (0, 1, 2)
    assert bare.decode(bare.encode("𰻝猫").ids) == "𰻝猫"
    with pytest.raises(BadTokenizer, match="259"):
        Tokenizer.train([], vocab_size=100)


def test_bad_files_and_prompts(tmp_path):
    with pytest.raises(BadTokenizer, match="No tokenizer"):
        Tokenizer.load(tmp_path / "none.json")
    for content in (b"", b"{}", b"\xff", b'{"model": 3}'):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(BadTokenizer):
            Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(UnreadablePrompt):
        TRAINED.encode("\ud800")
