"""What differs between two pictures of the scene world, as the recogniser sees them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from toushi.experiments.scene_world.recogniser import Detection, Recognition

MOVED = 4  # pixels: the recogniser may place one object of two pictures so far apart


class ObjectPair(NamedTuple):
    """One object in both pictures; None where it is in one of them only."""

    a: Detection | None
    b: Detection | None

    @property
    def change(self) -> str:
        """gone, new, what else differs (such as "moved 14 pixels, recoloured"), or "same"."""
        if self.a is None or self.b is None:
            return "new" if self.a is None else "gone"
        distance = math.hypot(self.a.x - self.b.x, self.a.y - self.b.y)
        moved = f"moved {distance:.0f} pixels" if distance > MOVED else ""
        recoloured = "recoloured" if self.a.colour != self.b.colour else ""
        return ", ".join(filter(None, (moved, recoloured))) or "same"


def pair_objects(a: Recognition, b: Recognition) -> list[ObjectPair]:
    """Each object once: objects of one kind are paired with the nearest, those of A first, then what only B has."""
    left, pairs = list(b.objects), []
    for thing in a.objects:
        other = _nearest(thing, [other for other in left if other.kind == thing.kind])
        pairs.append(ObjectPair(thing, other))
        if other is not None:
            left.remove(other)
    return pairs + [ObjectPair(None, other) for other in left]


def _nearest(thing: Detection, others: Sequence[Detection]) -> Detection | None:
    return min(others, key=lambda other: math.hypot(thing.x - other.x, thing.y - other.y), default=None)
