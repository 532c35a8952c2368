"""Which characters the tokens of other people's tokenizers stand for."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from packaging.version import Version

transformers = pytest.importorskip("transformers")

from tests.pipelines.vocabularies import (  # noqa: E402
    bert_tokenizer,
    chatglm_tokenizer,
    clip_tokenizer,
    gemma_tokenizer,
    mistral_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)
from toushi.probe.text.alignment import segment, token_shares  # noqa: E402
from toushi.probe.text.spelling import SpellingError, Vocabulary, align_tokens  # noqa: E402

REAL = Path(os.environ.get("TOUSHI_Z_IMAGE_TOKENIZER", "nowhere"))  # a folder; the tests need no network
HARD = [
    "",
    "  ",
    "red cat",
    "Red  CAT\n",
    "左边是猫，右边是月亮",
    "🦉 owl，猫 𰻝龘",
    "e\u0301te\u0301 café",
    "ｆｕｌｌ　width",
    "<|endoftext|>",
    "龘龘𰻝，𰻝龘！（龘）「𰻝」",
    "👩‍👩‍👧 和 🇨🇳，👍🏽。",
    "猫 cat 猫，cat猫猫cat",
    "Ｃａｔ！？　２０２６年①㍿ﬁ",
]


def spell(tokenizer, text, template=("", ""), **how):
    found = tokenizer(template[0] + text + template[1], **how)
    ids, mask = found.input_ids, found.attention_mask
    return align_tokens(
        Vocabulary.from_tokenizer(tokenizer), ids, mask, text, list(range(len(ids))), ("encoder",), template
    )[:2]


def covered(tokens, text):
    """The characters that no token stands for, without white space."""
    left = set(range(len(text))) - {i for t in tokens if t.span for i in range(*t.span)}
    return "".join(text[index] for index in sorted(left)).strip()


MAKERS = {
    "clip": clip_tokenizer,
    "qwen": qwen_tokenizer,
    "mistral": mistral_tokenizer,
    "t5": t5_tokenizer,
    "gemma": gemma_tokenizer,
    "chatglm": chatglm_tokenizer,
    "bert": bert_tokenizer,
}


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("kind", MAKERS)
def test_every_character_belongs_to_a_token(kind, text):
    tokens, cut = spell(MAKERS[kind](), text)
    # The CLIP tokenizer of transformers 4 removes the joiners of an emoji before it looks for tokens.
    removed = "\u200d" if kind == "clip" and Version(transformers.__version__) < Version("5") else ""
    assert cut is None and covered(tokens, text).strip(removed or None) == ""
    for token in tokens:
        assert (token.span is None) or token.text == text[slice(*token.span)]
        assert token.kind in ("text", "unknown", "special")
    spans = [token.span for token in tokens if token.span]
    assert spans == sorted(spans)


@pytest.mark.parametrize("kind", MAKERS)
def test_words_share_out_the_mass_of_all_tokens(kind):
    """Whatever a token costs or spans: characters over several tokens, tokens over several characters."""
    for text in HARD:
        tokens = [token for token in spell(MAKERS[kind](), text)[0] if token.span]
        mass = np.random.default_rng(0).random(len(tokens))
        edges = sorted({0, len(text), *(edge for word in segment(text) for edge in word.span)})
        total = sum((mass * token_shares(tokens, part)).sum() for part in itertools.pairwise(edges))
        assert np.isclose(total, mass.sum()), text


@pytest.mark.parametrize("kind", MAKERS)
def test_repeated_words_are_told_apart_by_place(kind):
    text = "猫 red cat，red 猫"
    tokens, _ = spell(MAKERS[kind](), text)
    owners = [{t.position for t in tokens if t.span and t.span[0] < end and start < t.span[1]} for start, end in
              (word.span for word in segment(text))]  # fmt: skip
    assert [word.text for word in segment(text)] == ["猫", "red", "cat", "red", "猫"]
    assert all(owners) and not owners[0] & owners[4] and not owners[1] & owners[3]


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_cut_off_is_told_by_its_place(kind):
    tokenizer, text = MAKERS[kind](), "red 龘 cat，𰻝 moon 🦉 blue 猫 the left"
    whole = len(spell(tokenizer, text)[0])
    for length in range(4, whole):
        tokens, cut = spell(tokenizer, text, truncation=True, max_length=length)
        reached = max((token.span[1] for token in tokens if token.span), default=0)
        assert cut is None or cut <= reached + 1 or not text[reached:cut].strip()
        assert cut is not None or not text[reached:].strip()
        assert not {t.kind for t in tokens} - {"text", "unknown", "special"}


@pytest.mark.parametrize("kind", ["chatglm", "mistral"])
def test_padding_on_the_left(kind):
    tokens, _ = spell(MAKERS[kind](), "red 龘 cat", padding="max_length", max_length=30)
    kinds = [token.kind for token in tokens]
    assert kinds[0] == "pad" and kinds[-1] == "text" and "cat" in [token.text for token in tokens]
    first = next(index for index, token in enumerate(tokens) if token.kind != "pad")
    assert [token.position for token in tokens[first:]] == list(range(30 - first))
    assert [token.column for token in tokens] == list(range(30))


def test_an_unknown_token_stands_for_what_lies_between_its_neighbours():
    tokens, _ = spell(t5_tokenizer(), "猫在山 red 月 cat")
    assert [(t.text, t.span) for t in tokens if t.span and t.text.strip()] == [
        ("猫", (0, 1)),
        ("在山", (1, 3)),
        ("red", (4, 7)),
        ("月", (8, 9)),
        ("cat", (10, 13)),
    ]


def test_pieces_of_words_and_folded_case():
    tokens, _ = spell(bert_tokenizer(), "Red-cat LEDGE 猫")
    spans = {t.text: t.span for t in tokens if t.span}
    assert spans["Red"] == (0, 3) and spans["cat"] == (4, 7) and spans["猫"] == (14, 15)
    assert [t.span for t in tokens if t.span and 8 <= t.span[0] < 13] == [(i, i + 1) for i in range(8, 13)]


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_padding_and_the_first_end(kind):
    tokens, _ = spell(MAKERS[kind](), "red cat", padding="max_length", max_length=20)
    kinds = [token.kind for token in tokens]
    assert kinds[-1] == "pad" and kinds.count("special") == (2 if kind == "clip" else 1)
    assert all(token.span is None for token in tokens if token.kind != "text")
    fast = Vocabulary.from_tokenizer(MAKERS[kind]())
    # Where no mask is known, the ids alone say the same.
    assert fast.kinds([token.id for token in tokens], None) == kinds


def test_a_cut_prompt_says_where():
    text = "red cat and blue moon"
    tokens, cut = spell(clip_tokenizer(), text, truncation=True, max_length=5)
    assert [t.text for t in tokens if t.kind == "text"] == ["red", "cat", "and"]
    assert cut == text.index("blue")


def test_a_template_is_no_text_even_where_it_has_the_prompts_words():
    template = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    for text in ("user", "assistant", "", " cat ", "<|im_end|>"):
        tokens, cut = spell(qwen_tokenizer(), text, template)
        assert cut is None and covered(tokens, text) == ""
        own = [token for token in tokens if token.kind == "text"]
        assert "".join(token.text for token in own) == text.strip()
        assert {token.kind for token in tokens} <= {"text", "template"}
        assert tokens[0].kind == "template" == tokens[-1].kind


def test_ids_of_another_prompt_are_noticed():
    tokenizer = qwen_tokenizer()
    ids = tokenizer("blue moon").input_ids
    with pytest.raises(SpellingError, match="token 0"):
        align_tokens(Vocabulary.from_tokenizer(tokenizer), ids, None, "red cat", range(len(ids)), ("encoder",))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real tokenizer is not here")
@pytest.mark.parametrize("text", [*HARD[:-1], "我在河边的银行钓鱼", "a cat's 3 hats…"])
def test_the_real_tokenizer_of_z_image(text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(REAL)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    before, _, after = whole.partition("user\n" + text)
    tokens, cut = spell(tokenizer, text, (before + "user\n", after))
    assert cut is None and covered(tokens, text) == ""
    # White space where prompt and template meet is the template's.
    assert [token.kind for token in tokens].count("template") == 8 + (text in ("  ", "Red  CAT\n"))
    if text.startswith("我"):
        assert [t.text for t in tokens if t.kind == "text"] == ["我在", "河边", "的", "银行", "钓鱼"]


def test_the_byte_alphabet_is_that_of_tokenizers():
    encoded = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = qwen_tokenizer()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for character in "aé猫🦉":
        piece = encoded.pre_tokenize_str(character)[0][0]
        spelled = b"".join(vocabulary.token_bytes(tokenizer.convert_tokens_to_ids(letter)) for letter in piece)
        assert spelled == character.encode()
