"""Why a word has no effect on a picture, as far as its trace tells: its tokens, its share of the attention, its map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from toushi.probe.analysis.maps import average, mass, total_variation
from toushi.probe.text.alignment import (
    Span,
    Token,
    Word,
    WordSpec,
    token_shares,
    unknown_words,
    word_class,
    word_labels,
)
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import select_sites, why_no_map
from toushi.probe.trace.trace_errors import DamagedTrace

SINK = 0.5  # share of special tokens and pads above which they are a sink
FAINT = 0.5  # of the median share of the other words of its class, below which a word is faint
CONTRAST = 0.1  # total variation below which a map is like those of the other words

Finding = Literal["cut", "changed", "dropped", "unknown", "split", "sink", "faint", "no_contrast"]
LOST: dict[str, Finding] = {  # a key of NO_MAP -> finding
    "cut": "cut",
    "older": "cut",
    "changed": "changed",
    "other text": "changed",
    "dropped": "dropped",
}


@dataclass(frozen=True)
class WordDiagnosis:
    """What `diagnose_word` returns. Shares are parts of all attention of the image cells, 0..1."""

    word: str  # with #1, #2, … if the prompt repeats it
    span: Span
    tokens: tuple[Token, ...]  # that stand for it; none if it was cut or changed
    unknown_with: tuple[str, ...]  # other words that the vocabulary lacks, if it lacks this one
    split_with: tuple[str, ...]  # words with which it shares a token
    share: float | None  # None, as all below: it does not reach the denoiser
    peers: dict[str, float]  # other words of its class, such as nouns, or all if it has none -> share
    sink: float | None  # share of special tokens, template and pads; None also if only some words were kept
    peak_step: int | None  # None also if only the sum over steps was kept
    peak_site: str | None
    peak_share: float | None  # at this step and site
    contrast: float | None  # total variation of its map and the mean map of the other words, 0..1
    findings: tuple[Finding, ...]

    @property
    def median_of_peers(self) -> float | None:
        return float(np.median(list(self.peers.values()))) if self.peers else None


def diagnose_word(trace: Trace | str | Path, word: WordSpec, *, branch: str = "cond") -> WordDiagnosis:
    """What a trace, which is given as a folder or opened, tells about a word that seems to be ignored.

    The findings, in the order in which a word passes through the model:
    cut          no token stands for it: the prompt is too long for the text encoder
    changed      no token stands for it: its text was changed before the encoder read it
    dropped      the denoiser does not get its tokens
    unknown      the vocabulary lacks it: the encoder reads <unk> in its place
    split        it shares a token with another word
    sink         special tokens and pads get more than SINK of the attention
    faint        its share is below FAINT of the median share of the other words of its class
    no_contrast  its map differs from the mean map of the other words by less than CONTRAST

    Raises UnknownWord or AmbiguousWord; NotRecorded if the trace has no maps of it, DamagedTrace if they hold NaN.
    """
    trace = trace if isinstance(trace, Trace) else open_trace(trace)
    span, words, tokens = trace.span(word, branch), trace.words(branch), trace.tokens(branch)
    asked = Word((trace.manifest.prompt_of(branch) or "")[slice(*span)], *span)
    word_tokens = tuple(token for token, share in zip(tokens, token_shares(tokens, span)) if share)
    labels = dict(zip(words, word_labels(words, words)))
    others = [other for other in words if other.end <= span[0] or span[1] <= other.start]
    is_unknown = bool(unknown_words([asked], tokens))
    unknown = tuple(labels[other] for other in unknown_words(others, tokens)) if is_unknown else ()
    split = tuple(labels[other] for other in others if token_shares(word_tokens, other.span).any())
    label = labels.get(asked, asked.text)
    checks: dict[Finding, bool] = {"unknown": is_unknown, "split": bool(split)}
    if all(token.column is None for token in word_tokens):
        found: tuple[Finding, ...] = (
            LOST[why_no_map(trace.manifest, branch, span)],
            *(name for name in checks if checks[name]),
        )
        return WordDiagnosis(label, span, word_tokens, unknown, split, None, {}, None, None, None, None, None, found)

    heat = trace.heat_map(span, branch=branch)
    places = trace.places(branch)
    there = [other for other in others if token_shares(places, other.span).any()]
    maps = {other: trace.heat_map(other, branch=branch).values for other in there}
    share, shares = float(mass(heat.values)), {labels[other]: float(mass(maps[other])) for other in there}
    same_class = {labels[other] for other in there if word_class(other.text) == word_class(asked.text)}
    peers = {name: of_word for name, of_word in shares.items() if name in same_class} or shares
    if not np.isfinite(share):
        raise DamagedTrace(
            f"{trace.folder}: the map of {label!r} holds NaN, so nothing can be said of it; record it again"
        )
    masses = trace.mass(branch, sites=heat.attrs["sites"])
    is_whole = trace.manifest.branches[branch].covers_all_columns()
    sink = sum(float(part) for token, part in zip(places, masses.values) if not token.is_text) if is_whole else None
    contrast = _contrast(heat.values, list(maps.values()))
    step, site, most = _peak(trace, span, branch)
    checks["sink"] = sink is not None and sink > SINK
    checks["faint"] = bool(peers) and share < FAINT * float(np.median(list(peers.values())))
    checks["no_contrast"] = contrast is not None and contrast < CONTRAST
    found = tuple(name for name in checks if checks[name])
    return WordDiagnosis(
        label, span, word_tokens, unknown, split, share, peers, sink, step, site, most, contrast, found
    )


def _contrast(heat: np.ndarray, others: Sequence[np.ndarray]) -> float | None:
    """Total variation of a map and the mean of the others, each divided by its sum; None if nothing can be compared."""
    present = [other / other.sum() for other in others if other.sum() > 0]
    return float(total_variation(heat, np.mean(present, axis=0))) if present and heat.sum() > 0 else None


def _peak(trace: Trace, span: Span, branch: str) -> tuple[int | None, str, float]:
    """Step, site and share where the word gets most: the mean over heads and cells."""
    best: tuple[int | None, str, float] = (None, "", -1.0)
    for site in select_sites(trace.manifest):
        attention = trace.attention(span, branch=branch, sites=site, grid="native")[site]
        shares = average(mass(attention), ("head",))
        place = int(np.nanargmax(shares.values))
        if (most := float(shares.values[place])) > best[2]:
            best = None if trace.keep == "sum" else int(shares["step"].values[place]), site, most
    return best
