import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from tests.encoders.tiny_encoders import KINDS, eager_bert, made, need_attention
from tests.text.prompts import HARD, prompts
from toushi.probe.analysis.layer_measures import sense_separation
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders import word_spans as spans
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import UnknownEncoder, load_pretrained, open_encoder, wrap_encoder
from toushi.probe.models.mini_unet import MiniUNet, PromptCut
from toushi.probe.models.text_encoder import apply_rope
from toushi.probe.text.alignment import UnknownWord, token_shares
from toushi.probe.trace.text_encoding import OTHER, SPECIAL, NotReadable

pytest.importorskip("transformers")

REAL = Path(__file__).parents[2].parent / "shared/models/multilingual-e5-small-zh-en"
BANK, MONEY = "我在河边的银行钓鱼", "他去银行存钱了"
EVERY = ["mini-unet", *KINDS]


@pytest.fixture(scope="module")
def tiny() -> MiniUNet:
    return MiniUNet.tiny()


@pytest.fixture(scope="module")
def models() -> dict:
    return {kind: made(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def encoders(models, tiny) -> dict:
    return {"mini-unet": open_encoder(tiny)} | {kind: wrap_encoder(*models[kind]) for kind in KINDS}


@pytest.fixture
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- states and attention are the model's own ---


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_a_plain_pass(kind, models, encoders):
    model, tokenizer = models[kind]
    model = model.get_encoder() if kind == "t5" else model
    for reading in encode_layers(encoders[kind], [BANK, MONEY, "a red cat"]):
        ids = torch.tensor([tokenizer(reading.text)["input_ids"]])
        assert [token.id for token in reading.tokens] == ids[0].tolist()
        plain = model(input_ids=ids, output_hidden_states=True)
        assert reading.states.dims == ("layer", "token", "feature")
        assert reading.states["layer"].values.tolist() == [0, 1, 2, 3] and len(plain.hidden_states) == 4
        for number, state in enumerate(plain.hidden_states[:-1]):
            np.testing.assert_allclose(reading.states[number], state[0], atol=1e-6)
        np.testing.assert_allclose(reading.final, plain.last_hidden_state[0], atol=1e-6)
        # The last of transformers' states is after the final norm where there is one; ours is before it.
        known = ("final_layer_norm", "text_model.final_layer_norm", "norm")
        norm = next((module for name, module in model.named_modules() if name in known), lambda state: state)
        assert isinstance(norm, torch.nn.Module) == (kind in ("t5", "clip", "qwen3"))
        np.testing.assert_allclose(norm(torch.tensor(reading.states.values[-1])), reading.final, atol=1e-5)


def test_states_of_our_encoder_are_those_of_a_plain_pass(tiny, encoders):
    (reading,) = encode_layers(encoders["mini-unet"], [BANK])
    ids = torch.tensor([[token.id for token in reading.tokens]])
    x = tiny.encoder.embed(ids)
    np.testing.assert_array_equal(reading.states[0], x[0])
    for number, layer in enumerate(tiny.encoder.layers, 1):
        x = layer(x, torch.ones(1, 1, 1, ids.shape[1], dtype=torch.bool))
        np.testing.assert_allclose(reading.states[number], x[0], atol=1e-6)
    np.testing.assert_allclose(reading.final, tiny.encode_text([BANK]).states[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_the_softmax_that_the_eager_model_takes(kind, encoders):
    need_attention(kind)
    model, _ = made(kind)
    model = model.get_encoder() if kind == "t5" else model
    model.set_attn_implementation("eager")
    for reading in encode_layers(encoders[kind], [BANK, "a red cat's"]):
        ids = torch.tensor([[token.id for token in reading.tokens]])
        plain = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions
        assert reading.attention.dims == ("layer", "head", "query", "token")
        assert reading.attention["layer"].values.tolist() == [1, 2, 3]
        np.testing.assert_allclose(reading.attention.values, torch.stack(plain)[:, 0], atol=1e-6)
        assert np.triu(reading.attention.values, 1).any() != (kind in ("clip", "qwen3"))


def test_attention_of_our_encoder_is_an_explicit_softmax(tiny, encoders):
    (reading,) = encode_layers(encoders["mini-unet"], [BANK])
    for number, layer in enumerate(tiny.encoder.layers, 1):
        before = layer.attention_norm(torch.tensor(reading.states.values[number - 1]))
        q, k, _ = F.linear(before, layer.attention.to_qkv.weight).reshape(len(before), 3, 2, 16).permute(1, 2, 0, 3)
        q, k = (apply_rope(F.rms_norm(part, (16,))) for part in (q, k))
        expected = (q @ k.transpose(1, 2) * layer.attention.QK_SCALE / 4).softmax(-1)
        np.testing.assert_allclose(reading.attention.sel(layer=number), expected, atol=1e-6)


@pytest.mark.parametrize("kind", EVERY)
def test_company_changes_nothing(kind, encoders):
    need_attention(kind)
    alone = encode_layers(encoders[kind], [MONEY])[0]
    many = encode_layers(encoders[kind], ["猫", BANK, MONEY, MONEY, "他去银行存钱吗", "a red cat on the left"] * 4)
    for reading in (many[2], many[3], many[20]):
        assert reading.text == MONEY and reading.tokens == alone.tokens
        np.testing.assert_allclose(reading.states, alone.states, atol=2e-6)
        np.testing.assert_allclose(reading.attention, alone.attention, atol=2e-6)


def test_nothing_stays_behind(models, encoders, tiny):
    every = [*tiny.modules(), *(module for model, _ in models.values() for module in model.modules())]

    def hooks():
        return [(*module._forward_hooks, *module._forward_pre_hooks) for module in every]

    original, before = F.scaled_dot_product_attention, hooks()
    for kind in EVERY:
        encode_layers(encoders[kind], [BANK])
    assert F.scaled_dot_product_attention is original and hooks() == before


# --- words ---


@pytest.mark.filterwarnings("ignore:a text is longer")
@pytest.mark.parametrize("kind", EVERY)
def test_what_words_read_of_words_and_of_all_else_is_all_there_is(kind, encoders):
    need_attention(kind)
    for reading in encode_layers(encoders[kind], [text[:90] for text in HARD if text.strip()]):
        by_word = reading.word_attention()
        np.testing.assert_allclose(by_word.sum("word"), 1, atol=1e-5)
        # The special column once more, token by token.
        own = np.array([token_shares(reading.tokens, word.span) for word in reading.words])
        mean = np.einsum("qt,lht->lhq", own / own.sum(1, keepdims=True), sum_of(reading, "special", "template"))
        np.testing.assert_allclose(by_word.sel(word=SPECIAL), mean, atol=1e-5)
        # All that text receives goes to words or to the other text, whatever the cut into words.
        text = by_word.drop_sel(word=SPECIAL).sum("word").values
        np.testing.assert_allclose(
            text, np.einsum("qt,lht->lhq", own / own.sum(1, keepdims=True), sum_of(reading, "text")), atol=1e-5
        )


def sum_of(reading, *kinds) -> np.ndarray:
    columns = [token.position for token in reading.tokens if token.kind in kinds]
    return reading.attention.values[..., columns].sum(-1)


def test_a_word_is_the_mean_of_its_tokens_each_by_its_share(encoders):
    (reading,) = encode_layers(encoders["qwen3"], ["𰻝面和猫"])
    tokens = [token for token in reading.tokens if token.span == (0, 1)]
    assert len(tokens) == 4  # bytes
    states = reading.states.values
    found = reading.word_states([(0, 1), (0, 2), "猫"])
    assert found.dims == ("layer", "word", "feature") and found["word"].values.tolist() == ["𰻝", "𰻝面", "猫"]
    np.testing.assert_allclose(found[:, 0], states[:, :4].mean(1), atol=1e-6)
    weights = token_shares(reading.tokens, (0, 2))
    np.testing.assert_allclose(found[:, 1], np.average(states, axis=1, weights=weights), atol=1e-6)


def test_half_a_token_is_half_its_mass(encoders):
    (reading,) = encode_layers(encoders["qwen3"], ["左边是猫"])
    assert reading.tokens[0].span == (0, 2) and reading.tokens[1].span == (2, 3)
    halves = reading.word_attention([(0, 1), (1, 2)])
    whole = reading.attention.values[:, :, 0, 0]
    np.testing.assert_allclose(halves[:, :, 0, 0], whole / 2, atol=1e-6)
    np.testing.assert_allclose(halves[:, :, 0, :2].sum("word"), whole, atol=1e-6)
    np.testing.assert_allclose(halves.sum("word"), 1, atol=1e-5)


def test_words_are_asked_for_as_everywhere(encoders):
    readings = encode_layers(encoders["mini-unet"], ["猫、猫头鹰和猫", BANK])
    assert readings[0].word_states()["word"].values.tolist() == ["猫#1", "猫头鹰", "和", "猫#2"]
    one = readings[0].word_states(["猫#2"])
    assert one["word"].values.tolist() == ["猫#2"]
    np.testing.assert_array_equal(one[:, 0], readings[0].word_states()[:, 3])
    assert readings[0].word_attention(["猫头鹰"])["word"].values.tolist() == ["猫头鹰", OTHER, SPECIAL]
    with pytest.raises(UnknownWord, match="银行"):
        readings[1].word_states(["银"])
    with pytest.raises(ToushiError, match="list"):
        readings[1].word_states("银行")


def test_one_word_in_many_texts(encoders):
    readings = encode_layers(encoders["bert"], [BANK, MONEY, "银行"])
    found = readings.states_of("银行")
    assert found.dims == ("layer", "text", "feature") and found.shape == (4, 3, 32)
    np.testing.assert_array_equal(found[:, 1], readings[1].word_states(["银行"])[:, 0])
    np.testing.assert_array_equal(readings.states_of(["银行", (2, 4), "银行"]), found)
    with pytest.raises(ToushiError, match="3 texts"):
        readings.states_of(["银行"])


# --- from tokens to characters ---


def token_spans(encoder, text):
    return [(token.text, token.span) for token in encoder.tokenize(text)[0] if token.span]


@pytest.mark.parametrize("kind", EVERY)
@given(text=prompts)
@settings(max_examples=40, deadline=None)
def test_every_character_that_is_read_belongs_to_a_token_and_to_no_more(kind, text, encoders):
    text = text[:18]  # nothing is cut, were every character four tokens
    tokens, cut = encoders[kind].tokenize(text)
    assert not cut
    ends = 0
    for position, token in enumerate(tokens):
        assert token.position == position and (token.kind == "text") == (token.span is not None)
        if token.span is None:
            continue
        start, end = token.span
        assert 0 <= start < end <= len(text) and token.text == text[start:end]
        assert token.text.strip() == token.text or not token.text.strip()
        assert start <= ends or not text[ends:start].strip() or kind == "bert"  # BERT leaves control characters out
        ends = max(ends, end)
    covered = {i for token in tokens if token.span for i in range(*token.span)}
    missing = [c for i, c in enumerate(text) if i not in covered and not c.isspace()]
    assert not missing or kind in ("bert", "clip") or not "".join(missing).isprintable(), missing


def test_lower_case_full_width_and_composed_characters_keep_their_places(encoders):
    assert ("ＡＢＣ", (0, 3)) in token_spans(encoders["xlm_roberta"], "ＡＢＣ，café") or (
        "".join(text for text, _ in token_spans(encoders["xlm_roberta"], "ＡＢＣ，café")) == "ＡＢＣ，café"
    )
    for kind in ("xlm_roberta", "clip", "qwen3", "t5"):
        for text in ("e\u0301猫", "ｶﾞ猫", "각猫"):
            found = token_spans(encoders[kind], text)
            if kind in ("xlm_roberta", "t5") or not text.startswith("ｶ"):  # NFC leaves half-width kana alone
                assert found[0][1] == (0, len(text) - 1), (kind, found)
            assert found[-1][1] == (len(text) - 1, len(text)), (kind, found)
    assert "".join(dict.fromkeys(text for text, _ in token_spans(encoders["bert"], "Café İS"))) == "CaféİS"


def test_the_joint_before_a_text_stands_for_nothing(encoders):
    tokens = encoders["xlm_roberta"].tokenize("银行")[0]
    joints = [token for token in tokens if token.text == "▁"]
    assert all(token.kind == "template" and token.span is None for token in joints)
    with_space = encoders["xlm_roberta"].tokenize(" 银行")[0]
    assert sum(token.kind == "template" for token in with_space) <= len(joints)
    made_up = spans.tokens_of("我", [5, 6], ["▁", "我"], [(0, 1), (0, 1)], [0, 0])
    assert [(token.kind, token.span) for token in made_up] == [("template", None), ("text", (0, 1))]
    real = spans.tokens_of(" 我", [5, 6], ["▁", "我"], [(0, 1), (1, 2)], [0, 0])
    assert [(token.kind, token.span) for token in real] == [("text", (0, 1)), ("text", (1, 2))]


def test_unknown_words_are_named(encoders):
    (reading,) = encode_layers(encoders["bert"], ["红色的龘"])
    assert [word.text for word in reading.unknown] == ["龘"]
    assert encode_layers(encoders["qwen3"], ["红色的龘"])[0].unknown == ()


# --- trouble ---


@pytest.mark.parametrize("kind, limit", [("mini-unet", 77), ("bert", 64), ("xlm_roberta", 64), ("clip", 77)])
def test_a_text_that_is_too_long_is_cut_and_said_so(kind, limit, encoders):
    text = "左边是猫，右边是月亮，" * 20 + "银行"
    with pytest.warns(PromptCut, match=f"{limit} tokens.*银行"):
        (reading,) = encode_layers(encoders[kind], [text])
    assert len(reading.tokens) <= limit == encoders[kind].limit
    assert reading.words and reading.lost and reading.lost[-1].text == "银行"
    assert reading.words[-1].end <= reading.lost[0].start
    with pytest.raises(ToushiError, match="no token for '银行'"):
        reading.word_states(["银行"])


def test_attention_that_cannot_be_read_is_said_and_states_are_there():
    model, tokenizer = eager_bert()
    (reading,) = encode_layers(wrap_encoder(model, tokenizer), [BANK])
    assert reading.word_states().shape == (4, len(reading.words), 32)
    assert set(reading.blind) == {1, 2, 3}
    for ask in (lambda: reading.attention, reading.word_attention):
        with pytest.raises(NotReadable, match=r"layer 1 .*scaled_dot_product_attention"):
            ask()


def test_the_empty_text(encoders):
    for kind in ("mini-unet", "bert", "clip"):
        (reading,) = encode_layers(encoders[kind], [""])
        assert reading.words == () and len(reading.tokens) == 2
        assert reading.word_attention().shape[2:] == (0, 2) and reading.word_states().shape[1] == 0
    with pytest.raises(ToushiError, match="no tokens"):
        encode_layers(encoders["qwen3"], ["猫", ""])
    assert len(encode_layers(encoders["bert"], [])) == 0


def test_mistakes_are_explained(encoders, models, tmp_path):
    with pytest.raises(ToushiError, match="list of texts"):
        encode_layers(encoders["bert"], BANK)
    with pytest.raises(ToushiError, match="surrogate"):
        encode_layers(encoders["bert"], ["\ud800"])
    with pytest.raises(UnknownEncoder, match="mini-unet"):
        encode_layers("mini-unett", [BANK])
    with pytest.raises(UnknownEncoder, match=r"config\.json"):
        encode_layers(tmp_path, [BANK])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnknownEncoder, match="cannot be loaded"):
        encode_layers(tmp_path, [BANK])
    (tmp_path / "config.json").write_text("猫")
    with pytest.raises(UnknownEncoder, match="JSON"):
        encode_layers(tmp_path, [BANK])

    class Slow:
        is_fast = False

    with pytest.raises(UnknownEncoder, match="Slow, gives no offsets"):
        wrap_encoder(models["bert"][0], Slow())


# --- from folders ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_encoder_reads_as_it_did(kind, models, encoders, tmp_path, without_warnings, capfd):
    need_attention(kind)
    model, tokenizer = models[kind]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    (reading,) = encode_layers(load_pretrained(tmp_path, "cpu"), [BANK])
    said = capfd.readouterr()
    assert not said.out and not said.err
    (expected,) = encode_layers(encoders[kind], [BANK])
    assert reading.tokens == expected.tokens
    np.testing.assert_allclose(reading.states, expected.states, atol=1e-6)
    np.testing.assert_allclose(reading.attention, expected.attention, atol=1e-6)


def test_the_encoder_of_a_pipeline_and_of_our_own_folder(models, tiny, tmp_path):
    model, tokenizer = models["qwen3"]
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    model.save_pretrained(tmp_path / "pipeline" / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "pipeline" / "tokenizer")
    (expected,) = encode_layers(wrap_encoder(model, tokenizer), [BANK])
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "text_encoder"):
        np.testing.assert_allclose(encode_layers(folder, [BANK])[0].states, expected.states, atol=1e-6)
    tiny.save(tmp_path / "tiny", torch.float32)
    readings = encode_layers(str(tmp_path / "tiny"), [BANK])
    assert readings.encoder == "mini-unet"
    np.testing.assert_allclose(readings[0].states, encode_layers(tiny, [BANK])[0].states, atol=1e-6)


def test_an_encoder_that_lacks_weights_is_refused(models, tmp_path):
    from safetensors.torch import load_file, save_file

    model, tokenizer = models["bert"]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    whole = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(whole, tmp_path / "model.safetensors", {"format": "pt"})
    assert len(encode_layers(tmp_path, [BANK])) == 1  # nobody needs the pooler
    save_file(
        {k: v for k, v in whole.items() if "layer.1.output" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UnknownEncoder, match=r"lacks 4 weights, encoder\.layer\.1\.output"):
        encode_layers(tmp_path, [BANK])


# --- a real one ---


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip(f"no pretrained encoder at {REAL}")
    return load_pretrained(REAL, "cpu")


def test_a_real_encoder_is_read_by_word(real):
    (reading,) = encode_layers(real, [BANK])
    assert [token.text for token in reading.tokens] == ["<s>", "▁", "我在", "河", "边", "的", "银行", "钓鱼", "</s>"]
    assert [token.span for token in reading.tokens][1:4] == [None, (0, 2), (2, 3)]
    assert [word.text for word in reading.words] == ["我", "在", "河边", "的", "银行", "钓鱼"]
    assert reading.states.shape == (13, 9, 384) and reading.attention.shape == (12, 12, 9, 9)
    np.testing.assert_allclose(reading.word_attention().sum("word"), 1, atol=1e-5)
    np.testing.assert_allclose(reading.word_states(["河边"])[:, 0], reading.states[:, 3:5].mean("token"), atol=1e-5)


def test_a_real_encoder_tells_the_senses_of_apple_apart(real):
    fruit = ["我吃了一个又甜又脆的苹果", "树上结满了红色的苹果", "妈妈把苹果洗干净切成块", "这个苹果有点酸"]
    firm = ["苹果发布了新款手机", "苹果的股价今天上涨了", "他在苹果当软件工程师", "苹果推出了新的操作系统"]
    readings = encode_layers(real, fruit + firm)
    found = sense_separation(readings.states_of("苹果"), ["fruit"] * 4 + ["firm"] * 4, resamples=200, shuffles=100)
    middle = found.separation[5:12].mean()
    assert found.separation[0] < middle and middle > 0.05
    assert found.accuracy[11] == 1 and found.separation_p[11] < 0.1
