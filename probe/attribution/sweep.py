"""`sweep(model, clean, corrupt)`: which site, word, step or head of one run turns the picture of another run into its own.

    sweep(model, "左边是猫，夜晚", "左边是狗，夜晚", over=("site", "word"))

Both prompts are sampled from one seed. In each cell of the result, a part of the attention to the text is taken from the
clean run while the corrupt one is sampled: the output of a head before heads are mixed, or with words the keys and values
of a word. The score says how far the picture has come. (Vig et al., "Investigating Gender Bias in Language Models Using
Causal Mediation Analysis", 2020; Meng et al., "Locating and Editing Factual Associations in GPT", 2022.)

All runs of a batch share their noise, and every patch is copied from the batch's own clean row. So a run with everything
patched is the clean one, bit for bit, if the text has no other way to the image; with nothing patched it is the corrupt
one. Each sweep measures both, and random sets of as many parts as a cell has: a cell counts only beside them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor, nn

from toushi.hooks.attention import Call
from toushi.hooks.torch_private import builtin_attention
from toushi.probe.attribution.denoising import CannotExplain
from toushi.probe.models.mini_unet import MiniUNet, to_images
from toushi.probe.pipelines.family import EncodedPrompt, Model, unwrap
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.patching import patch_method
from toushi.probe.session.sampling_session import subscribe
from toushi.probe.session.subscriber import Run, Subscriber
from toushi.probe.text.alignment import segment, token_shares, word_labels

if TYPE_CHECKING:
    import xarray

AXES = ("site", "word", "step", "head")
OTHER = "(other)"  # special tokens, punctuation and pads
Parts = Bool[np.ndarray, "site word step head"]
PictureScore = Callable[[Image.Image], float]


class _Row(NamedTuple):
    """One run of a batch: which parts are taken from which row."""

    parts: Parts
    source: int  # 0 the clean row, 1 the corrupt one
    begin: int = 0  # the first step at which a part is taken


class _Patcher(Subscriber):
    """Copies the parts of each row from its source row. Without rows it only notes what the run is made of."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules, self.names = modules, list(modules)
        self.heads: dict[str, int] = {}
        self.rows: Sequence[_Row] = ()
        self.columns: list[list[int]] | None = None  # of each word; None: whole heads
        self.prompts: list[EncodedPrompt] = []
        self.count = 0  # steps

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return self.modules

    def on_run_begin(self, run: Run) -> None:
        self.count = run.count

    def on_attention_edit(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        evaluation = self.session.evaluation
        assert evaluation is not None
        self.heads[call.site], self.prompts = call.shape[1], self.session.prompts["cond"]
        if self.columns is not None and (evaluation.inputs.joint is not None or call.inputs.key.shape != value.shape):
            raise CannotExplain(f"{call.site}: words need cross-attention to the text alone; leave word out of over")
        place = {key: row for row, key in enumerate(evaluation.rows)}
        site, step = self.names.index(call.site), evaluation.run.index
        key, value, result = call.inputs.key.clone(), value.clone(), output.clone()
        copies: list[tuple[int, int, np.ndarray]] = []  # row, source row, parts [word, head]
        for (branch, picture), row in place.items():
            parts = self.rows[picture].parts[site, :, step, : call.shape[1]] if self.rows else np.zeros((1, 1), bool)
            if parts.any() and (branch == "cond" or self.columns is None):
                copies.append((row, place[branch, self.rows[picture].source], parts))
        if self.columns is not None and copies:
            for row, source, parts in copies:
                for columns, of_word in zip(self.columns, parts):
                    index = np.ix_(np.flatnonzero(of_word), np.array(columns))
                    key[row][index] = call.inputs.key[source][index]
                    value[row][index] = value[source][index]
            mixed = builtin_attention(call.inputs.query, key, value, call.inputs.mask, scale=call.inputs.scale)
        for row, source, parts in copies:
            heads = np.flatnonzero(parts.any(0))
            result[row, heads] = output[source, heads] if self.columns is None else mixed[row, heads]
        return result


def sweep(
    model: Model,
    clean: str,
    corrupt: str,
    over: Sequence[str] = ("site",),
    *,
    score: PictureScore | None = None,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    batch: int = 16,
    controls: int = 3,
    progress: Callable[[int, int], object] = lambda done, count: None,
    **options: object,
) -> "xarray.DataArray":
    """The score of the picture of `corrupt` with each part of the run of `clean`, with the axes `over`.

    over      some of site, word, step, head; a cell has all of an axis that is not named. NaN where a site lacks a head.
              With words both prompts need the same words at the same tokens, apart from those that differ
    score     of a picture; by default the share of the pixels' difference that is made up: 0 corrupt, 1 clean
    sites     globs of attention sites; by default all of the image to the text
    batch     runs in one batch, besides the clean and the corrupt one
    controls  random sets of parts, each as large as the median cell
    progress  is called with the runs that are done and their number
    options   of the sampling method: steps, guidance, size, …

    `attrs` has the scores `clean`, `corrupt`, `everything`, `nothing` and `random` (a list). mini-unet begins the runs of a
    later step at that step. Raises CannotExplain, UnknownSite, UnknownFamily.
    """
    import xarray as xr

    if not over or len(set(over)) < len(over) or set(over) - set(AXES):
        raise CannotExplain(f"over must be some of {', '.join(AXES)}, each once; {tuple(over)!r} came")
    if clean == corrupt:
        raise CannotExplain("clean and corrupt are the same prompt; expected two that differ in what is looked for")
    model = unwrap(model)
    family = family_of(model)
    selected = {name: site for name, site in family.select_sites(model, sites).items() if site.kind != "encoder"}
    family.check(model, selected)
    patcher = _Patcher({name: site.module for name, site in selected.items()})
    starts: list[Tensor] = []  # latents of the clean and the corrupt row before each step
    with subscribe(model, patcher):
        with patch_method(getattr(model, family.scheduler), "step", lambda step: _note_latents(step, starts)):
            _draw(model, [clean, corrupt], seed, options)
        words = [""]
        if "word" in over:
            words, patcher.columns = _word_columns(*patcher.prompts)
        sizes = (len(patcher.names), len(words), patcher.count, max(patcher.heads.values()))
        there = np.arange(sizes[3]) < np.array([patcher.heads[name] for name in patcher.names])[:, None]
        there = np.broadcast_to(there[:, None, None], sizes)
        cells = list(_cells(over, there, begin_late=isinstance(model, MiniUNet)))
        median = int(np.median([row.parts.sum() for row in cells if row.parts.any()]))
        rows = [_Row(there, 0), _Row(there, 1), *_random_rows(there, median, controls, seed), *cells]
        values = np.full(len(rows), np.nan)
        ends: dict[str, float] = {}
        for indices in _batches(rows, batch):
            begin = rows[indices[0]].begin
            patcher.rows = [_Row(there & False, 0, begin)] * 2 + [rows[index] for index in indices]
            prompts = [clean, corrupt, *[corrupt] * len(indices)]
            if isinstance(model, MiniUNet) and rows[indices[-1]].begin:
                first, second, *pictures = _draw_late(model, prompts, patcher.rows, starts, seed, options)
            else:
                first, second, *pictures = _draw(model, prompts, seed, options)
            measure = score or _share_made_up(first, second)
            values[indices] = [measure(picture) for picture in pictures]
            ends = ends or {"clean": measure(first), "corrupt": measure(second)}
            progress(int(np.isfinite(values).sum()), sum(bool(row.parts.any()) for row in rows))
    names = {"site": patcher.names, "word": words, "step": range(sizes[2]), "head": range(sizes[3])}
    facts = {"everything": values[0], "nothing": values[1], "random": values[2 : 2 + controls].tolist()}
    shape = [sizes[AXES.index(axis)] for axis in over]
    attributes = {**ends, **facts, "clean_prompt": clean, "corrupt_prompt": corrupt, "seed": seed}
    coordinates = {axis: list(names[axis]) for axis in over}
    return xr.DataArray(values[2 + controls :].reshape(shape), coordinates, tuple(over), "score", attributes)


def _cells(over: Sequence[str], there: Parts, begin_late: bool) -> Iterator[_Row]:
    """One row for each cell, in the order of the result."""
    for place in product(*(range(there.shape[AXES.index(axis)]) for axis in over)):
        index = tuple(place[over.index(axis)] if axis in over else slice(None) for axis in AXES)
        parts = np.zeros_like(there)
        parts[index] = there[index]
        yield _Row(parts, 0, place[over.index("step")] if begin_late and "step" in over else 0)


def _random_rows(there: Parts, size: int, count: int, seed: int) -> Iterator[_Row]:
    generator, every = np.random.default_rng(seed), np.flatnonzero(there)
    for _ in range(count):
        parts = np.zeros(there.shape, bool)
        parts.flat[generator.choice(every, size, replace=False)] = True
        yield _Row(parts, 0)


def _batches(rows: Sequence[_Row], size: int) -> Iterator[list[int]]:
    """Indices of the rows that change something, those that begin early first."""
    indices = sorted((i for i, row in enumerate(rows) if row.parts.any()), key=lambda i: rows[i].begin)
    yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _word_columns(clean: EncodedPrompt, corrupt: EncodedPrompt) -> tuple[list[str], list[list[int]]]:
    """The labels of the words, 猫/狗 where they differ, and the text columns of each; the last has all other columns."""
    labels, columns = [], []
    for prompt in (clean, corrupt):
        assert prompt.prompt is not None, "the prompts were given as texts"
        words = segment(prompt.prompt)
        labels.append(word_labels(words, words))
        of_words = []
        for word in words:
            shares = zip(prompt.tokens, token_shares(prompt.tokens, word.span))
            of_words.append([token.column for token, share in shares if share and token.column is not None])
        every = {column for token in prompt.tokens if (column := token.column) is not None}
        columns.append([*of_words, sorted(every - {column for word in of_words for column in word})])
    if columns[0] != columns[1]:
        raise CannotExplain(
            f"the words of {clean.prompt!r:.40} and {corrupt.prompt!r:.40} have not the same tokens: choose words of as many "
            "tokens, or leave word out of over"
        )
    return [a if a == b else f"{a}/{b}" for a, b in zip(*labels)] + [OTHER], columns[0]


def _share_made_up(clean: Image.Image, corrupt: Image.Image) -> PictureScore:
    """1 minus the mean absolute difference from the clean picture, in shares of that of the corrupt one."""
    target = np.asarray(clean, dtype=np.float64)
    whole = np.abs(np.asarray(corrupt, dtype=np.float64) - target).mean()

    def score(picture: Image.Image) -> float:
        return float(1 - np.abs(np.asarray(picture, dtype=np.float64) - target).mean() / whole) if whole else np.nan

    return score


def _draw(model: Model, prompts: Sequence[str], seed: int, options: Mapping[str, object]) -> list[Image.Image]:
    """A picture of each prompt, all from the same noise, in one batch."""
    if isinstance(model, MiniUNet):
        noise: dict[str, object] = {"seed": seed}
    else:
        noise = {"generator": [torch.Generator().manual_seed(seed) for _ in prompts]}
    family = family_of(model)
    images = family.images(getattr(model, family.sample)(list(prompts), **{**options, **noise}))
    if images is None:
        raise CannotExplain("a sweep scores pictures, but the model returned latents: leave output_type out")
    return images


class _Stepped(Exception):
    """Ends a run after a step, with the latents that it made."""

    def __init__(self, latents: Tensor):
        self.latents = latents


def _draw_late(
    model: MiniUNet,
    prompts: Sequence[str],
    rows: Sequence[_Row],
    starts: Sequence[Tensor],
    seed: int,
    options: Mapping[str, object],
) -> list[Image.Image]:
    """`_draw` in which a row joins the batch at the step where it begins; before it, it is the corrupt run."""

    def stop(index: int, latents: Tensor) -> None:
        raise _Stepped(latents)

    latents = starts[rows[0].begin]
    for step in range(rows[0].begin, len(starts)):
        count = sum(row.begin <= step for row in rows)
        latents = torch.cat([latents, starts[step][1:].expand(count - len(latents), -1, -1, -1)])
        given: dict[str, Any] = {**options, "latents": latents, "first_step": step, "seed": seed, "callback": stop}
        try:
            model.sample(list(prompts[:count]), **given)
        except _Stepped as stepped:
            latents = stepped.latents
    return to_images(model.decode(latents))


def _note_latents(step: Callable, starts: list[Tensor]) -> Callable:
    """`step` of a scheduler of ours, which also notes the latents before it."""

    def wrapper(*values: Any, **named: Any) -> object:
        if len(values) > 1:
            starts.append(values[1])
        return step(*values, **named)

    return wrapper
