"""Words that the vocabulary lacks are marked wherever they are shown: those in one <unk> have one map."""

import json

import numpy as np
import pytest

from tests.pipelines.tiny import draw, made
from toushi.cli.trace_summary import summarize_words
from toushi.dashboards.heat_map.payload import picture_block
from toushi.dashboards.heat_map.word_maps import read_word_maps
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.figures.words_figure import words_figure
from toushi.probe.pipelines.prompt_tokens import UnknownToEncoder, UnspelledPrompt
from toushi.probe.recording.record import record
from toushi.probe.trace.export.export_trace import export
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import NotRecorded

ONE_MAP = ["月亮", "和", "鱼", "在", "山上"]  # one <unk> of the T5 of FLUX, which knows no Chinese but 猫


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder, pipeline = tmp_path_factory.mktemp("unknown") / "run", made("flux")
    with (
        pytest.warns(UnknownToEncoder, match="lacks 月亮、和、鱼、在、山上"),
        record(pipeline, folder, dtype="float32"),
    ):
        draw(pipeline, "月亮和鱼在山上，cat", guidance=False)
    return open_trace(folder)


def test_the_trace_says_which_words_have_one_map(trace):
    assert trace.verify() == [] and trace.manifest.version == 2
    assert [token.kind for token in trace.tokens()].count("unknown") == 1
    assert [word.text for word in trace.unknown_words()] == ONE_MAP
    moon, fish = trace.heat_map("月亮"), trace.heat_map("鱼")
    np.testing.assert_allclose(moon / moon.sum(), fish / fish.sum(), rtol=1e-5)
    assert moon.attrs["unknown"] == fish.attrs["unknown"] == ONE_MAP
    assert "unknown" not in trace.heat_map("cat").attrs


def test_tables_and_figures_mark_them(trace):
    words = [word for word in trace.words() if word.text in ("月亮", "cat")]
    text = summarize_words(trace, words, [trace.heat_map(word) for word in words])
    assert "月亮*" in text and "cat*" not in text and "same map" in text
    shown = [text.get_text() for axes in words_figure(trace, words).axes for text in axes.texts]
    assert "月亮*" in shown and "cat" in shown and any("same map" in " ".join(line.split()) for line in shown)


def test_exports_mark_them(trace, tmp_path):
    import xarray
    from pyarrow import parquet

    table = parquet.read_table(export(trace, "parquet", tmp_path / "a.parquet").path).to_pandas()
    assert set(table[table.unknown].word) == set(ONE_MAP) and "cat" in set(table[~table.unknown].word)
    tokens = parquet.read_table(export(trace, "parquet", tmp_path / "b.parquet", tokens=True).path).to_pandas()
    assert set(tokens[tokens.unknown].text) == {"月亮和鱼在山上"}
    arrays = np.load(export(trace, "npz", tmp_path / "a.npz").path)
    about = json.loads(str(arrays["about"]))
    assert {entry["word"]: entry["unknown"] for entry in about["words"]["cond"]}["鱼"] == ONE_MAP
    tree = xarray.open_datatree(export(trace, "zarr", tmp_path / "a.zarr").path)
    site = next(iter(tree.children.values()))
    assert site.word.values[site.unknown.values[0]].tolist() == ONE_MAP


def test_the_app_marks_them(trace):
    block = picture_block(trace, read_word_maps(trace, "cond"), "cond", "en")
    header = json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])
    titles = {unit["label"]: unit["title"] for unit in header["units"] if unit["kind"] == "word"}
    assert all("lacks this word" in titles[f"{word}*"] and "、".join(ONE_MAP) in titles[f"{word}*"] for word in ONE_MAP)
    assert titles["cat"] == "cat"


def test_a_learned_concept_of_several_vectors_owns_them_all(tmp_path):
    import torch

    pipeline = made("stable-diffusion")
    torch.manual_seed(1)
    pipeline.load_textual_inversion({"<toy>": torch.randn(3, 16)})
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, "a <toy> on the left")
    trace = open_trace(tmp_path / "run")
    assert [token.span for token in trace.tokens() if token.text == "<toy>"] == [(2, 7)] * 3
    whole = sum(trace.attention().sel(token=[2, 3, 4]).mean(("step", "layer")).values[0])
    assert trace.heat_map("<toy>").sum() > 0 and trace.heat_map("left").sum() > 0 and whole.sum() > 0


def test_a_word_without_a_map_says_the_true_reason(tmp_path):
    pipeline, prompt = made("stable-diffusion"), "cat https://example.org moon " + "red " * 90 + "left"

    class Cleaned(type(pipeline.tokenizer)):
        def __call__(self, text, *more, **named):
            texts = [text] if isinstance(text, str) else text
            return super().__call__([one.replace("https://example.org", "") for one in texts], *more, **named)

    pipeline.tokenizer.__class__ = Cleaned
    with pytest.warns(UnspelledPrompt, match="https://example.org"), record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, prompt)
    trace = open_trace(tmp_path / "run")
    assert trace.heat_map("cat").sum() > 0 and trace.heat_map("moon").sum() > 0
    with pytest.raises(NotRecorded, match="replaced or removed"):
        trace.heat_map("example")
    with pytest.raises(NotRecorded, match="too long"):
        trace.heat_map("left")


def test_keep_only_takes_the_attention_from_unknown_words_too(trace):
    pipeline, prompt, site = made("flux"), "月亮和鱼在山上，cat", "transformer.transformer_blocks.*"
    others = [t.position for t in trace.tokens() if t.is_text and (t.span is None or t.span[1] <= prompt.index("cat"))]

    def picture(*edits):
        with edit(pipeline, edits):
            return draw(pipeline, prompt, guidance=False, steps=1)[0]

    expected = picture(*(Edit(site, "zero", token=position) for position in others))
    assert len(others) == 3 and np.array_equal(picture(Edit(site, "keep_only", word="cat")), expected)
    assert not np.array_equal(expected, draw(pipeline, prompt, guidance=False, steps=1)[0])
