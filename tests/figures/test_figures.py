import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

from tests.figures.tiny_traces import made_trace
from tests.text.prompts import HARD
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import text_width, truncate
from toushi.probe.figures.comparison_figure import comparison_figure
from toushi.probe.figures.encoder_figure import encoder_figure
from toushi.probe.figures.layers_figure import layers_figure
from toushi.probe.figures.style import overlay, overlay_colours, percent, save
from toushi.probe.figures.timeline_figure import timeline_figure
from toushi.probe.figures.tokens_figure import tokens_figure
from toushi.probe.figures.words_figure import words_figure, words_to_draw
from toushi.probe.text.alignment import Word, word_labels
from toushi.probe.trace.comparison import compare
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import NotRecorded

ALL = {
    "words": words_figure,
    "timeline": timeline_figure,
    "layers": lambda trace: layers_figure(trace, "猫"),
    "encoder": lambda trace: encoder_figure(trace, 0),
    "tokens": tokens_figure,
    "comparison": lambda trace: comparison_figure(compare(trace, trace)),
}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("name", ALL)
def test_made_again_it_is_the_same_file(name, trace, tmp_path):
    for ending in ("png", "pdf", "svg") if name == "timeline" else ("png",):
        first = save(ALL[name](trace), tmp_path / f"first.{ending}").read_bytes()
        with matplotlib.rc_context({"font.family": "serif", "figure.dpi": 50, "savefig.bbox": "tight"}):
            again = save(ALL[name](open_trace(trace.folder)), tmp_path / f"again.{ending}").read_bytes()
        assert first == again
        assert not any(word in first for word in (b"Matplotlib v", b"CreationDate", b"dc:date"))


def test_the_callers_settings_are_left_alone(trace):
    before = dict(matplotlib.rcParams)
    words_figure(trace)
    assert dict(matplotlib.rcParams) == before


def test_one_picture_and_one_overlay_for_each_word_on_one_scale(trace):
    figure = words_figure(trace)
    names = ["左边", "是#1", "猫", "右边", "是#2", "月亮", "夜晚"]
    assert word_labels(trace.words(), trace.words()) == names == [text for text in texts(figure) if text in names]
    images = [image.get_array() for image in figure.axes[0].images]
    np.testing.assert_array_equal(images[0], trace.image())
    heats = [trace.heat_map(word) for word in trace.words()]
    top = max(float(heat.max()) for heat in heats)
    for image, heat in zip(images[1:], heats, strict=True):
        np.testing.assert_array_equal(image, overlay(trace.image(), heat.values, top))
    bar = figure.axes[-1]
    assert bar.get_ylim() == pytest.approx((0, top)) and bar.get_ylabel() == "attention probability"
    assert trace.heat_map("猫").attrs["rule"] in "".join(texts(figure))


def test_both_maps_of_a_word_are_on_one_scale_and_their_difference_is_signed(trace, traced, tmp_path):
    other = traced("一只猫", picture=255 - trace.image())
    comparison = compare(trace, other)
    figure = comparison_figure(comparison)
    assert {"A", "B", "B − A", "picture", "猫"} <= set(texts(figure))
    images = [image.get_array() for image in figure.axes[0].images]
    np.testing.assert_array_equal(images[2], np.abs(trace.image().astype(int) - other.image()))
    first, second = (heat.values for heat in comparison.maps["猫"])
    top = max(first.max(), second.max())
    np.testing.assert_array_equal(images[3], overlay(trace.image(), first, top))
    np.testing.assert_array_equal(images[4], overlay(other.image(), second, top))
    below, above = figure.axes[-1].get_ylim()
    assert above == -below == pytest.approx(np.abs(second - first).max())
    none = comparison_figure(
        compare(trace, made_trace(tmp_path / "dog", "狗", trace.image()[:32], {}, steps=1)), language="zh"
    )
    assert len(none.axes) == 1 and len(none.axes[0].images) == 2


def test_words_can_be_chosen(trace):
    figure = words_figure(trace, ["猫", (0, 3), Word("月亮", 8, 10)])
    assert {"猫", "左边是", "月亮"} <= set(texts(figure))
    with pytest.raises(ToushiError, match="猫"):
        words_figure(trace, ["小猫"])
    with pytest.raises(ToushiError, match="list"):
        words_figure(trace, "猫")


def test_the_figure_has_the_width_that_is_asked_for_and_no_text_outside(trace):
    for options in (dict(width=3.3), dict(width=3.3, picture=False), dict(columns=1), dict(language="zh")):
        figure = words_figure(trace, ["月亮"], **options)
        assert len(figure.axes[0].images) == 1 + options.get("picture", True)
        assert figure.get_figwidth() == pytest.approx(options.get("width", figure.get_figwidth()))
        figure.draw_without_rendering()
        for text in figure.findobj(matplotlib.text.Text):
            assert text.get_window_extent().x1 <= figure.bbox.x1, (options, text.get_text())
    with pytest.raises(ToushiError, match="width must be at least 1.6 inches for 1 columns; 1.2 came"):
        words_figure(trace, ["月亮"], width=1.2, picture=False)


def test_the_title_is_the_prompt_of_the_branch(traced):
    trace = traced("一只猫")
    trace.manifest.negative_prompt = "模糊"
    trace.manifest.branches["uncond"] = trace.manifest.branches["cond"]
    assert "一只猫" in texts(words_figure(trace)) and "模糊" in texts(words_figure(trace, [], branch="uncond"))


def test_words_that_were_cut_or_not_kept_are_left_out(traced):
    trace = traced("一只猫，月亮")
    branch = trace.manifest.branches["cond"]
    branch.columns = [token.column for token in branch.tokens if token.text in "月亮"]
    assert [word.text for word in words_to_draw(trace, None, "cond")] == ["月亮"]


def test_overlays_of_equal_heat_have_equal_colours_whatever_else_is_in_the_map():
    grey = np.full((8, 8, 3), 100, np.uint8)
    low, high = np.full((8, 8), 0.1), np.full((8, 8), 0.1)
    high[0, 0] = 0.4
    np.testing.assert_array_equal(overlay(grey, low, 0.4)[4, 4], overlay(grey, high, 0.4)[4, 4])
    assert overlay(grey, np.zeros((2, 2)), 0.0).shape == (8, 8, 3)
    shown = overlay(np.full((1, 256, 3), round(255 * 0.28 / 0.55), np.uint8), np.linspace(0, 1, 256)[None], 1.0)
    np.testing.assert_allclose(shown[0] / 255, overlay_colours()(np.arange(256))[:, :3], atol=0.01)


def test_repeated_words_are_told_apart(traced):
    trace = traced("猫、猫头鹰和猫")
    assert word_labels(trace.words(), trace.words()) == ["猫#1", "猫头鹰", "和", "猫#2"]
    assert {"猫#1", "猫#2", "猫头鹰"} <= set(texts(words_figure(trace)))
    assert "猫#2" in texts(words_figure(trace, ["猫#2"])) and "猫#2" in texts(layers_figure(trace, "猫#2"))


@pytest.mark.parametrize("prompt", [*dict.fromkeys(HARD), "a $5 cat costs $6, 100% \\alpha_1^2"])
def test_hard_prompts_are_drawn(prompt, traced):
    trace = traced(prompt[:16], steps=1)
    for draw in (words_figure, timeline_figure, tokens_figure, lambda trace: encoder_figure(trace, 0)):
        draw(trace).draw_without_rendering()


def test_pictures_that_are_not_square_keep_their_shape(traced):
    wide = np.zeros((32, 96, 3), np.uint8)
    figure = words_figure(traced("一只猫", wide))
    for image in figure.axes[0].images:
        width, height = image.get_window_extent().size
        assert width / height == pytest.approx(3)


def test_a_run_that_did_not_finish_is_drawn_with_its_last_preview(traced):
    trace = traced("一只猫")
    trace.manifest.files.pop("image.png")
    trace.manifest.complete = False
    figure = words_figure(trace)
    assert "picture so far" in texts(figure)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), trace.preview(1))


def test_layers_are_rows_and_steps_are_columns(trace):
    figure = layers_figure(trace, "猫", columns=3)
    assert sum(bool(axes.images) for axes in figure.axes) == 3 * 3
    assert [axes.get_title() for axes in figure.axes[:3]] == ["0", "2", "3"]
    assert {"down.0", "middle", "up.1", "16 × 16"} <= set(texts(figure))


def test_layers_of_a_summed_trace_are_one_column(traced):
    trace = traced("一只猫", keep="sum", steps=3)
    figure = layers_figure(trace, "猫")
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    maps = trace.attention("猫", grid="native")
    assert len(images) == len(maps) == 3
    top = max(float(one.max()) for one in maps.values())
    for image, one in zip(images, maps.values(), strict=True):
        np.testing.assert_array_equal(image, overlay(trace.preview(2), one.values[0], top))
    assert {"0–2", "mean of steps"} <= set(texts(figure))
    with pytest.raises(NotRecorded, match="only the sum"):
        timeline_figure(trace)


def test_the_encoders_attention_is_drawn_as_it_is(trace):
    attention = trace.encoder_attention(0)
    for head, values, name in ((None, attention.mean("head"), "mean of heads"), (1, attention.sel(head=1), "head 1")):
        figure = encoder_figure(trace, 0, head=head)
        np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), values)
        assert f"encoder layer 0, {name}" in texts(figure)
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == [token.text for token in trace.tokens()]


def test_attention_to_what_was_not_kept_is_told(trace):
    attention = trace.encoder_attention(0)
    whole, cut = (SimpleNamespace(encoder_attention=lambda *_, part=part: attention * part) for part in (1, 0.7))
    note = "row attends to column; the output is state 1"
    assert note in texts(encoder_figure(whole, 0))
    assert f"{note}; padding, up to 30 % of a row, is not shown" in texts(encoder_figure(cut, 0))


def test_the_encoders_figure_speaks_chinese(trace):
    said = [text for text in texts(encoder_figure(trace, 0, language="zh")) if text not in ("<bos>", "<eos>")]
    with pytest.raises(ToushiError, match="en or zh, but 'fr'"):
        encoder_figure(trace, 0, language="fr")
    assert {"编码器第 0 层，各头平均", "注意力概率"} <= set(said) and not re.search("[A-Za-z]", "".join(said))


def test_the_table_accounts_for_every_token(trace):
    shown = texts(tokens_figure(trace))
    assert {"<bos>", "<eos>", "月", "亮", "月亮"} <= set(shown)
    assert len([t for t in shown if t.endswith(" %")]) == len(trace.tokens())


@pytest.mark.parametrize(
    "share, text", [(0.123, "12 %"), (0.0994, "9.9 %"), (0.0004, "0.04 %"), (1, "100 %"), (0, "0.00 %")]
)
def test_shares_are_written_with_sense(share, text):
    assert percent(share) == text


def test_long_words_are_shortened_by_their_width():
    assert [truncate(text, 6) for text in ("猫头鹰", "猫头鹰们", "kitten", "kittens")] == [
        "猫头鹰",
        "猫头…",
        "kitten",
        "kitte…",
    ]
    assert text_width("猫cat") == 5
