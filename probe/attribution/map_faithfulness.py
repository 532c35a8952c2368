"""Is an explanation [word] true of the model? Measures that ask the model again, with words left out or weights shuffled.

A map is scored by where it lies (`probe/analysis/map_measures.py`). Numbers for words are scored by what happens when the
words that they rank highest go. `FAITHFULNESS` says in which direction each measure is better.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from toushi.probe.attribution.denoising import CannotExplain, Denoising
from toushi.probe.attribution.word_scores import WordScores
from toushi.probe.base.extras import require
from toushi.probe.pipelines.family import Model, submodule
from toushi.probe.pipelines.registry import family_of

if TYPE_CHECKING:
    import xarray

FAITHFULNESS: dict[str, Literal["higher", "lower"]] = {
    "insertion": "higher",
    "deletion": "lower",
    "sufficiency": "lower",
    "comprehensiveness": "higher",
    "infidelity": "lower",
    "sensitivity": "lower",
    "similarity_after_randomisation": "lower",
    "agreement_over_seeds": "higher",
}


def curve(
    scores: WordScores, explanation: "xarray.DataArray", kind: Literal["insertion", "deletion"]
) -> "xarray.DataArray":
    """The score [words] after 0, 1, … of the words, highest ones first, were written (insertion) or left out (deletion).

    Petsiuk et al., "RISE", 2018. Equal values go in the order of the prompt.
    """
    import xarray as xr

    order = np.argsort(-_values(scores, explanation), kind="stable")
    count = len(order)
    changed = np.tril(np.ones((count + 1, count)), -1)[:, np.argsort(order)]  # row k has the k highest
    present = changed if kind == "insertion" else 1 - changed
    return xr.DataArray(scores(torch.from_numpy(present)).numpy(), dims=("words",), name=kind)


def area(scores: WordScores, explanation: "xarray.DataArray", kind: Literal["insertion", "deletion"]) -> float:
    """The mean of the curve (trapezoids) in shares of the way from no words to all: 1 where the first word does all."""
    values = curve(scores, explanation, kind).values
    ends = scores(torch.stack([torch.zeros(len(scores.words)), torch.ones(len(scores.words))])).tolist()
    heights = (values - ends[0]) / (ends[1] - ends[0]) if ends[1] != ends[0] else np.full(len(values), np.nan)
    return float(np.mean((heights[1:] + heights[:-1]) / 2))


def sufficiency(scores: WordScores, explanation: "xarray.DataArray", top: int = 1) -> float:
    """Score of the whole prompt minus that of only its `top` words: 0 where they are enough. DeYoung et al. (ERASER), 2020."""
    values = curve(scores, explanation, "insertion").values
    return float(values[-1] - values[_top(top, len(values) - 1)])


def comprehensiveness(scores: WordScores, explanation: "xarray.DataArray", top: int = 1) -> float:
    """Score of the whole prompt minus that without its `top` words: high where they were needed. DeYoung et al., 2020."""
    values = curve(scores, explanation, "deletion").values
    return float(values[0] - values[_top(top, len(values) - 1)])


def infidelity(scores: WordScores, explanation: "xarray.DataArray", samples: int = 64, seed: int = 0) -> float:
    """Mean squared difference between what the explanation foretells when random words go and what happens.

    Each word goes with probability one half. Best scaling is allowed (`normalize` of `captum.metrics.infidelity`), so
    that only the proportions count. Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", 2019.
    """
    require("captum")
    from captum.metrics import infidelity as captum_infidelity

    generator = torch.Generator().manual_seed(seed)

    def leave_out(present: Tensor) -> tuple[Tensor, Tensor]:
        gone = (torch.rand(present.shape, generator=generator) < 0.5).to(present)
        return gone, present - gone

    values = torch.from_numpy(_values(scores, explanation)).float()[None]
    everything = torch.ones(1, len(scores.words))
    result = captum_infidelity(scores, leave_out, everything, values, n_perturb_samples=samples, normalize=True)
    return float(result[0])


def sensitivity(
    denoising: Denoising, explain: Callable[[Denoising], "xarray.DataArray"], radius: float = 0.02, samples: int = 4
) -> float:
    """The largest relative change of the explanation when the noisy latents change by at most `radius` in each cell.

    `explain` is called with the changed denoising: `lambda d: explain_at(d, box, "ablation")`. For models of ours, whose
    latents can be given. Yeh et al., 2019; `captum.metrics.sensitivity_max`. Raises CannotExplain for other models.
    """
    require("captum")
    from captum.metrics import sensitivity_max

    if denoising.at_latents is None:
        raise CannotExplain(f"{denoising.family.name}: the latents of its run cannot be changed; compare seeds instead")
    at_latents = denoising.at_latents

    def values_of(latents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(explain(at_latents(latents[0])).values).float()[None],)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = sensitivity_max(
            values_of, (denoising.latents,), perturb_radius=radius, n_perturb_samples=samples, max_examples_per_batch=1
        )
    return float(result[0])


def agreement(explanations: Sequence["xarray.DataArray"]) -> float:
    """Mean Pearson correlation of each two explanations, -1..1: of one prompt at several seeds, or before and after."""
    shapes = [explanation.shape for explanation in explanations]
    if len(shapes) < 2 or len(set(shapes)) > 1:
        raise CannotExplain(f"agreement needs at least two explanations of one shape, but the shapes {shapes} came")
    matrix = np.corrcoef([explanation.values.ravel() for explanation in explanations])
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


@contextmanager
def randomised_weights(model: Model, seed: int = 0) -> Iterator[None]:
    """Inside, the weights of the denoiser are shuffled, each within its tensor. Afterwards they are as before.

    An explanation that stays similar does not explain what the model learnt. Adebayo et al., "Sanity Checks for Saliency
    Maps", 2018. Raises CannotExplain for quantised weights.
    """
    denoiser = submodule(model, family_of(model).denoiser)
    weights = list(denoiser.parameters())
    if not all(weight.is_floating_point() and type(weight) is torch.nn.Parameter for weight in weights):
        raise CannotExplain("the weights are quantised and cannot be shuffled; load the model unquantised")
    generator = torch.Generator().manual_seed(seed)
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, old in zip(weights, before):
                order = torch.randperm(old.numel(), generator=generator).to(old.device)
                weight.copy_(old.flatten()[order].view_as(old))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before):
                weight.copy_(old)


def _values(scores: WordScores, explanation: "xarray.DataArray") -> np.ndarray:
    """The numbers of the explanation. Raises CannotExplain if they are maps, or for other words."""
    if explanation.dims != ("word",) or list(explanation.word.values) != scores.labels:
        raise CannotExplain(
            f"expected an explanation [word] of {', '.join(scores.labels)}, but one {list(explanation.dims)} of "
            f"{', '.join(map(str, explanation.word.values))} came"
        )
    return np.ascontiguousarray(explanation.values)  # torch takes no reversed arrays


def _top(top: int, words: int) -> int:
    if not 1 <= top <= words:
        raise CannotExplain(f"top must lie in 1..{words}, the number of words, but {top} came")
    return top
