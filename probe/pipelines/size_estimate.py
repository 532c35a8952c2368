"""How large a pipeline's traces will be, from its configs alone: no weights, nothing runs."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from toushi.probe.pipelines.family import Family, Site
from toushi.probe.recording.forecast import Forecast, Size, forecast_of
from toushi.probe.recording.policy import Policy

CLIP = 77


class Shape(NamedTuple):
    """Of one site of image-to-text attention."""

    heads: int
    coarser: int  # than the finest grid, each way


def shapes(family: Family, pipeline) -> dict[str, Shape]:
    """Every image-to-text site, with its heads and how much coarser than the finest grid it is."""
    finest = depth(family, pipeline)
    sites: Mapping[str, Site] = family.select_sites(pipeline, None)
    return {
        name: Shape(heads(site.module), 2 ** level(name, finest))
        for name, site in sites.items()
        if site.kind == "cross"
    }


def depth(family: Family, pipeline) -> int:
    """How often the denoiser halves the latents; -1 if it is no U-Net."""
    return len(getattr(getattr(pipeline, family.denoiser).config, "down_block_types", ())) - 1


def heads(attention: nn.Module) -> int:
    for name in ("heads", "num_heads", "n_heads", "num_attention_heads"):
        if isinstance(found := getattr(attention, name, None), int):
            return found
    return 1


def level(site: str, depth: int) -> int:
    """How often a U-Net has halved the latents where this site is; 0 in a transformer."""
    if found := re.search(r"\.down_blocks\.(\d+)\.", site):
        return int(found[1])
    if found := re.search(r"\.up_blocks\.(\d+)\.", site):
        return depth - int(found[1])
    return depth if ".mid_block." in site else 0


def usual(pipeline, name: str) -> Any:
    """The default of an argument of the pipeline's call; None if there is none."""
    found = inspect.signature(type(pipeline).__call__).parameters.get(name)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def branches(pipeline) -> int:
    """How many texts the denoiser is given by default: the prompt, and with real guidance the negative one."""
    if (strength := usual(pipeline, "true_cfg_scale")) is not None:
        return 2 if strength > 1 else 1
    known = inspect.signature(type(pipeline).__call__).parameters
    return 2 if "negative_prompt" in known or "negative_prompt_embeds" in known else 1


# Families whose text columns are the prompt's own tokens, and how many the pipeline puts around them. In the others
# the text is filled up to what the encoder reads.
REAL: dict[str, Callable[[int], int]] = {
    "pixart": lambda tokens: tokens,
    "qwen-image": lambda tokens: tokens + 5,
    "lumina-2": lambda tokens: tokens + 40,
    "z-image": lambda tokens: -(-(tokens + 8) // 32) * 32,
    "hunyuan-dit": lambda tokens: CLIP + 256,  # BERT's, then T5's; the call has no argument for either
}
BEFORE = {"stable-diffusion-3": CLIP}  # columns of another encoder that come before


def columns(family: Family, pipeline, tokens: int) -> int:
    """Text columns of a prompt with so many tokens."""
    if family.name in REAL:
        return REAL[family.name](tokens)
    length = usual(pipeline, "max_sequence_length")
    if not isinstance(length, int):
        tokenizer = getattr(pipeline, "tokenizer", None)
        length = min(getattr(tokenizer, "model_max_length", CLIP) or CLIP, 512)
    return length + BEFORE.get(family.name, 0)


def foreseen(
    family: Family,
    pipeline,
    size: tuple[int, int],
    steps: int,
    tokens: int,
    policy: Policy | None = None,
    texts: int | None = None,
) -> Forecast:
    """Bytes of one picture's trace, for each way to keep it; `size` in pixels. `texts`: how many the denoiser is given,
    as many as with the pipeline's default guidance if not told."""
    factor, width = family.cell_pixels(pipeline), columns(family, pipeline, tokens)
    rows, across = -(-size[0] // factor), -(-size[1] // factor)
    maps = [
        # In joint attention what went to the image's own keys is kept too, as one column more.
        Size(shape.heads, width + (not name.endswith("attn2")), -(-rows // shape.coarser) * -(-across // shape.coarser))
        for name, shape in shapes(family, pipeline).items()
        for _ in range(texts or branches(pipeline))
    ]
    return forecast_of(maps, policy or Policy(), steps, (rows, across))
