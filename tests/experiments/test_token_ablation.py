"""Tokens by category, variants that are the edits of the library, and verdicts that are planted."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from toushi.experiments.measures.token_variants import (
    CATEGORIES,
    FILLERS,
    Variant,
    draw_variants,
    neutral_states,
    token_categories,
    token_variants,
)
from toushi.experiments.scene_world.recogniser import Detection, Recognition
from toushi.experiments.studies import token_ablation as study
from toushi.experiments.studies.token_ablation import Config, captioned_scene, conclude, decide, jobs, scene_numbers
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.figures.embedded_picture import embed_picture
from toushi.probe.figures.style import PAGE, save
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load_own

TEXT = "左边是猫，右边是月亮"


@pytest.fixture(scope="module")
def model() -> MiniUNet:
    return MiniUNet.tiny()


@pytest.fixture(scope="module")
def tokenizer():
    return load_own("mini-unet", "cpu").tokenizer


def positions(model: MiniUNet, word: str) -> tuple[int, ...]:
    tokens = model.tokenizer.encode(TEXT).tokens
    return tuple(token.position for token in tokens if token.span and TEXT[slice(*token.span)] in word)


def test_every_token_has_the_category_of_its_words(tokenizer):
    _, caption = captioned_scene(4)
    assert caption.text == "左边蓝色的伞，右边蓝色的猫，背景是沙漠"
    tokens = tokenizer.encode(caption.text).tokens
    named = {token.text: category for token, category in zip(tokens, token_categories(caption, tokens))}
    assert named == {
        "<bos>": "bos", "左边": "relation", "蓝色": "colour", "的": "particle", "伞": "object", "，": "punctuation",
        "右边": "relation", "猫": "object", "背景": "particle", "是": "particle", "沙漠": "place", "<eos>": "eos",
    }  # fmt: skip


def test_all_scenes_have_an_object_a_colour_and_a_relation(tokenizer):
    for number in scene_numbers(5):
        _, caption = captioned_scene(number)
        found = {(one.operation, one.category): one for one in token_variants(caption, tokenizer, number)}
        assert {category for operation, category in found if operation == "zero"} >= {"object", "colour", "relation"}
        assert {category for _, category in found} <= {
            *CATEGORIES,
            "random",
            "none",
            *(word.strip() for word in FILLERS),
        }
        tokens = len(tokenizer.encode(caption.text).ids)
        assert {*found["zero", "object"].zero, *found["keep", "object"].zero} == {*range(tokens)}
        own, control = found["zero", "object"].zero, found["zero", "random"].zero
        assert len(control) == len(own) and not {*control} & {*own, 0, tokens - 1}


def test_a_variant_at_zero_is_the_edit_of_the_library(model):
    moon, cat = positions(model, "月亮"), positions(model, "猫")
    made = [
        Variant("clean", "none", TEXT),
        Variant("zero", "cat", TEXT, zero=cat),
        Variant("zero", "both", TEXT, moon + cat),
    ]
    pictures, attention = draw_variants(model, made, 3, 2, 3.0)
    texts = [TEXT] * 3
    assert np.array_equal(pictures[0], model.sample(texts, seed=[3] * 3, steps=2)[0])
    for picture, words in zip(pictures[1:], (("猫",), ("猫", "月亮"))):
        with edit(model, Edit("unet.*cross_attention", "zero", word=words, renormalise=True)):
            assert np.array_equal(picture, model.sample(texts, seed=[3] * 3, steps=2)[0])
    assert len(attention) == len(model.tokenizer.encode(TEXT).ids) and attention.sum() == pytest.approx(1, abs=1e-5)


def test_pads_are_the_no_op(model):
    tokens = len(model.tokenizer.encode(TEXT).ids)
    text = neutral_states(model, f"encoder.layers.{len(model.encoder.layers) - 1}")
    made = [
        Variant("clean", "none", TEXT),
        Variant("zero", "pad", TEXT, zero=tuple(range(tokens, 77))),
        Variant("replace", "object", TEXT, replace=positions(model, "猫")),
        Variant("filler", "的", TEXT + "的的的"),  # the other rows get pads
    ]
    clean, pad, replaced, _ = draw_variants(model, made, 0, 1, 3.0).pictures
    assert np.array_equal(clean, pad) and not np.array_equal(clean, replaced)
    assert set(text) == {"<bos>", "text", "<eos>"}


# --- verdicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interval, clean, prompts, lead, verdict",
    [
        ((0.51, 0.9), 0.9, 20, 0.0, "refuted"),
        ((0.5, 0.9), 0.9, 20, 0.1, "undecided"),  # one half is not above one half
        ((0.1, 0.49), 0.9, 20, 0.1, "supported"),
        ((0.1, 0.49), 0.9, 20, 0.0, "undecided"),  # random tokens cost as much
        ((0.1, 0.5), 0.9, 20, 0.1, "undecided"),
        ((0.9, 1.0), 0.49, 20, 0.1, "undecided"),  # too little is drawn at all
        ((0.9, 1.0), 0.9, 5, 0.1, "undecided"),
    ],
)
def test_the_rule_at_its_borders(interval, clean, prompts, lead, verdict):
    row = pd.Series({"low": interval[0], "high": interval[1], "clean": clean, "prompts": prompts})
    assert decide(row, {"low": lead}) == verdict


def planted(kept: float, control: float, prompts: int = 40) -> pd.DataFrame:
    """Two objects in each prompt, nine of ten drawn; the ablation keeps some of them, the control others."""
    random, rows = np.random.default_rng(0), []
    for item in range(prompts):
        clean = random.binomial(2, 0.9)
        for operation, category, share in (
            ("clean", "none", 1), ("zero", "object", kept), ("zero", "random", control), ("keep", "object", 0.5),
        ):  # fmt: skip
            about = {"item": item, "operation": operation, "category": category}
            right = random.binomial(clean, share)
            rows.append(about | {"part": "answers", "thing": "object", "right": right, "cases": 2})
            picture = embed_picture(Image.new("RGB", (64, 64)))
            rows += [about | {"part": "pictures", "prompt": "猫", "picture": picture}] * (item == 0)
        rows.append({"part": "attention", "item": item, "category": "object", "right": 0.2})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "kept, control, verdict", [(0.9, 0.9, "refuted"), (0.1, 0.9, "supported"), (0.1, 0.1, "undecided")]
)
def test_the_verdict_follows_what_was_planted(kept, control, verdict):
    finding = conclude(Config(resamples=200), planted(kept, control))
    row = finding.tables["kept"].query("operation == 'zero' and category == 'object'").iloc[0]
    assert finding.verdict == verdict and row.low <= row.kept <= row.high and abs(row.kept - kept) < 0.15
    assert finding.tables["attention"].share.tolist() == [0.2] and "40 prompts" in finding.sentence.en


def test_the_figures_of_both_languages(tmp_path):
    finding = conclude(Config(resamples=20), planted(0.5, 0.5, prompts=6))
    for language in ("zh", "en"):
        for name, figure in study.figures(finding.tables, language).items():
            assert figure.get_label() and figure.get_figwidth() <= PAGE
            save(figure, tmp_path / f"{name}-{language}.png")


def test_a_quick_run_comes_through(model, tmp_path, monkeypatch):
    seen = Recognition("grass", "day", "flat", (Detection("umbrella", "blue", 20, 17, 36, 1.0),))
    monkeypatch.setattr(study, "recognise", lambda picture: seen)  # that of noise takes long
    model.save(tmp_path / "tiny")
    config = Config(model=str(tmp_path / "tiny"), prompts=2, chunk=1, steps=1, resamples=20)
    made = jobs(config)
    assert [job.name for job in made] == ["prompts-000", "prompts-001"]
    finding = conclude(config, pd.concat([made[0].function(**made[0].arguments)]))
    assert finding.verdict == "undecided" and {"kept", "attention", "lead", "pictures"} == set(finding.tables)
