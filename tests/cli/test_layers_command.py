"""`toushi layers` and its figure."""

import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.encoders.tiny_encoders import eager_bert
from tests.text.prompts import HARD
from toushi import main
from toushi.cli import layers
from toushi.probe.analysis.layer_measures import cosine, evenly_spaced
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import wrap_encoder
from toushi.probe.figures.layer_similarity_figure import layer_similarity_figure
from toushi.probe.figures.style import save

BANK, MONEY = "我在河边的银行钓鱼，", "他去银行存钱了"


@pytest.fixture(scope="module")
def readings(tiny):
    return encode_layers(tiny, [BANK, MONEY])


@pytest.fixture(scope="module")
def eager():
    model, tokenizer = eager_bert()
    return wrap_encoder(model, tokenizer)


def maps(figure) -> dict[str, np.ndarray]:
    """The matrices by their titles."""
    return {
        axes.texts[-1].get_text(): np.asarray(axes.images[0].get_array())
        for axes in figure.axes
        if axes.images and axes.texts
    }


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


# --- the figure ---


def test_the_figure_shows_what_was_measured(readings):
    shown = maps(layer_similarity_figure(readings, [0, 3]))
    assert set(shown) == {
        *("sentence 1", "sentence 2", "with 2, layer 0", "with 2, layer 3"),
        *("sentence 1, layer 3", "sentence 2, layer 3"),
    }
    one, other = (reading.word_states() for reading in readings)
    np.testing.assert_allclose(shown["with 2, layer 3"], cosine(one.sel(layer=3), other.sel(layer=3)))
    own = shown["sentence 1"]
    assert own.shape == (len(readings[0].words) + 1, 13)
    np.testing.assert_allclose(own[:-1, 0], 1)
    assert own[2, 5] == pytest.approx(cosine(one.values[5, 2:3], one.values[0, 2:3])[0, 0])
    alike = cosine(one.values[7], one.values[7])
    assert own[-1, 7] == pytest.approx(alike[~np.eye(len(alike), dtype=bool)].mean())
    read = readings[1].word_attention().mean("head").sel(layer=3).values
    np.testing.assert_allclose(shown["sentence 2, layer 3"], read[:, :-2])


def test_what_is_read_beside_the_words_is_written(readings):
    figure = layer_similarity_figure(readings, [5])
    read = readings[0].word_attention().mean("head").sel(layer=5).values
    axes = next(a for a in figure.axes if a.texts and a.texts[-1].get_text() == "sentence 1, layer 5")
    written = [text.get_text() for text in axes.texts[:-1]]
    assert written == [f"{100 * value:.0f}" for row in read for value in row[-2:]]
    assert {"other %", "special %"} <= set(texts(figure))


def test_the_figure_speaks_chinese(readings):
    drawn = texts(layer_similarity_figure(readings, language="zh"))
    said = [text.replace("\n", "") for text in drawn if readings.encoder not in text]
    assert {"句 1", "余弦", "其他％", "不同词，平均"} <= set(said) and not re.search("[A-Za-z]", "".join(said))


def test_made_again_it_is_the_same_file(tiny, tmp_path):
    readings = encode_layers(tiny, ["红色的猫"])
    for ending in ("png", "svg"):
        first = save(layer_similarity_figure(readings), tmp_path / f"1.{ending}").read_bytes()
        assert first == save(layer_similarity_figure(readings), tmp_path / f"2.{ending}").read_bytes()
    picture = np.asarray(Image.open(tmp_path / "1.png").convert("L"))
    assert (picture[:100] < 128).any()  # the sentences have ink


@pytest.mark.filterwarnings("ignore:a text is longer")
def test_hard_sentences_are_drawn(tiny):
    layer_similarity_figure(encode_layers(tiny, [text[:16] for text in HARD]), [6]).draw_without_rendering()


def test_attention_that_cannot_be_read_leaves_the_rest_and_a_note(eager):
    figure = layer_similarity_figure(encode_layers(eager, [BANK, MONEY]))
    assert not any("sentence 1, layer" in title for title in maps(figure))
    assert any("attention is not shown" in text for text in texts(figure))


def test_a_layer_that_is_not_there(readings, eager):
    with pytest.raises(ToushiError, match="no layer 13.*0 .*to 12"):
        layer_similarity_figure(readings, [13])
    with pytest.raises(ToushiError, match="at least one"):
        layer_similarity_figure(encode_layers(eager, []))
    assert evenly_spaced([1, 2, 3], 4) == [1, 2, 3] and evenly_spaced(range(13), 4) == [0, 4, 8, 12]


# --- the command ---


def test_the_command_tells_and_draws(tiny, readings, tmp_path, capsys):
    out = tmp_path / "new" / "银行.png"
    assert main(["layers", BANK, MONEY, "--encoder", tiny, "--layers", "0", "3", "12", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert not said.err and str(out) in said.out and Image.open(out).width > 600
    assert "mini-unet, 12 layers of 2 heads, 32 wide" in said.out
    one, other = (reading.word_states(["银行"]).values[:, 0] for reading in readings)
    both = said.out.partition("the same word in sentences 1 and 2")[2]
    row = next(line for line in both.splitlines() if line.startswith("银行"))
    assert row.split()[1:] == [layers.format_cosine(cosine(one[k : k + 1], other[k : k + 1])[0, 0]) for k in (0, 3, 12)]
    # What a word reads: itself, other text and specials are told as means, and none is above 100 %.
    assert all(0 <= int(share) <= 100 for share in re.findall(r"(\d+) %", said.out))
    assert all(name in said.out for name in ("(itself)", "(other text)", "(special tokens)", "different words"))


@pytest.mark.parametrize("sentence", ["", "，", "猫", "龘👨‍👩‍👧 ＡＢＣ"])
def test_short_and_strange_sentences(sentence, tiny, capsys):
    assert main(["layers", sentence, "猫和猫", "--encoder", tiny]) == 0
    said = capsys.readouterr()
    assert "sentence 2" in said.out and "nan" not in said.out and not said.err


def test_unknown_words_and_unreadable_attention_are_warned_of(capsys, monkeypatch, eager):
    monkeypatch.setattr("toushi.probe.encoders.load_encoder.open_encoder", lambda *_: eager)
    assert main(["layers", "红色的龘"]) == 0
    said = capsys.readouterr()
    assert "has no token for: 龘" in said.err and "attention is not shown: layer 1" in said.err
    assert "reads most" not in said.out and "different words" in said.out


def test_mistakes_are_one_line(fails, tiny, tmp_path):
    assert "expected a sentence" in fails("layers")
    assert "mini-unet" in fails("layers", BANK, "--encoder", "mini-unett")
    assert "config.json" in fails("layers", BANK, "--encoder", tmp_path)
    assert "no layer 99" in fails("layers", BANK, "--encoder", tiny, "--layers", "99", "--save", tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert ".png" in fails("layers", BANK, "--encoder", tiny, "--out", tmp_path / "a.jpg")
    assert "at most 12" in fails("layers", *["猫"] * 13, "--encoder", tiny)
    assert "surrogate" in fails("layers", "\ud800", "--encoder", tiny)
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("layers", BANK, "--encoder", tiny, "--out", tmp_path / "file" / "a.png")
