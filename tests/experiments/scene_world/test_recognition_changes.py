"""What differs between two recognised pictures."""

from toushi.experiments.scene_world.recogniser import Detection, Recognition
from toushi.experiments.scene_world.recognition_changes import pair_objects


def thing(kind, x, colour=None):
    return Detection(kind, colour, 27, x, 36, 0.9)


def world(*objects):
    return Recognition("plain", "night", "flat", objects)


def test_objects_are_paired_and_their_changes_named():
    a = world(thing("cat", 17), thing("moon", 47), thing("dog", 30), thing("fish", 10, "red"))
    b = world(thing("cat", 47), thing("cat", 18), thing("moon", 20), thing("fish", 10, "blue"))
    changes = [(pair.a or pair.b, pair.change) for pair in pair_objects(a, b)]
    assert [(one.kind, one.x, change) for one, change in changes if one] == [
        ("cat", 17, "same"),
        ("moon", 47, "moved 27 pixels"),
        ("dog", 30, "gone"),
        ("fish", 10, "recoloured"),
        ("cat", 47, "new"),
    ]


def test_a_picture_does_not_differ_from_itself():
    a = world(thing("cat", 17), thing("cat", 47))
    assert {pair.change for pair in pair_objects(a, a)} == {"same"}
