"""Maps of the words of a scene by every rule, and what really changes when a word is removed.

A word is removed in two ways, at the same noisy latents: *written*, the prompt is written without it; *attended*, no image
cell attends to it. The effect on a region is the root mean square, over its cells and channels, of the change of the
predicted clean latents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from toushi.experiments.scene_world.captions import Caption
from toushi.probe.analysis.map_measures import mass_inside
from toushi.probe.analysis.maps import resample
from toushi.probe.attribution import baselines
from toushi.probe.attribution.attention_maps import ATTENTION_RULES, read_attention
from toushi.probe.attribution.denoising import Denoising
from toushi.probe.attribution.explain import explain_at, word_maps
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.text.alignment import Word, segment

BASELINES = ("blob", "noise", "other-word", "no place")
WordMaps = Float[np.ndarray, "word y x"]


class CaptionWord(NamedTuple):
    """A word of a caption, its role (`other` if it is no part), and the index of its object, if it is about one."""

    word: Word
    role: str
    object: int | None


def caption_words(caption: Caption) -> list[CaptionWord]:
    """The parts of the caption as words, and all other words outside them, in order."""
    parts = [CaptionWord(Word(caption.text[p.start : p.end], p.start, p.end), p.role, p.object) for p in caption.parts]
    taken = {place for word, _, _ in parts for place in range(word.start, word.end)}
    others = [CaptionWord(word, "other", None) for word in segment(caption.text) if not taken & {*range(*word.span)}]
    return sorted([*parts, *others], key=lambda entry: entry.word.start)


def maps_by_method(denoising: Denoising, words: Sequence[Word], seed: int) -> dict[str, WordMaps]:
    """Maps of each word by each method of attention, by gradient times attention, each site, each head, and baselines.

    Heads are named `site, head 0`. `no place` is a word's mean attention, at every cell. The gradient is that of the
    change of the whole picture from no words to the prompt.
    """
    sites = [name for name, site in denoising.family.sites(denoising.model).items() if site.kind != "encoder"]
    reading = read_attention(denoising, sites)
    maps = {name: word_maps(rule(reading), reading, words) for name, rule in ATTENTION_RULES.items()}
    plain = maps["attention"]
    grid = (plain.shape[-2], plain.shape[-1])
    spans = [word.span for word in words]
    maps["gradient-attention"] = explain_at(denoising, (0, 0, *grid), "gradient-attention", words=spans).values
    maps["blob"] = baselines.centred_blob(len(words), grid)
    maps["noise"] = baselines.noise(len(words), grid, seed)
    maps["other-word"] = baselines.other_word(plain)
    maps["no place"] = np.broadcast_to(plain.mean((1, 2), keepdims=True), plain.shape)
    for site in reading.sites:
        if site.kind == "cross":
            maps[site.site] = word_maps(site.probabilities.mean(0), reading, words)
            for head, probabilities in enumerate(site.probabilities):
                maps[f"{site.site}, head {head}"] = word_maps(probabilities, reading, words)
    return maps


def changes_by_removal(denoising: Denoising, words: Sequence[Word]) -> dict[str, WordMaps]:
    """How much each cell changes without each word [word, y, x], in latent units: root mean square over channels."""
    spans = [word.span for word in words]
    written = explain_at(denoising, None, "ablation", words=spans).values
    whole, attended = denoising.denoised([denoising.prompt]), []
    for span in spans:
        with edit(denoising.model, Edit("unet.*cross_attention", "zero", word=span, renormalise=True)):
            attended.append((denoising.denoised([denoising.prompt]) - whole)[0].square().mean(0).sqrt().numpy())
    return {"written": written, "attended": np.stack(attended)}


def effects_on(changes: WordMaps, mask: Float[np.ndarray, "Y X"]) -> Float[np.ndarray, " word"]:
    """The root mean square of the changes of each word inside the mask, whose cells count with the share it covers."""
    weights = resample(mask.astype(np.float32), changes.shape[-2:])
    return np.sqrt((changes**2 * weights).sum((1, 2)) / weights.sum())


def values_in(maps: WordMaps, method: str, mask: Float[np.ndarray, "Y X"]) -> Float[np.ndarray, " word"]:
    """What a reader of the maps takes for each word's weight in a region: the share of its map that lies there. Without
    a place, its mean."""
    return maps.mean((1, 2)) if method == "no place" else np.asarray(mass_inside(maps, mask))


def rank_correlation(values: np.ndarray, effects: np.ndarray) -> float:
    """Spearman's correlation, -1..1. Equal values foretell nothing: 0."""
    if np.ptp(values) == 0 or np.ptp(effects) == 0:
        return 0.0
    ranks = rankdata(values), rankdata(effects)
    return float(np.corrcoef(*ranks)[0, 1])
