"""`explain(model, prompt, target, method)`: every explanation behind one signature.

from toushi import explain, load

model = load("mini-unet")
explain(model, "左边是猫，右边是月亮")                                    # where each word was attended to [word, y, x]
explain(model, "左边是猫，右边是月亮", (0, 0, 16, 8), "shapley")          # which words the left half needs [word]
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from toushi.probe.attribution import baselines
from toushi.probe.attribution.attention_maps import ATTENTION_RULES, AttentionReading, TokenMaps, read_attention
from toushi.probe.attribution.denoising import CannotExplain, Denoising, denoise_at
from toushi.probe.attribution.gradients import gradient_attention, integrated_gradients
from toushi.probe.attribution.perturbation import ablation, shapley
from toushi.probe.attribution.word_scores import Target, WordScores, without, words_of
from toushi.probe.pipelines.family import Model
from toushi.probe.text.alignment import Word, WordSpec, segment, token_shares, word_labels

if TYPE_CHECKING:
    import xarray

BASELINES = ("blob", "noise", "other-word")
WORD_METHODS = ("integrated-gradients", "ablation", "shapley")  # a target -> one number for each word
METHODS = (*ATTENTION_RULES, "gradient-attention", *WORD_METHODS, *BASELINES)
NEEDS_TARGET = ("gradient-attention", "integrated-gradients", "shapley")
TAKES_TARGET = (*NEEDS_TARGET, "ablation")


def explain(
    model: Model,
    prompt: str,
    target: Target | None = None,
    method: str = "attention",
    *,
    words: WordSpec | Iterable[WordSpec] | None = None,
    time: float = 0.5,
    seed: int = 0,
    image: Image.Image | None = None,
    latents: Tensor | None = None,
    sites: str | Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    **options: object,
) -> "xarray.DataArray":
    """An explanation of one evaluation of the denoiser: maps [word, y, x] on the finest grid, or numbers [word].

    method   attention, daam, value-weighted, rollout: maps of where each word was attended to. gradient-attention:
             maps of the attention that raises the target. integrated-gradients, ablation, shapley: how much each word
             adds to the target [word]; ablation without a target: maps of the change that leaving out the word makes,
             in latent units. blob, noise, other-word: maps to compare with
    target   a box (y0, x0, y1, x1) in latent cells, a mask [y, x], or a function of the predicted clean latents
             [row, channel, y, x] that returns one number for each row (gradient methods need one that torch can follow)
    words    words of the prompt ("猫", "猫#2", a Word, a span); all by default
    time     noise level, 1 noise and 0 picture; with `seed`, `image`, `latents` and `options` as `denoise_at` says
    sites    globs of attention sites, and `heads` of each of them; by default all of the image to the text

    `attrs` has the method and the time, and integrated gradients their convergence `delta`. Raises CannotExplain for
    what this model cannot do, UnknownWord, UnknownSite, MissingLibrary.
    """
    _check_method(method, target)
    chosen = words_of(prompt, words)
    denoising = denoise_at(model, prompt, time, seed=seed, image=image, latents=latents, **options)
    return explain_at(denoising, target, method, words=chosen, sites=sites, heads=heads, seed=seed)


def explain_at(
    denoising: Denoising,
    target: Target | None = None,
    method: str = "attention",
    *,
    words: WordSpec | Iterable[WordSpec] | None = None,
    sites: str | Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    seed: int = 0,
) -> "xarray.DataArray":
    """`explain` at latents that are fixed already, so that several methods explain the same evaluation."""
    import xarray as xr

    _check_method(method, target)
    chosen = words_of(denoising.prompt, words)
    attributes: dict[str, object] = {"method": method, "prompt": denoising.prompt, "time": denoising.time}
    if method in WORD_METHODS and target is not None:
        scores = WordScores(denoising, target, chosen)
        if method == "integrated-gradients":
            reading = read_attention(denoising, sites, heads)
            values, attributes["delta"] = integrated_gradients(denoising, reading, scores.score, chosen)
        else:
            values = ablation(scores) if method == "ablation" else shapley(scores, seed)
        maps = values.numpy()
    else:
        maps = _maps(denoising, target, method, chosen, sites, heads, seed)
    labels = word_labels(chosen, segment(denoising.prompt))
    dimensions = ("word", "y", "x")[: maps.ndim]
    return xr.DataArray(maps, dims=dimensions, coords={"word": labels}, name="explanation", attrs=attributes)


def _check_method(method: str, target: Target | None) -> None:
    if method not in METHODS:
        raise CannotExplain(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if target is None and method in NEEDS_TARGET:
        raise CannotExplain(f"{method} needs a target: a box (y0, x0, y1, x1), a mask, or a function of the latents")
    if target is not None and method not in TAKES_TARGET:
        raise CannotExplain(f"{method} takes no target; leave it out, or choose one of {', '.join(TAKES_TARGET)}")


def _maps(
    denoising: Denoising,
    target: Target | None,
    method: str,
    words: Sequence[Word],
    sites: str | Sequence[str] | None,
    heads: Sequence[int] | None,
    seed: int,
) -> Float[np.ndarray, "word y x"]:
    if method == "ablation":
        return _changes(denoising, words)
    family, model = denoising.family, denoising.model
    if method == "rollout" and sites is None:
        sites = [name for name, site in family.sites(model).items() if site.kind != "encoder"]
    reading = read_attention(denoising, sites, heads if method != "gradient-attention" else None)
    if method == "gradient-attention":
        assert target is not None
        selected = {name: site.module for name, site in family.sites(model).items()}
        modules = {site.site: selected[site.site] for site in reading.sites if site.kind == "cross"}
        score = WordScores(denoising, target, words).score
        return word_maps(gradient_attention(denoising, reading, score, modules, heads), reading, words)
    maps = word_maps(ATTENTION_RULES.get(method, ATTENTION_RULES["attention"])(reading), reading, words)
    grid = (maps.shape[-2], maps.shape[-1])
    if method == "blob":
        return baselines.centred_blob(len(words), grid)
    if method == "noise":
        return baselines.noise(len(words), grid, seed)
    return baselines.other_word(maps) if method == "other-word" else maps


def word_maps(maps: TokenMaps, reading: AttentionReading, words: Sequence[Word]) -> Float[np.ndarray, "word y x"]:
    """The sum over the tokens of each word, each times the share of its characters in the word.

    Raises CannotExplain for a word without a column in the denoiser's text.
    """
    pairs = [(token, token.column) for token in reading.prompt.tokens if token.column is not None]
    pairs = [(token, column) for token, column in pairs if column < len(maps)]
    tokens, columns = [token for token, _ in pairs], [column for _, column in pairs]
    result = []
    for word in words:
        shares = token_shares(tokens, word.span)
        if not shares.any():
            reason = reading.prompt.why_no_column(word.span)
            raise CannotExplain(f"{word.text!r} has no map, for the denoiser's text has no column of it: {reason}")
        result.append(np.tensordot(shares, maps[columns], 1))
    return np.stack(result)


def _changes(denoising: Denoising, words: Sequence[Word]) -> Float[np.ndarray, "word y x"]:
    """The root mean square over channels of how the predicted clean latents change without each word."""
    choices = [[other is not word for other in words] for word in words]
    prompts = [denoising.prompt, *(without(denoising.prompt, words, choice) for choice in choices)]
    whole, *rest = torch.cat([denoising.denoised([prompt]) for prompt in prompts])
    return np.stack([(whole - row).square().mean(0).sqrt().cpu().numpy() for row in rest])
