"""What a session tells, and to whom: the base class of recorder, editor and of anything that a user writes.

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
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from toushi.hooks.attention import AttentionHook, Call
from toushi.probe.pipelines.family import DenoiserInputs, EncodedPrompt, EncodePromptCall, PromptTokens, SchedulerStep
from toushi.probe.session.row_matching import Place

if TYPE_CHECKING:
    from toushi.probe.session.sampling_session import SamplingSession


@dataclass
class Run:
    """One sampling run, or one evaluation of the denoiser by `evaluate` (`single`), which counts as a run of one step."""

    count: int  # steps
    times: Callable[[int], list[float] | None]  # of a picture of the batch: a time for each step, and one for the end
    arguments: Mapping[str, Any]  # of the sampling call
    single: bool = False
    nested: bool = False  # an evaluation between two steps of another run, which is no part of that run
    index: int = 0  # of the step that is being made
    denoiser_ran: bool = False  # within this step
    evaluations: Counter[Place] = field(default_factory=Counter)  # of each row within this step
    thread: int = field(default_factory=threading.get_ident)


class Evaluation:
    """One evaluation of the denoiser, which is about to run. Rows are matched to prompts when they are first asked for."""

    def __init__(self, session: "SamplingSession", run: Run, values: Mapping[str, Any]):
        self.session, self.run, self.values = session, run, values

    @cached_property
    def inputs(self) -> DenoiserInputs:
        return self.session.family.read_inputs(self.session.model, self.values)

    @cached_property
    def rows(self) -> list[Place]:
        """Branch and picture of each row of the batch."""
        rows = self.session.match(self.inputs, self.run)
        self.run.evaluations.update(rows)
        return rows


class EncoderRow(NamedTuple):
    """One row of a run of the recorded text encoder: its branch and tokens, and where they begin after left padding."""

    row: int
    branch: str
    prompt: PromptTokens
    start: int


class Subscriber:
    """Override what you need. Whatever a method raises ends the run."""

    sites: str | Iterable[str] | None = None
    """Globs of attention sites whose calls `on_attention` gets; none by default."""
    edits_encoder = False
    """Whether it changes the text encoder, so that `session.encoder_rows` is needed while the encoder runs."""

    session: "SamplingSession"  # set when it is attached
    attention_hook: AttentionHook

    def attention_modules(self) -> Mapping[str, nn.Module]:
        if self.sites is None:
            return {}
        selected = self.session.family.select_sites(self.session.model, self.sites)
        return {name: site.module for name, site in selected.items()}

    def state_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose outputs `on_state_edit` gets."""
        return {}

    def around_encode_prompt(self) -> AbstractContextManager:
        """A context that is open while prompts are encoded."""
        return nullcontext()

    # --- events, in the order in which they happen

    def on_sample(self, arguments: Mapping[str, Any]) -> None:
        """The sampling method was called with these arguments, defaults included."""

    def on_prompts(self, prompts: Mapping[str, list[EncodedPrompt]], call: EncodePromptCall) -> None:
        """Prompts were encoded: of each branch one for each picture. `session.prompts` has those of earlier calls, too."""

    def on_run_begin(self, run: Run) -> None:
        """The scheduler has its timesteps, or `evaluate` was called (`run.single`; inside another run also `run.nested`)."""

    def on_start_index(self, run: Run, index: int) -> None:
        """The step that is being made is not the expected one, `run.index`, but this: a run may begin in the middle."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """The denoiser is about to run."""

    def on_attention(self, call: Call) -> None:
        """An attention call at one of `sites`, as it was computed, before any edit."""

    on_attention_edit: Callable[[Call, Tensor, Tensor], Tensor] | None = None
    """(call, value, output) -> the output that replaces it."""
    on_state_edit: Callable[[str, Tensor], Tensor | None] | None = None
    """(name, output of a module of `state_modules`) -> what replaces it, or None. Runs before anybody reads states."""

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        """The scheduler has made the step `run.index`."""

    def on_run_end(self, run: Run, images: list | None, result: Any, error: BaseException | None) -> None:
        """The run is over. `images` (PIL) and `result` are what the sampling method returned, if it came that far."""

    def describe(self) -> dict[str, Any]:
        """Fields for the manifest of every trace that is recorded meanwhile, as JSON."""
        return {}
