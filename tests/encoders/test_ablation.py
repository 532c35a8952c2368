"""What changes a word's state: laws that hold for any encoder, and that a causal one cannot see ahead."""

import numpy as np
import pytest
import torch

from tests.encoders.tiny_encoders import made
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.ablation import ablate_words, attention_rollout, cosine_distance, patch_words, remove_span
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import open_encoder, wrap_encoder
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.text.alignment import UnknownWord

PAIR = "左边是红色的猫，右边是狗"


@pytest.fixture(scope="module")
def encoder():
    """One with weights large enough that words matter to each other."""
    model = MiniUNet.tiny()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return open_encoder(model)


def test_what_is_left_out_changes_the_others_as_encoding_without_it_does(encoder):
    (found,) = ablate_words(encoder, [PAIR], how="cut")
    whole, without = encode_layers(encoder, [PAIR, PAIR.replace("红色", "")])
    words = [word.text for word in whole.words]
    assert found.dims == ("layer", "query", "word") and found["word"].values.tolist() == found["query"].values.tolist()
    column = found.sel(word="红色")
    cat = cosine_distance(whole.word_states(["猫"]), without.word_states(["猫"]))
    np.testing.assert_allclose(column.sel(query="猫"), cat[:, 0], atol=1e-6)
    assert np.isnan(column.sel(query="红色")).all() and np.isfinite(column.drop_sel(query="红色")).all()
    assert found.shape == (len(encoder.layers) + 1, len(words), len(words)) and float(found.max()) > 1e-3


def test_blanked_a_word_moves_nothing_and_changes_the_others(encoder):
    (found,) = ablate_words(encoder, [PAIR])
    off = ~np.eye(found.shape[1], dtype=bool)
    assert (found.values[0][off] == 0).all() and np.isnan(found.values[0][~off]).all()
    assert found.values[-1][off].min() > 1e-9 and found.values[-1][off].max() < 2


@pytest.mark.parametrize("how", ["blank", "cut"])
def test_only_the_words_that_are_asked_for(encoder, how):
    texts = [PAIR, "猫在左边"]
    every = ablate_words(encoder, texts, how=how)
    for one, all_, word in zip(ablate_words(encoder, texts, [["狗"], ["猫"]], how=how), every, "狗猫"):
        np.testing.assert_allclose(one.sel(query=word), all_.sel(query=word), atol=1e-6)
    with pytest.raises(UnknownWord):
        ablate_words(encoder, ["猫在左边"], [["狗"]])


def test_a_causal_encoder_does_not_see_what_comes_later():
    causal = wrap_encoder(*made("qwen3"))
    text, source = "some red cats sit here", "many old dogs run home"  # Chinese tokens may span two words
    for how in ("blank", "cut"):
        (found,) = ablate_words(causal, [text], how=how)
        ahead = np.triu(np.ones(found.shape[1:], bool), 1)  # the word comes after the query
        np.testing.assert_allclose(found.values[:, ahead], 0, atol=1e-6)
    effect = patch_words(causal, text, source)
    ahead = np.triu(np.ones(effect.shape[1:], bool), 1)
    np.testing.assert_allclose(effect.values[:, ahead], 0, atol=1e-6)
    assert effect.values[0][np.tril(np.ones(effect.shape[1:], bool))].min() > 1e-6


@pytest.mark.parametrize("kind", ["mini-unet", "bert", "qwen3", "t5"])
def test_patched_at_the_embeddings_the_encoder_reads_the_other_word(kind, encoder):
    known = encoder if kind == "mini-unet" else wrap_encoder(*made(kind))
    text, source = "我在河边钓鱼", "我在海边钓鱼"
    own, other = encode_layers(known, [text, source])
    if len(own.tokens) != len(other.tokens):
        pytest.skip("this tokenizer cuts the two sentences differently")
    effect = patch_words(known, text, source)
    assert effect.dims == ("layer", "query", "word") and effect.sizes["layer"] == len(known.layers)
    different = [i for i, (a, b) in enumerate(zip(own.words, other.words)) if a.text != b.text]
    same = [i for i in range(len(own.words)) if i not in different]
    if len(different) == 1:
        expected = cosine_distance(own.word_states().values[-1], other.word_states().values[-1])
        np.testing.assert_allclose(effect.values[0, :, different[0]], expected, atol=1e-5)
    np.testing.assert_allclose(effect.values[0][:, same], 0, atol=1e-5)


def test_patched_with_itself_nothing_changes(encoder):
    np.testing.assert_allclose(patch_words(encoder, PAIR, PAIR), 0, atol=1e-6)


def test_patched_late_a_state_comes_nowhere_else_in_full(encoder):
    effect = patch_words(encoder, "红色的猫", "蓝色的狗").values
    others = ~np.eye(effect.shape[1], dtype=bool)
    own = np.eye(effect.shape[1], dtype=bool)
    assert effect[-1][others].mean() < effect[0][others].mean() and effect[-1][own].min() > 1e-4


def test_sentences_of_unequal_length_are_told_apart(encoder):
    with pytest.raises(ToushiError, match="equally many words, but 3 .*红色/的/猫.* and 1"):
        patch_words(encoder, "红色的猫", "猫")


def test_rollout_by_word_sums_to_one(encoder):
    reading = encode_layers(encoder, [PAIR])[0]
    found = attention_rollout(reading)
    assert found.dims == ("layer", "query", "word")
    np.testing.assert_allclose(found.sum("word"), 1, atol=1e-5)
    assert found.sizes["layer"] == len(encoder.layers)


@pytest.mark.parametrize(
    "text, word, left",
    [("a red cat", "red", "a cat"), ("红色的猫", "猫", "红色的"), ("a cat", "a", "cat"), ("x, y", "x", ", y")],
)
def test_cutting_a_word_out_leaves_the_others_where_they_can_be_found(text, word, left):
    start = text.index(word)
    shorter, moved = remove_span(text, (start, start + len(word)))
    assert shorter == left
    for other in left.split():
        at = text.index(other)
        assert shorter[slice(*moved((at, at + len(other))))] == other
