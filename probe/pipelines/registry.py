"""The families that are known: the shipped ones, and those that users register.

`register_family(Family(...))` makes a user's own pipeline recordable. A package that is installed beside this one can
name its family as an entry point of the group `toushi.families`; then the command knows it, too.
"""

from functools import cache
from importlib import metadata

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.families.mini_unet_family import MINI_UNET
from toushi.probe.pipelines.family import Family, UnknownFamily
from toushi.probe.pipelines.generic import generic_family
from toushi.probe.pipelines.table import PIPELINES

SHIPPED_FAMILIES = (MINI_UNET, *PIPELINES)
ENTRY_POINTS = "toushi.families"

_registered: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Makes models of this family known to `record`, `edit` and the commands, and returns the family.

    Registered families are asked before the shipped ones, the latest first. A family of the same name is replaced.
    Raises ToushiError for anything that is not a `Family`, and for the name of a shipped family.
    """
    if not isinstance(family, Family):
        raise ToushiError(f"register_family expected a Family, but {type(family).__name__} came")
    if family.name in {shipped.name for shipped in SHIPPED_FAMILIES}:
        raise ToushiError(f"{family.name!r} is the name of a shipped family: give yours another name")
    _registered.pop(family.name, None)
    _registered[family.name] = family
    return family


def unregister_family(name: str) -> None:
    """Forgets a registered family; does nothing if there is none of that name."""
    _registered.pop(name, None)


def families() -> tuple[Family, ...]:
    """Every known family, in the order in which they are asked."""
    return (*reversed(_registered.values()), *_installed_families(), *SHIPPED_FAMILIES)


@cache
def _installed_families() -> tuple[Family, ...]:
    """Families of packages that are installed beside this one."""
    found = []
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        family = entry.load()
        if not isinstance(family, Family):
            raise ToushiError(
                f"the entry point {entry.name} of {ENTRY_POINTS} must name a Family; {entry.value} is a "
                f"{type(family).__name__}"
            )
        found.append(family)
    return tuple(found)


def family_of(model) -> Family:
    """The family of a model or pipeline. Raises UnknownFamily, with the reason and the known families."""
    for family in families():
        if family.matches(model):
            return family
    if (family := generic_family(model)) is not None:
        return family
    known = ", ".join(family.name for family in families())
    raise UnknownFamily(
        f"cannot record a {type(model).__name__}: expected a model of one of the families {known}. "
        "Of diffusers these are text-to-image pipelines, whole, not their transformer alone."
    )
