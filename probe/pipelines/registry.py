"""The known families: those that are shipped, and those that users register.

`register_family(Family(...))` makes a user's own pipeline recordable. An installed package can name its family as an
entry point of the group `toushi.families`; then the commands know it, too.
"""

import warnings
from functools import cache
from importlib import metadata

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.encoder_paths import with_encoder_paths
from toushi.probe.pipelines.families.auraflow import AURAFLOW
from toushi.probe.pipelines.families.chroma import CHROMA
from toushi.probe.pipelines.families.cogview_4 import COGVIEW_4
from toushi.probe.pipelines.families.ernie_image import ERNIE_IMAGE
from toushi.probe.pipelines.families.flux import FLUX
from toushi.probe.pipelines.families.flux_2 import FLUX_2, FLUX_2_KLEIN
from toushi.probe.pipelines.families.hunyuan_dit import HUNYUAN_DIT
from toushi.probe.pipelines.families.hunyuan_image import HUNYUAN_IMAGE
from toushi.probe.pipelines.families.instruct_pix2pix import INSTRUCT_PIX2PIX
from toushi.probe.pipelines.families.kolors import KOLORS
from toushi.probe.pipelines.families.longcat_image import LONGCAT_IMAGE
from toushi.probe.pipelines.families.lumina_2 import LUMINA_2
from toushi.probe.pipelines.families.mini_dit_family import MINI_DIT
from toushi.probe.pipelines.families.mini_unet_family import MINI_UNET
from toushi.probe.pipelines.families.ovis_image import OVIS_IMAGE
from toushi.probe.pipelines.families.pixart import PIXART
from toushi.probe.pipelines.families.qwen_image import QWEN_IMAGE
from toushi.probe.pipelines.families.qwen_image_edit import QWEN_IMAGE_EDIT
from toushi.probe.pipelines.families.sana import SANA
from toushi.probe.pipelines.families.sdxl import SDXL
from toushi.probe.pipelines.families.stable_diffusion import STABLE_DIFFUSION
from toushi.probe.pipelines.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from toushi.probe.pipelines.families.z_image_family import OWN_Z_IMAGE, Z_IMAGE
from toushi.probe.pipelines.families.z_image_omni import Z_IMAGE_OMNI
from toushi.probe.pipelines.family import Family, Model, UnknownFamily
from toushi.probe.pipelines.generic import generic_family, refuse_class

SHIPPED_FAMILIES = (
    MINI_DIT,  # before mini-unet's, whose subclass it is
    MINI_UNET,
    STABLE_DIFFUSION,
    INSTRUCT_PIX2PIX,
    SDXL,
    KOLORS,
    PIXART,
    SANA,
    HUNYUAN_DIT,
    STABLE_DIFFUSION_3,
    Z_IMAGE,
    OWN_Z_IMAGE,
    Z_IMAGE_OMNI,
    LUMINA_2,
    FLUX,
    FLUX_2,
    FLUX_2_KLEIN,
    QWEN_IMAGE,
    QWEN_IMAGE_EDIT,
    LONGCAT_IMAGE,
    OVIS_IMAGE,
    ERNIE_IMAGE,
    HUNYUAN_IMAGE,
    COGVIEW_4,
    CHROMA,
    AURAFLOW,
)
ENTRY_POINTS = "toushi.families"

_registered: dict[str, Family] = {}


class FamilyNotLoaded(UserWarning):
    """An installed package names a family that cannot be used."""


def register_family(family: Family) -> Family:
    """The family. From now on `record`, `edit` and the commands know models of this family.

    Registered families are tried before the shipped ones, the latest first. A family of the same name is replaced.
    Raises ToushiError for anything that is not a `Family`, and for the name of a shipped family.
    """
    _check_family(family)
    _registered.pop(family.name, None)
    _registered[family.name] = family
    return family


def families() -> tuple[Family, ...]:
    """Every known family, in the order in which they are tried."""
    return (*user_families(), *SHIPPED_FAMILIES)


def user_families() -> tuple[Family, ...]:
    """The families that are not shipped: registered ones, then those of installed packages."""
    return (*reversed(_registered.values()), *_installed_families())


def family_of(model: Model) -> Family:
    """The family of a model or pipeline. Raises UnknownFamily, with the reason and the known families."""
    for family in families():
        if family.matches(model):
            return with_encoder_paths(family, model)
    if (family := generic_family(model)) is not None:
        return family
    if isinstance(model, str):
        raise UnknownFamily(f"expected a model, but the text {model!r} came; write load({model!r})")
    known = "; ".join(family.name for family in families())
    raise UnknownFamily(
        f"cannot record a {type(model).__name__}: expected a model of one of these families: {known}. "
        "Of diffusers these are text-to-image pipelines, whole, not their transformer alone. "
        "For a pipeline of your own write a Family and register it (docs/families.md)."
    )


def refuse_pipeline_class(kind: type) -> None:
    """Raises UnknownFamily if no family serves the class and none can be made for it, whatever its weights are."""
    names = {name for family in families() for name in family.pipeline_classes}
    if not names & {each.__name__ for each in kind.__mro__}:
        refuse_class(kind)


def _check_family(family: object) -> None:
    if not isinstance(family, Family):
        raise ToushiError(f"expected a Family, but {type(family).__name__} came")
    if family.name in {shipped.name for shipped in SHIPPED_FAMILIES}:
        raise ToushiError(f"{family.name!r} is the name of a shipped family: give yours another name")


@cache
def _installed_families() -> tuple[Family, ...]:
    """Families of installed packages. Warns of those that cannot be used."""
    installed = []
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            family = entry.load()
            _check_family(family)
        except Exception as error:  # whatever that package raises must not stop the recording of other models
            warnings.warn(
                FamilyNotLoaded(
                    f"the family {entry.name!r} ({entry.value}) of an installed package is not used: "
                    f"{type(error).__name__}: {error}. Correct its entry point {ENTRY_POINTS}, or uninstall the package."
                ),
                stacklevel=3,
            )
            continue
        installed.append(family)
    return tuple(installed)
