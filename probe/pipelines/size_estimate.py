"""How large the maps of a pipeline will be, from its configs alone: no weights are loaded, nothing is computed."""

import inspect
import re
from typing import NamedTuple

from torch import nn

from toushi.probe.pipelines.family import Family, Model

CLIP_COLUMNS = 77  # positions that CLIP reads
MAX_DEFAULT_COLUMNS = 512  # tokenizers without a limit of their own give an astronomical one


class SiteShape(NamedTuple):
    """One site of image-to-text attention."""

    heads: int
    downsampling: int  # cells of the finest grid along one side of a cell of this site's grid


class MapSize(NamedTuple):
    """The maps of one site and branch in one step."""

    heads: int
    columns: int  # with one column for `rest`, if there is any
    cells: int


def estimate_maps(
    family: Family, pipeline: Model, size: tuple[int, int], tokens: int, branches: int | None = None
) -> tuple[list[MapSize], tuple[int, int]]:
    """The maps of one step, and rows and columns of the finest grid.

    size      of the picture, (height, width) in pixels
    tokens    of the prompt
    branches  texts that the denoiser is evaluated on; by default as many as with the pipeline's default guidance
    """
    pixels = family.cell_pixels(pipeline)
    rows, columns = -(-size[0] // pixels), -(-size[1] // pixels)
    text = kept_columns(family, pipeline, tokens) + family.joint  # one more column for `rest`
    maps = [
        MapSize(shape.heads, text, -(-rows // shape.downsampling) * -(-columns // shape.downsampling))
        for shape in site_shapes(family, pipeline).values()
        for _ in range(branches or default_branches(pipeline))
    ]
    return maps, (rows, columns)


def site_shapes(family: Family, pipeline: Model) -> dict[str, SiteShape]:
    """Heads and downsampling of every image-to-text site."""
    return {
        name: SiteShape(head_count(site.module), downsampling(family, pipeline, name))
        for name, site in family.select_sites(pipeline, None).items()
        if site.kind == "cross"
    }


def head_count(attention: nn.Module) -> int:
    """Heads of an attention module, whatever its library calls them; 1 if it does not tell."""
    for name in ("heads", "num_heads", "n_heads", "num_attention_heads"):
        if isinstance(count := getattr(attention, name, None), int):
            return count
    return 1


def downsampling(family: Family, pipeline: Model, site: str) -> int:
    """Cells of the finest grid along one side of a cell of this site's grid: powers of 2 in a U-Net, else 1."""
    last = len(getattr(getattr(pipeline, family.denoiser).config, "down_block_types", ())) - 1
    if number := re.search(r"\.down_blocks\.(\d+)\.", site):
        return 2 ** int(number[1])
    if number := re.search(r"\.up_blocks\.(\d+)\.", site):
        return 2 ** (last - int(number[1]))
    return 2**last if ".mid_block." in site else 1


def default_argument(pipeline: Model, name: str) -> object:
    """The default of an argument of the pipeline's call; None if there is none."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def default_branches(pipeline: Model) -> int:
    """How many texts the denoiser gets by default: the prompt, and with real guidance the negative prompt."""
    if isinstance(strength := default_argument(pipeline, "true_cfg_scale"), int | float):
        return 2 if strength > 1 else 1
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return 2 if "negative_prompt" in parameters or "negative_prompt_embeds" in parameters else 1


def kept_columns(family: Family, pipeline: Model, tokens: int) -> int:
    """At most so many text columns are kept of a prompt of so many tokens: its tokens, two special tokens for each
    encoder, and one column for all pads together."""
    total = text_columns(family, pipeline, tokens)
    if total != text_columns(family, pipeline, tokens + total):  # the text is as long as its prompt, without pads
        return total
    return min(total, max(1, len(family.text_encoders)) * (tokens + 2) + 1)


def text_columns(family: Family, pipeline: Model, tokens: int) -> int:
    """Text columns of a prompt of so many tokens."""
    if family.text_columns is not None:
        return family.text_columns(pipeline, tokens)
    return padded_text_columns(pipeline)


def padded_text_columns(pipeline: Model) -> int:
    """Text columns of any prompt, if it is padded to the length that the pipeline's call or its tokenizer tells."""
    length = default_argument(pipeline, "max_sequence_length")
    if isinstance(length, int):
        return length
    tokenizer = getattr(pipeline, "tokenizer", None)
    return min(getattr(tokenizer, "model_max_length", CLIP_COLUMNS) or CLIP_COLUMNS, MAX_DEFAULT_COLUMNS)
