"""What a prompt asks for is what its scene has, and what is wrong with a picture has a reason."""

import pytest

from toushi.experiments.scene_world.captions import describe
from toushi.experiments.scene_world.prompt_verdict import asked_objects, prompt_verdict, unknown_words
from toushi.experiments.scene_world.recogniser import Detection, Recognition
from toushi.experiments.scene_world.scenes import draw_scene


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_objects_of_every_caption_are_read_and_no_word_is_unknown(language):
    for seed in range(150):
        scene = draw_scene(seed)
        caption = describe(scene, language, seed).text
        asked = asked_objects(caption)
        for thing in scene.objects:
            assert any(thing.kind in one.kinds for one in asked), (caption, thing.kind)
        assert unknown_words(caption) == {}, caption


def test_colours_belong_to_the_object_after_them():
    asked = asked_objects("左边是蓝色的猫，右边是红色的汽车和马")
    assert [(one.kinds, one.colour) for one in asked] == [(("cat",), "blue"), (("car",), "red"), (("horse",), None)]
    assert [one.kinds for one in asked_objects("two owls and a hot dog")] == [("owl",), ("hot_dog",)]


def test_words_that_are_not_of_this_world():
    assert "汽车" in unknown_words("红色的车")["车"]
    assert unknown_words("a purple unicorn on the grass") == {"unicorn": ()}


def seen(*things, style="flat"):
    return Recognition(
        "plain", "day", style, tuple(Detection(*thing, 27, 17 + 30 * i, 36, 0.9) for i, thing in enumerate(things))
    )


@pytest.mark.parametrize("prompt, things, right, reason", [
    ("蓝色的猫", [("cat", "blue")], True, ""),
    ("蓝色的狗", [("dog", None)], False, "colour"),
    ("红色的汽车", [("car", None)], True, ""),  # the icon is red
    ("黄色的汽车", [("car", "blue")], False, "chance"),
    ("a horse", [], False, "chance"),
    ("河边的银行", [("riverbank", None)], True, ""),
])  # fmt: skip
def test_asked_and_drawn(prompt, things, right, reason):
    (verdict,) = prompt_verdict(prompt, seen(*things)).objects
    assert (verdict.right, verdict.reason) == (right, reason)


def test_an_object_is_drawn_once_and_the_others_are_extra():
    verdict = prompt_verdict("红色的猫，蓝色的猫", seen(("cat", "blue"), ("moon", None)))
    assert [one.right for one in verdict.objects] == [False, True]
    assert [thing.kind for thing in verdict.extra] == ["moon"]


def test_without_colours_none_is_judged():
    (verdict,) = prompt_verdict("水墨画：蓝色的猫", seen(("cat", None), style="ink")).objects
    assert verdict.right and verdict.right_colour is None
