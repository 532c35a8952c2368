"""The base class of everything that follows a session: the recorder, the editor, and subscribers of your own.

class Norms(Subscriber):
    def on_step(self, run, step):
        print(run.index, step.latents.norm().item())

with subscribe(model, Norms()):
    model.sample("左边是猫", steps=20)
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from toushi.hooks.attention import AttentionHook, Call
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    Family,
    Images,
    Model,
    PromptTokens,
    SchedulerStep,
)
from toushi.probe.session.row_matching import PromptKey


@dataclass
class Run:
    """One sampling run. A single evaluation of the denoiser by `evaluate` counts as a run of one step (`single`)."""

    count: int  # number of steps
    times: Callable[[int], list[float] | None]  # picture of the batch -> one time for each step, and one for the end
    arguments: Arguments  # of the sampling call
    single: bool = False
    nested: bool = False  # an evaluation between two steps of another run; it is no part of that run
    index: int = 0  # of the current step
    denoiser_ran: bool = False  # in the current step
    evaluations: Counter[PromptKey] = field(default_factory=Counter)  # of each prompt in the current step
    thread: int = field(default_factory=threading.get_ident)


class Evaluation:
    """One evaluation of the denoiser, before it computes. Rows are matched to prompts when they are first read."""

    def __init__(self, session: "Session", run: Run, arguments: Arguments):
        self.session, self.run, self.arguments = session, run, arguments

    @cached_property
    def inputs(self) -> DenoiserInputs:
        """The denoiser's inputs, as the family reads them."""
        return self.session.family.read_inputs(self.session.model, self.arguments)

    @cached_property
    def rows(self) -> list[PromptKey]:
        """Branch and picture of each row of the batch. Raises BranchMismatch if a row matches no prompt."""
        rows = self.session.match_rows(self.inputs, self.run)
        self.run.evaluations.update(rows)
        return rows


class EncoderRow(NamedTuple):
    """One row of a batch of the recorded text encoder."""

    row: int
    branch: str
    prompt: PromptTokens
    start: int  # position at which the prompt begins, behind padding on the left


class EncoderBatch(NamedTuple):
    """The batch that the recorded text encoder computes."""

    size: int  # number of rows
    rows: list[EncoderRow]  # those whose prompt is known


class Session(Protocol):
    """What a subscriber may read of its `SamplingSession`."""

    model: Model
    family: Family
    prompts: dict[str, list[EncodedPrompt]]  # branch -> one for each picture
    encoder_batch: EncoderBatch | None  # while the recorded text encoder computes
    arguments: Arguments | None  # of the sampling call that is running
    run: Run | None
    evaluation: Evaluation | None  # the latest one of the denoiser

    def match_rows(self, inputs: DenoiserInputs, run: Run) -> list[PromptKey]:
        """Branch and picture of each row."""
        ...

    def describe(self) -> dict[str, object]:
        """Manifest fields of all subscribers."""
        ...


class Subscriber:
    """Override the methods that you need. An exception in any of them ends the run."""

    sites: str | Iterable[str] | None = None
    """Globs of the attention sites whose calls `on_attention` gets. None by default."""
    edits_encoder = False
    """Whether it changes the text encoder. If so, `session.encoder_batch` is known while the encoder computes."""

    session: Session  # set when the subscription begins
    attention_hook: AttentionHook

    def attention_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose attention calls `on_attention` and `on_attention_edit` get, by site."""
        if self.sites is None:
            return {}
        selected = self.session.family.select_sites(self.session.model, self.sites)
        return {name: site.module for name, site in selected.items()}

    def state_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose outputs `on_state_edit` gets, by name."""
        return {}

    def encode_prompt_context(self) -> AbstractContextManager:
        """A context that the session enters for the time of each call that encodes prompts."""
        return nullcontext()

    # --- events, in the order in which they happen

    def on_sample(self, arguments: Arguments) -> None:
        """The sampling method was called with these arguments, defaults included."""

    def on_prompts(self, prompts: Mapping[str, list[EncodedPrompt]], call: EncodePromptCall) -> None:
        """Prompts were encoded: for each branch one for each picture. `session.prompts` also has earlier calls' prompts."""

    def on_run_begin(self, run: Run) -> None:
        """The scheduler has its timesteps, or `evaluate` was called (`run.single`; inside another run `run.nested`)."""

    def on_start_index(self, run: Run, index: int) -> None:
        """The current step is not `run.index`, as expected, but `index`. Image-to-image runs begin at a later step."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """The denoiser is about to compute."""

    def on_attention(self, call: Call) -> None:
        """An attention call at one of `sites`, as the model computed it, before any edit."""

    on_attention_edit: Callable[[Call, Tensor, Tensor], Tensor] | None = None
    """(call, value, output) -> the output that replaces it."""
    on_state_edit: Callable[[str, Tensor], Tensor | None] | None = None
    """(name, output of a module of `state_modules`) -> what replaces it, or None. Others read the replaced state."""

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        """The scheduler has made the step `run.index`."""

    def on_run_end(self, run: Run, images: Images, result: object, error: BaseException | None) -> None:
        """The run is over. `images` and `result` come from the sampling method; they are None if `error` ended it."""

    def describe(self) -> dict[str, object]:
        """Fields, as JSON, for the manifest of every trace that is recorded during the subscription."""
        return {}
