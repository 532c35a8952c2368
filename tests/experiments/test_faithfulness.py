"""What is removed, what a map foretells, and verdicts that are planted."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from toushi.experiments.measures.word_effects import (
    CaptionWord,
    caption_words,
    changes_by_removal,
    effects_on,
    maps_by_method,
    rank_correlation,
    values_in,
)
from toushi.experiments.scene_world.example import example
from toushi.experiments.studies import faithfulness as study
from toushi.experiments.studies.faithfulness import Config, best_rules, conclude, decide, jobs, region_row, score_scene
from toushi.probe.attribution.denoising import denoise_at
from toushi.probe.figures.style import PAGE, save
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.text.alignment import Word, segment

MASK = np.zeros((64, 64), bool)
MASK[8:24, 8:24] = True
HERE = np.zeros((16, 16))  # cells of the mask, on the grid of the latents
HERE[2:6, 2:6] = 1


def test_words_do_not_overlap_and_every_other_word_is_there():
    for seed in range(20):
        caption = example(seed, "held_out").caption
        words = [one.word for one in caption_words(caption)]
        assert all(a.end <= b.start for a, b in pairwise(words)) and len(words) >= len(caption.parts)
        taken = {place for part in caption.parts for place in range(part.start, part.end)}
        assert all(word in words or taken & {*range(*word.span)} for word in segment(caption.text))


def test_effects_are_those_inside_the_mask():
    changes = np.stack([3 * HERE, 5 * (1 - HERE), HERE + 1])
    assert effects_on(changes, MASK) == pytest.approx([3, 0, 2])
    assert values_in(changes, "attention", MASK) == pytest.approx([1, 0, 32 / (32 + 240)])
    assert len(set(values_in(np.stack([HERE, np.roll(HERE, 8, 1)]), "no place", MASK))) == 1


@pytest.mark.parametrize("effects, correlation", [([1, 2, 3, 9], 1), ([9, 3, 2, 1], -1), ([2, 2, 2, 2], 0)])
def test_values_that_rank_as_the_effects_do_foretell_them(effects, correlation):
    assert rank_correlation(np.array([0.1, 0.2, 0.3, 0.4]), np.array(effects)) == pytest.approx(correlation)


def test_a_region_knows_whether_its_own_word_mattered_most():
    words = [CaptionWord(Word("猫", 0, 1), "object", 0), CaptionWord(Word("狗", 2, 3), "object", 1)]
    plain = np.stack([HERE, np.roll(HERE, 8, 1)])
    about = ("attention", "written", 0, words, np.array([0.9, 0.1]))
    row = region_row(*about, np.array([2.0, 1.0]), plain, MASK)
    assert row["own"] and row["top"] and row["hit"] and row["correlation"] == pytest.approx(1)
    row = region_row(*about, np.array([1.0, 2.0]), plain[::-1], MASK)
    assert not row["own"] and not row["top"] and not row["hit"] and row["correlation"] == pytest.approx(-1)


@pytest.mark.parametrize(
    "interval, scenes, lead, verdict",
    [
        ((0.51, 0.8), 20, 0.1, "supported"),
        ((0.51, 0.8), 20, 0.0, "undecided"),  # other words' maps foretell as much
        ((0.5, 0.8), 20, 0.1, "undecided"),
        ((0.2, 0.49), 20, 0.1, "refuted"),
        ((0.2, 0.5), 20, 0.1, "undecided"),
        ((0.2, 0.3), 5, 0.1, "undecided"),
    ],
)
def test_the_rule_at_its_borders(interval, scenes, lead, verdict):
    assert decide({"low": interval[0], "high": interval[1], "scenes": scenes}, {"low": lead}) == verdict


def test_the_best_rule_is_chosen_and_judged_on_different_scenes():
    rows = [
        {"item": item, "kind": "noised", "time": 0.8, "role": "object", "word": "猫", "method": method, "thing": 0}
        | {"average_precision": value, "correlation": value}
        for item in range(20)
        for method, value in (("attention", 0.5), ("daam", 0.9 if item % 2 == 0 else 0.4), ("blob", 1.0))
    ]
    table = pd.DataFrame(rows)
    for row in best_rules(table, table, Config(resamples=20)):
        assert row["rule"] == "daam" and row["lead"] == pytest.approx(-0.1) and row["scenes"] == 10


@pytest.fixture(scope="module")
def scored():
    """A scene of two objects on a tiny model: the rows, and what they are made of."""
    model, scenes = MiniUNet.tiny(), [e for e in map(example, range(60)) if len(e.masks) == 2]
    scene = min(scenes, key=lambda e: len(e.caption.text))
    denoising = denoise_at(model, scene.caption.text, 0.8, latents=model.noise(1, 64, 64, 1))
    masks = dict(enumerate(scene.masks))
    return denoising, scene, pd.DataFrame(score_scene(denoising, scene, masks, 0))


def test_every_map_and_every_region_is_scored(scored):
    denoising, scene, table = scored
    words = [one.word for one in caption_words(scene.caption)]
    maps = maps_by_method(denoising, words, 0)
    assert all(len(found) == len(words) for found in maps.values())
    regions = table[table.part == "regions"]
    assert len(regions) == 2 * 2 * sum(", head" not in method for method in maps)
    assert (regions[regions.method == "blob"].correlation == 0).all()
    assert set(table[table.part == "maps"].method) == set(maps) - {"no place"}


def test_a_word_that_nobody_attends_to_has_an_effect_and_leaves_no_edit(scored):
    denoising, scene, _ = scored
    before = denoising.denoised([denoising.prompt])
    changes = changes_by_removal(denoising, [one.word for one in caption_words(scene.caption)])
    assert all((change.reshape(len(change), -1).max(1) > 0).all() for change in changes.values())
    assert (before == denoising.denoised([denoising.prompt])).all()


def test_figures_and_tables_of_a_quick_run(scored, tmp_path):
    _, _, table = scored
    config = Config(resamples=20, times=(0.8,))
    made = pd.concat([table.assign(item=item, kind="noised", time=0.8) for item in range(2)])
    curves = {"part": "curves", "item": 0, "method": "shapley", "correlation": 0.5, "deletion": 0.2, "insertion": 0.9}
    finding = conclude(config, pd.concat([made, pd.DataFrame([curves])]))
    assert finding.verdict == "undecided" and "2 noised scenes" in finding.sentence.en
    assert set(finding.tables) == {"maps", "regions", "own", "curves", "best"}
    for name, figure in study.figures(finding.tables, "zh").items():
        assert figure.get_label() and figure.get_figwidth() <= PAGE
        save(figure, tmp_path / f"{name}.png")


def test_a_stopped_run_has_some_jobs_of_each_kind():
    names = [job.name for job in jobs(Config())]
    assert {name.partition("-")[0] for name in names[:3]} == {"noised", "generated", "costly"}
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_a_quick_run_on_a_tiny_model(tmp_path):
    MiniUNet.tiny().save(tmp_path / "tiny")
    config = Config(model=str(tmp_path / "tiny"), noised=2, generated=2, costly=1, steps=1, resamples=20, times=(0.8,))
    finding = conclude(config, pd.concat([job.function(**job.arguments) for job in jobs(config)]))
    assert finding.verdict == "undecided" and len(finding.tables["curves"]) > 10
