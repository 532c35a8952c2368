"""What is drawn is seen, and what is not there is not: the recogniser against scenes whose contents are known."""

from dataclasses import replace

import numpy as np
import pytest

from toushi.experiments.scene_world.draw import render
from toushi.experiments.scene_world.matching import PAD, Canvas, Fit
from toushi.experiments.scene_world.recogniser import detected_masks, judge, recognise
from toushi.experiments.scene_world.scenes import Object, Scene, draw_scene
from toushi.experiments.scene_world.templates import SOFT, Background, variants
from toushi.experiments.scene_world.validation import (
    accuracy,
    blur,
    draw_pictures,
    has_error,
    noise,
    scale_objects,
    scores,
    through_vae,
    wobble,
)


def thing(kind: str, x: int, y: int = 36, colour: str | None = None, pixels: int = 27, sense: str | None = None):
    return Object(kind, sense, colour, "medium", x, y, pixels)


def picture(*objects: Object, place: str = "plain", time: str = "day", style: str = "flat") -> np.ndarray:
    return render(scene(*objects, place=place, time=time, style=style))[0]


def scene(*objects: Object, place: str = "plain", time: str = "day", style: str = "flat", layout: str = "row") -> Scene:
    return Scene(objects, place, time, style, layout)


def alone(kind: str, **more) -> Object:
    return thing(kind, 32, 33, pixels=38, **more)


@pytest.mark.slow
def test_real_scenes_are_seen_as_they_are():
    scenes = [draw_scene(seed, "test") for seed in range(12)]
    seen = [recognise(render(each)[0]) for each in scenes]
    assert not [each for each, one in zip(scenes, seen) if has_error(each, one)]
    for each, one in zip(scenes, seen):
        places = {(found.kind, found.x, found.y, found.pixels) for found in one.objects}
        assert places == {(o.kind, o.x, o.y, o.pixels) for o in each.objects}
    assert scores(scenes, seen).min() > 0.7


def test_every_style_and_the_dark_are_seen():
    for place, time, style in (("forest", "day", "ink"), ("city", "night", "blueprint"), ("space", "day", "sepia")):
        wanted = scene(alone("owl"), place=place, time=time, style=style)
        assert not has_error(wanted, recognise(render(wanted)[0])), wanted


def test_softer_bent_and_larger_pictures_are_still_seen():
    scenes = [draw_scene(seed, "test") for seed in range(4)]
    shown = draw_pictures(scenes)
    for changed in (blur(shown, 1.0), wobble(shown, 1.0), draw_pictures([scale_objects(each, 1.1) for each in scenes])):
        assert all(all(judge(each, one).objects) for each, one in zip(scenes, changed))


def test_swapped_sides_are_wrong_and_the_objects_right():
    wanted = scene(thing("cat", 17), thing("dog", 47))
    verdict = judge(wanted, picture(thing("cat", 47), thing("dog", 17)))
    assert verdict.objects == (True, True) and verdict.positions == (False, False)
    assert verdict.extra == 0 and verdict.place and verdict.time and verdict.style


def test_above_and_beside_are_told_apart():
    wanted = scene(thing("cat", 32, 16), thing("dog", 32, 48), layout="column")
    assert judge(wanted, picture(*wanted.objects)).positions == (True, True)
    assert judge(wanted, picture(thing("cat", 32, 48), thing("dog", 32, 16))).positions == (False, False)
    assert judge(wanted, picture(thing("cat", 17), thing("dog", 47))).positions == (False, False)


def test_swapped_colours_are_wrong_and_the_objects_right():
    wanted = scene(thing("circle", 17, colour="red"), thing("square", 47, colour="blue"))
    verdict = judge(wanted, picture(thing("circle", 17, colour="blue"), thing("square", 47, colour="red")))
    assert verdict.objects == (True, True) and verdict.positions == (True, True)
    assert verdict.colours == (False, False)
    assert judge(wanted, picture(*wanted.objects)).colours == (True, True)


def test_twins_are_told_apart_by_place_then_colour():
    wanted = scene(thing("circle", 17, colour="red"), thing("circle", 47, colour="blue"))
    for shown, colours in ((wanted.objects, True), (tuple(replace(o, x=64 - o.x) for o in wanted.objects), False)):
        verdict = judge(wanted, picture(*shown))
        assert verdict.objects == (True, True) and verdict.positions == (True, True)
        assert verdict.colours == (colours, colours)


def test_an_icons_own_colour_counts_as_its_name():
    wanted = scene(alone("car", colour="red"), layout="middle")
    assert judge(wanted, picture(alone("car"))).colours == (True,)
    assert judge(wanted, picture(alone("car", colour="blue"))).colours == (False,)
    assert judge(replace(wanted, style="sepia"), picture(alone("car"), style="sepia")).colours == (None,)


@pytest.mark.parametrize("word, kind, other", [("银行", "riverbank", "bank"), ("苹果", "phone", "apple")])
def test_the_other_sense_is_wrong(word, kind, other):
    wanted = scene(thing(kind, 17, sense=f"{word}/{kind}"), thing("tree", 47))
    assert judge(wanted, picture(*wanted.objects)).senses == (True, None)
    verdict = judge(wanted, picture(thing(other, 17), thing("tree", 47)))
    assert verdict.senses == (False, None) and verdict.objects == (False, True) and verdict.extra == 1
    both = judge(wanted, picture(thing(kind, 17), thing(other, 47)))
    assert both.senses == (False, None) and both.objects == (True, False)


def test_a_word_with_one_meaning_in_the_captions_language_is_not_judged():
    wanted = scene(alone("bird", sense="杜鹃/bird"), layout="middle")
    seen = recognise(picture(alone("bird")))
    assert judge(wanted, seen).senses == judge(wanted, seen, "zh").senses == (True,)
    assert judge(wanted, seen, "en").senses == (None,)


def test_what_is_missing_is_missed_and_what_is_too_much_is_counted():
    wanted = scene(thing("cat", 17), thing("dog", 47))
    verdict = judge(wanted, picture(thing("cat", 17), thing("cat", 47)))
    assert verdict.objects == (True, False) and verdict.positions == (True, False) and verdict.extra == 1
    assert detected_masks(wanted, picture(thing("cat", 17)))[1] is None


def test_the_background_is_judged():
    wanted = scene(alone("cat"), place="beach", time="dusk", layout="middle")
    verdict = judge(wanted, picture(alone("cat"), place="grass", time="night", style="ink"))
    assert (verdict.place, verdict.time, verdict.style) == (False, False, False)


def test_nothing_is_seen_where_nothing_is():
    for place, time, style in (("plain", "day", "flat"), ("city", "night", "flat"), ("forest", "dusk", "ink")):
        assert recognise(picture(place=place, time=time, style=style)).objects == ()
    for grain in (0, 2, 6):
        assert recognise(noise(1, grain)[0]).objects == ()


def test_a_small_square_inside_a_large_one_is_unlikely():
    shown = picture(alone("square", colour="black"))
    canvas = Canvas(shown.astype(np.float32), Background("plain", "day", "flat"))
    square = variants("flat", False).index(("square", "black"))
    inside, whole = (
        canvas.refine(Fit(square, side, PAD - SOFT + 32 - side // 2, PAD - SOFT + 33 - side // 2)) for side in (20, 38)
    )
    assert inside.share > 0.5 and canvas.likeness(inside) < 0.2
    assert canvas.likeness(whole) > 0.95 and len(recognise(shown).objects) == 1


def test_masks_are_those_of_the_scene():
    for seed in range(6):
        wanted = draw_scene(seed, "test")
        shown, masks = render(wanted)
        for found, mask in zip(detected_masks(wanted, shown), masks):
            assert found[mask].all() and found.sum() < 1.2 * mask.sum() + 12  # it may hide a part of its neighbour


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match=r"\[64, 64, 3\]"):
        recognise(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        recognise(np.zeros((64, 64, 3)))


@pytest.mark.slow
def test_scenes_through_the_vae_are_seen_in_98_of_100_cases():
    scenes = [draw_scene(seed, "test") for seed in range(10_000, 10_300)]
    decoded = through_vae("mini-unet")(draw_pictures(scenes))
    table = accuracy(scenes, [recognise(each) for each in decoded]).set_index("what")
    assert (table.right[["object", "position", "colour", "sense"]] >= 0.98).all(), table
