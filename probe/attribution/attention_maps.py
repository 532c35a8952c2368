"""Maps of words from the attention of one evaluation: means, DAAM's sum, value-weighted attention, rollout.

`read_attention` gets what every rule needs; a rule makes one map [token, y, x] of it. Attention says where the model
looked, not whether that mattered (docs/explaining.md).
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from toushi.hooks.attention import Call
from toushi.probe.analysis.maps import finest_grid, mean_of_sites, resample
from toushi.probe.attribution.denoising import CannotExplain, Denoising
from toushi.probe.pipelines.family import EncodedPrompt, JointSequence, SiteKind
from toushi.probe.session.map_grid import grid_of
from toushi.probe.session.sampling_session import subscribe
from toushi.probe.session.subscriber import Subscriber

TokenMaps = Float[np.ndarray, "token y x"]


class SiteAttention(NamedTuple):
    """The attention of one site to the text, or (`self`) of image cells to image cells."""

    site: str
    kind: SiteKind
    probabilities: Float[np.ndarray, "head key y x"]
    value_norms: Float[np.ndarray, "head key"]  # Euclidean norm of the value of each key


class AttentionReading(NamedTuple):
    """One evaluation: the prompt with its tokens, and the attention of each site in the order in which they ran."""

    prompt: EncodedPrompt
    sites: list[SiteAttention]
    grid: tuple[int, int]  # of the latents, or of their patches
    joint: JointSequence | None  # where the text is, if image and text share one sequence


class _Reader(Subscriber):
    """Keeps the attention of the first row, which has the prompt."""

    def __init__(self, sites: str | Sequence[str] | None, heads: Sequence[int] | None):
        self.sites, self.heads = sites, heads
        self.attention: list[SiteAttention] = []
        self.kinds: dict[str, SiteKind] = {}

    def attention_modules(self) -> Mapping[str, nn.Module]:
        family, model = self.session.family, self.session.model
        selected = family.select_sites(model, self.sites)
        self.kinds = {name: site.kind for name, site in selected.items() if site.kind != "encoder"}
        family.check(model, {name: selected[name] for name in self.kinds})
        return {name: selected[name].module for name in self.kinds}

    def on_attention_edit(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        """Reads only: the output stays. An edit gets the values, which `on_attention` does not."""
        evaluation = self.session.evaluation
        assert evaluation is not None
        inputs, kind = evaluation.inputs, self.kinds[call.site]
        row = evaluation.rows.index(("cond", 0))
        self.prompt, self.grid = self.session.prompts["cond"][0], inputs.grid
        self.joint = None if inputs.joint is None else inputs.joint[row]
        queries, keys = slice(None), slice(None)
        if self.joint is not None:
            image = slice(self.joint.image, self.joint.image + self.grid[0] * self.grid[1])
            queries, keys = image, slice(self.joint.text, self.joint.text + self.joint.columns)
        maps = call.probabilities(keys, [row], queries)[0].float()
        value = value[row, :, keys].float()
        norms = value.norm(dim=-1).repeat_interleave(len(maps) // len(value), dim=0)
        heads = head_indices(self.heads, len(maps), call.site)
        maps, norms = maps[heads], norms[heads]
        maps = maps.unflatten(-1, grid_of(self.grid, maps.shape[-1]))
        self.attention.append(SiteAttention(call.site, kind, maps.cpu().numpy(), norms.cpu().numpy()))
        return output


def read_attention(
    denoising: Denoising, sites: str | Sequence[str] | None = None, heads: Sequence[int] | None = None
) -> AttentionReading:
    """The attention of one evaluation at the sites that the globs match; without globs all of the image to the text.

    Raises UnknownSite for a glob that matches nothing, CannotExplain for heads that a site has not.
    """
    reader = _Reader(sites, heads)
    with subscribe(denoising.model, reader):
        denoising.denoised([denoising.prompt])
    if not any(site.kind == "cross" for site in reader.attention):
        raise CannotExplain(f"the sites {sites!r} have no attention of the image to the text; expected at least one")
    return AttentionReading(reader.prompt, reader.attention, reader.grid, reader.joint)


def plain_mean(reading: AttentionReading) -> TokenMaps:
    """The mean over the heads of a site, then over sites, each equally."""
    return mean_of_sites([site.probabilities.mean(0) for site in _to_text(reading)])


def daam_sum(reading: AttentionReading) -> TokenMaps:
    """The sum over all heads of all sites on the finest grid, so that a site with more heads weighs more.

    Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", 2023, equation 6 at one step. They
    enlarge bicubically; here it is bilinear, which keeps each map's mean.
    """
    sites = _to_text(reading)
    grid = finest_grid([site.probabilities.shape[-2:] for site in sites])
    return np.sum([resample(site.probabilities, grid).sum(0) for site in sites], axis=0)


def value_weighted(reading: AttentionReading) -> TokenMaps:
    """The mean of probability times the norm of the token's value: a token that adds little counts little.

    Kobayashi et al., "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms", 2020, without the output
    projection. It lowers sinks, which get much attention and have small values.
    """
    sites = _to_text(reading)
    return mean_of_sites([(site.probabilities * site.value_norms[..., None, None]).mean(0) for site in sites])


def rollout(reading: AttentionReading) -> TokenMaps:
    """The plain mean, carried on through each later self-attention of the image: half of a cell stays, half mixes.

    After Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020, whose residual is one half, too. Skip
    connections are not followed. Raises CannotExplain where no self-attention was read.
    """
    if not any(site.kind == "self" for site in reading.sites):
        raise CannotExplain("rollout needs image self-attention, which this model has not as a site of its own")
    flow: np.ndarray | None = None
    for site in reading.sites:
        maps = site.probabilities.mean(0)
        if flow is not None and flow.shape[-2:] != maps.shape[-2:]:
            flow = resample(flow, maps.shape[-2:])
        if site.kind == "cross":
            flow = maps if flow is None else flow + maps
        elif flow is not None:  # maps [key, y, x]: what each cell takes of each other
            mixed = np.einsum("tk,kyx->tyx", flow.reshape(len(flow), -1), maps)
            flow = (flow + mixed) / 2
    assert flow is not None
    return resample(flow / len(_to_text(reading)), finest_grid([s.probabilities.shape[-2:] for s in reading.sites]))


ATTENTION_RULES: dict[str, Callable[[AttentionReading], TokenMaps]] = {
    "attention": plain_mean,
    "daam": daam_sum,
    "value-weighted": value_weighted,
    "rollout": rollout,
}


def _to_text(reading: AttentionReading) -> list[SiteAttention]:
    return [site for site in reading.sites if site.kind == "cross"]


def head_indices(heads: Sequence[int] | None, count: int, site: str) -> list[int]:
    """These heads of a site; all of its `count` heads for None. Raises CannotExplain for heads that it has not."""
    try:
        chosen = list(range(count) if heads is None else map(operator.index, heads))
    except TypeError:
        chosen = []
    if not chosen or not all(0 <= head < count for head in chosen):
        raise CannotExplain(f"{site} has the heads 0 to {count - 1}, but {heads!r:.60} came")
    return chosen
