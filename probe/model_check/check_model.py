"""`check_model(model, draw, folder)`: whether recording is exact for a model on this machine, law by law.

Nothing of what is checked is taken from the recorder: pictures are drawn without it, queries and keys are captured by
hooks of their own, and a prompt, a cell of the latents and a text state are changed to see what changes with them.
"""

import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toushi.hooks.torch_private import forward_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.model_check.map_comparison import MapComparison, RowKey, largest_sum_error, texts_of_prompts
from toushi.probe.model_check.observation import FirstStep, observe_first_site, observe_first_step
from toushi.probe.pipelines.family import DenoiserInputs, Family, Model, named_modules
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.session.sampling_session import session_of
from toushi.probe.text.alignment import Token
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace

PROMPT = "a red moon on the left, 一只猫 on the right"
WORD = "moon"  # is changed to the first of OTHERS that has as many tokens
OTHERS = ("star", "cat", "red", "sun")
# Of a probability. Scores of 100 are rounded to 1e-5 in fp32; a wrong column, row or head is off by 1e-2 and more.
TOLERANCE = {torch.float32: 5e-5}
HALF_TOLERANCE = 5e-4  # with 16-bit numbers
SUM_TOLERANCE = 1e-3


class Draws(Protocol):
    def __call__(self, prompts: list[str], negatives: list[str] | None) -> Sequence[object]:
        """One picture for each prompt, from one seed; in two steps."""
        ...


class Law(NamedTuple):
    """One law: whether it holds (None: it cannot be tried on this model), and what was measured."""

    name: str
    holds: bool | None
    detail: str


@dataclass
class CheckedModel:
    """What `check_model` learned."""

    laws: list[Law]
    traces: list[Trace]
    difference: float  # the largest one between a recorded probability and the explicit softmax
    seconds: dict[str, float]

    @property
    def breaches(self) -> list[Law]:
        return [law for law in self.laws if law.holds is False]


DRAWINGS = 10  # of one prompt; all but four are stopped in their first step


def check_model(
    model: Model,
    draw: Draws,
    folder: Path,
    prompts: Sequence[str] = (PROMPT,),
    negatives: Sequence[str] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> CheckedModel:
    """The laws, tried on two steps of `prompts`, each of which contains WORD. The traces are written below `folder`.

    `tick` is called after each drawing. Raises ToushiError if the model cannot be recorded.
    """
    family, seconds = family_of(model), {}
    before = traces_of_hooks(model, family)

    def timed(name: str, prompts: Sequence[str] = prompts, negatives: Sequence[str] | None = negatives):
        begun = time.perf_counter()
        try:
            pictures = draw(list(prompts), None if negatives is None else list(negatives))
        finally:  # most drawings are stopped
            seconds[name] = round(time.perf_counter() - begun, 3)
            tick()
        return [np.asarray(picture) for picture in pictures]

    plain = timed("first")  # kernels are chosen and memory is reserved
    plain_again = timed("bare")
    with record(model, folder / "run", keep="heads", dtype="float32", overwrite=True) as recording:
        recorded = timed("recorded")
    traces = [open_trace(path) for path in recording.traces]
    if not any(trace.steps for trace in traces):
        raise ToushiError("the two steps left no recorded step: the check needs a pipeline that takes all its steps")
    base = observe_first_step(model, family, lambda: timed("first step"))
    changed = dict(changed_prompts(model, family, timed, prompts, negatives, base))
    texts = texts_of_prompts(base, changed, len(prompts))
    comparison = MapComparison(model, family, traces, texts)
    with comparison.follow_drawing():
        timed("compared")
    cell = changed_cell_law(model, family, lambda: timed("cell"))
    column = changed_state_law(model, family, lambda: timed("state"))
    laws = [
        picture_law(plain, plain_again, recorded),
        maps_law(comparison, traces[0]),
        sums_law(traces),
        changed_word_law(traces, prompts, base, changed),
        cell,
        column,
        labels_law(model, traces, prompts),
        hooks_law(before, traces_of_hooks(model, family)),
    ]
    return CheckedModel(laws, traces, comparison.worst, {name: seconds[name] for name in ("bare", "recorded")})


def changed_prompts(
    model: Model,
    family: Family,
    draw: Callable[..., object],
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    base: FirstStep,
) -> Iterator[tuple[RowKey, FirstStep]]:
    """Branch and picture of each prompt, and the first step with this prompt alone changed."""
    for index in range(len(prompts)):
        for other in OTHERS:
            texts = [*prompts[:index], prompts[index].replace(WORD, other, 1), *prompts[index + 1 :]]
            step = observe_first_step(model, family, lambda texts=texts: draw("changed", texts, negatives))
            if same_lengths(base, step):
                break
        yield ("cond", index), step
    for index in range(len(negatives or ())):
        assert negatives is not None
        texts = [*negatives[:index], negatives[index] + " " + WORD, *negatives[index + 1 :]]
        yield (
            ("uncond", index),
            observe_first_step(model, family, lambda texts=texts: draw("changed", prompts, texts)),
        )


def same_lengths(first: FirstStep, second: FirstStep) -> bool:
    """Whether the texts of both drawings are equally long: without what the mask excludes, and without what is repeated
    at the end, since some encoders get padding and no mask."""

    def lengths(step: FirstStep) -> list[tuple[int, int]]:
        return [(row.real, text_end(row.ids)) for rows in step.ids.values() for row in rows]

    return lengths(first) == lengths(second)


def text_end(ids: list[int]) -> int:
    """Index behind the last id that differs from the end's."""
    return next((i for i in range(len(ids), 0, -1) if ids[i - 1] != ids[-1]), 0)


# --- the laws ---


def picture_law(plain: list[np.ndarray], again: list[np.ndarray], recorded: list[np.ndarray]) -> Law:
    name = "the recorded picture is the bare one, bit for bit"
    if not all(map(np.array_equal, plain, again)):
        return Law(
            name, False, "two bare pictures differ already: a kernel or the pipeline itself is not deterministic"
        )
    differing = [i for i, pair in enumerate(zip(again, recorded)) if not np.array_equal(*pair)]
    return Law(name, not differing, f"picture {differing[0]} differs" if differing else f"{len(plain)} compared")


def maps_law(comparison: MapComparison, trace: Trace) -> Law:
    dtype = getattr(torch, str(trace.manifest.dtype), torch.float32)
    tolerance, count = TOLERANCE.get(dtype, HALF_TOLERANCE), comparison.expected_count()
    holds = comparison.worst <= tolerance and comparison.compared == count
    numbers = f"largest difference {comparison.worst:.1e} (at most {tolerance:.0e}) at {comparison.where}"
    return Law("maps equal an explicit softmax", holds, f"{comparison.compared} of {count} maps; {numbers}")


def sums_law(traces: Sequence[Trace]) -> Law:
    worst = max(map(largest_sum_error, traces))
    return Law("text and rest sum to 1", worst <= SUM_TOLERANCE, f"off by {worst:.1e} at most")


def changed_word_law(
    traces: Sequence[Trace], prompts: Sequence[str], base: FirstStep, changed: dict[RowKey, FirstStep]
) -> Law:
    """Among the ids that each encoder gets, those at the positions of the changed word's columns change, and no other."""
    name, seen = "a changed word changes the ids at its own columns alone", 0
    for index, prompt in enumerate(prompts):
        start = prompt.index(WORD)
        if not same_lengths(base, changed["cond", index]):
            return Law(name, None, f"no word of {', '.join(OTHERS)} has as many tokens as {WORD!r}")
        for encoder, rows in base.ids.items():
            others = changed["cond", index].ids.get(encoder, [])
            differing = [
                {i - row.padding for i, pair in enumerate(zip(row.ids, other.ids)) if pair[0] != pair[1]}
                for row, other in zip(rows, others)
                if row.ids != other.ids
            ]
            labelled = {
                token.position
                for token in traces[index].tokens()
                if encoder in token.encoders and token.column is not None and token.span is not None
                if token.span[0] < start + len(WORD) and start < token.span[1]
            }
            for positions in differing:
                seen += 1
                if positions != labelled:
                    found = f"ids changed at {sorted(positions)}, the columns of {WORD!r} have {sorted(labelled)}"
                    return Law(name, False, f"{encoder}: {found}")
    return Law(name, seen > 0, f"{WORD!r} at {seen} encoder inputs")


def changed_cell_law(model: Model, family: Family, draw: Callable[[], object]) -> Law:
    """A change of the latents at one cell moves the query of that cell most, at the first site."""
    name = "a changed cell moves its own query most"
    if family.denoiser == "unet":
        return Law(name, None, "a U-Net mixes the cells before its first attention")
    (before, _), place = observe_first_site(model, family, draw), []

    def change(arguments: dict[str, Any], inputs: DenoiserInputs) -> None:
        rows, columns = inputs.grid
        y, x = rows // 3, columns // 2
        place.append((0 if inputs.joint is None else inputs.joint[0].image) + y * columns + x)
        change_cell(arguments[family.denoiser_inputs[0]], inputs.grid, y, x)

    after, _ = observe_first_site(model, family, draw, change)
    return moved_law(name, before.query[0], after.query[0], place[0], "query")


def changed_state_law(model: Model, family: Family, draw: Callable[[], object]) -> Law:
    """A change of one text state, as the denoiser gets it, moves the key of its column most, at the first site."""
    name = "a changed text state moves its own key most"
    (before, _), place = observe_first_site(model, family, draw), []

    def change(arguments: dict[str, Any], inputs: DenoiserInputs) -> None:
        text = inputs.texts()[0]
        column = len(text) // 2
        place.append((0 if inputs.joint is None else inputs.joint[0].text) + column)
        text[column].neg_().add_(torch.linspace(-1, 1, text.shape[1]).to(text))

    after, _ = observe_first_site(model, family, draw, change)
    if torch.equal(before.key, after.key):
        return Law(name, None, "this denoiser's text cannot be changed in place")
    return moved_law(name, before.key[0], after.key[0], place[0], "key")


def moved_law(name: str, before: Tensor, after: Tensor, place: int, kind: str) -> Law:
    """Of q or k [head, position, d] the position that moved most is `place`."""
    moved = (after.double() - before.double()).square().sum((0, 2))
    most = int(moved.argmax())
    return Law(name, most == place, f"{kind} {place} was to move most, {kind} {most} did")


def change_cell(latents: Tensor | list, grid: tuple[int, int], y: int, x: int) -> None:
    """Changes all rows of latents [row, channel, …, y, x], packed [row, cell, feature], or a list of such, in place.

    Of a list of pictures the last one is changed, which is the one that is made.
    """
    if isinstance(latents, list):
        for row in latents:
            change_cell((row[-1] if isinstance(row, list) else row)[None], grid, y, x)
    elif latents.dim() == 3:
        latents[:, y * grid[1] + x] *= -3
    else:
        height, width = latents.shape[-2] // grid[0], latents.shape[-1] // grid[1]
        latents[..., y * height : (y + 1) * height, x * width : (x + 1) * width] *= -3


def labels_law(model: Model, traces: Sequence[Trace], prompts: Sequence[str]) -> Law:
    """The ids between two unknown ones spell the characters of their spans, and every character has a token."""
    name, encoders = "labels spell the prompt", set()
    for trace, prompt in zip(traces, prompts):
        tokens = [token for token in trace.tokens() if token.span is not None and token.id is not None]
        for encoder in sorted({encoder for token in tokens for encoder in token.encoders}):
            is_numbered = encoder.startswith("text_encoder")  # text_encoder_2 has tokenizer_2
            tokenizer = getattr(model, encoder.replace("text_encoder", "tokenizer") if is_numbered else "tokenizer")
            own = sorted((t for t in tokens if encoder in t.encoders), key=lambda token: token.position)
            encoders.add(encoder)
            if problem := spelling_problem(own, prompt, tokenizer):
                return Law(name, False, f"{encoder}: {problem}")
    return Law(name, bool(encoders), ", ".join(sorted(encoders)) or "no token has a span of the prompt")


def spelling_problem(tokens: Sequence[Token], prompt: str, tokenizer: Any) -> str | None:
    """What the tokens of one encoder do not spell; None if they spell the prompt."""
    covered = {index for token in tokens for index in range(*(token.span or (0, 0)))}
    if lost := [c for index, c in enumerate(prompt) if index not in covered and not c.isspace()]:
        return f"no column for {''.join(lost)!r}"
    unknown = getattr(tokenizer, "unk_token_id", None)
    unknown = None if unknown == getattr(tokenizer, "eos_token_id", None) else unknown
    run: list[Token] = []
    for token in [*tokens, None]:
        if token is not None and token.id != unknown:
            run.append(token)
            continue
        if run:
            start, end = min((t.span or (0, 0))[0] for t in run), max((t.span or (0, 0))[1] for t in run)
            spelled = tokenizer.decode([t.id for t in run])
            if plain(spelled) != plain(prompt[start:end]):
                return f"the ids of {prompt[start:end]!r} spell {spelled!r}"
        run = []
    return None


def plain(text: str) -> str:
    """The text without white space, in one case, compatible characters made equal."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def traces_of_hooks(model: Model, family: Family) -> dict[str, object]:
    """Everything that a recording changes while it lasts."""
    hooks = {f"{name}: {hook}" for name, module in named_modules(model) for hook in forward_hooks(module)}
    scheduler = getattr(model, family.scheduler)
    methods = {name for part in (model, scheduler) for name, value in vars(part).items() if callable(value)}
    return {
        "hooks": {hook for hook in hooks if "toushi" in hook},
        "methods": methods - {name for name, _ in getattr(model, "named_children", list)()},
        "attention": F.scaled_dot_product_attention,
        "class": type(model),
        "session": session_of(model),
    }


def hooks_law(before: dict[str, object], after: dict[str, object]) -> Law:
    left = [name for name, value in before.items() if after[name] != value]
    return Law("hooks are gone", not left, f"left: {', '.join(left)}" if left else "nothing is left")
