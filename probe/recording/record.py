"""`with record(model, folder):` writes a trace of every picture that the model samples inside."""

import threading
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toushi.hooks.attention import Call
from toushi.hooks.hook_error import HookError
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall, SchedulerStep, unwrapped
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.encoder_capture import EncoderCapture
from toushi.probe.recording.policy import DISK, Policy
from toushi.probe.recording.provenance import git_commit
from toushi.probe.recording.run_recorder import RunRecorder
from toushi.probe.recording.safety_checker import verdicts
from toushi.probe.recording.trace_folders import TraceFolders
from toushi.probe.recording.unrecordable import Unrecordable, described
from toushi.probe.session.sampling_session import session_of, subscribe
from toushi.probe.session.subscriber import Evaluation, Run, Subscriber
from toushi.probe.text.alignment import Word
from toushi.probe.trace.output_dir import prepare_output_dir
from toushi.probe.trace.safetensors_reader import StepStore


class HiddenStatesOnly(UserWarning):
    """The text encoder attends where it cannot be read. Its kernel is not changed for that."""


def record(
    model,
    folder: str | Path,
    keep: str | None = None,
    words: str | Iterable | None = None,
    sites: str | Iterable[str] | None = None,
    steps: int | slice | Iterable[int] | None = None,
    branches: str | Iterable[str] | None = None,
    overwrite: bool = False,
    *,
    dtype: str = "float16",
    budget: int = DISK,
    pads: bool = False,
) -> "Recording":
    """A context manager: what `model` samples inside is recorded in `folder`.

    One picture makes the folder a trace; a batch or several runs make it a collection of 000, 001, ….

    keep      "heads": every head at every step; "mean": the mean over heads at every step; "sum": that, summed
              over the steps in one file; by default "heads" where that fits the budget, else "mean" with a warning
    words     words of the prompt ("猫", "猫#2", a Word, a span): only their tokens' columns of `cond` are kept
    sites     globs of attention modules; by default all of the text encoder's and all image-to-text ones. Image
              self-attention, which is large, only where it is named
    steps     index, indices or slice of the steps to keep
    branches  "cond", "uncond", or what the model's family declares; by default all
    dtype     of the stored maps, float16 or float32 (sums are always float32)
    budget    bytes on disk; a run that would need more is refused before anything is written
    pads      whether every column of padding is kept by itself; by default only their sum is, as one column

    The pictures are, bit for bit, those that are sampled without it. Raises ToushiError types: a site that matches
    nothing, an attention that cannot be read, a folder that holds something else.
    """
    steps = steps if steps is None or isinstance(steps, int | slice) else tuple(steps)
    policy = Policy(keep, _listed(words), steps, _listed(branches), dtype, budget, pads)
    return Recording(model, Path(folder), policy, sites, overwrite)


class Recording(Subscriber):
    """Made by `record`. `traces`: the folders of the traces written so far."""

    def __init__(
        self,
        model,
        folder: Path,
        policy: Policy,
        sites: str | Iterable[str] | None,
        overwrite: bool = False,
        resumed: StepStore | None = None,
    ):
        self.model, self.policy, self.overwrite = unwrapped(model), policy, overwrite
        self.resumed = (
            resumed  # files of the older trace that the one run of this recording continues, see probe.resume
        )
        self.family = family_of(self.model)
        policy.check_branches(self.family)
        self.selected = self.family.select_sites(self.model, sites)
        self.folders = TraceFolders(folder)
        self.recorder: RunRecorder | None = None
        self.capture: EncoderCapture | None = None  # while prompts are encoded
        self.encoder_arrays: dict[str, list[dict[str, np.ndarray]]] = {}  # of each branch and picture
        self.subscription = ExitStack()
        layers = f"{self.family.layers}."
        encoder_sites = [name for name, site in self.selected.items() if site.kind == "encoder"]
        self.encoder_layers = [int(name.removeprefix(layers).split(".")[0]) for name in encoder_sites]

    @property
    def traces(self) -> list[Path]:
        return self.folders.paths

    def __enter__(self) -> "Recording":
        session = session_of(self.model)
        if other := next((s for s in session.subscribers if isinstance(s, Recording)), None) if session else None:
            raise ToushiError(
                f"this model is being recorded in {other.folders.root} already: "
                "end that recording first, or record once and read the trace twice"
            )
        self.family.check(self.model, self.selected)
        if self.encoder_layers and (why := self.family.hidden_attention(self.model)) is not None:
            warnings.warn(HiddenStatesOnly(why), stacklevel=2)
        if self.resumed is None:
            prepare_output_dir(self.folders.root, self.overwrite)
        threading.Thread(target=git_commit, daemon=True).start()
        self.subscription.enter_context(subscribe(self.model, self))
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self._close(error=error)
        finally:
            self.subscription.close()
        if isinstance(error, HookError):
            raise Unrecordable(str(error)) from error
        if error is None and not self.traces:
            raise ToushiError(f"nothing was sampled inside the recording, so {self.folders.root} holds no trace")

    # --- events of the session

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return {name: site.module for name, site in self.selected.items() if site.kind != "encoder"}

    def around_encode_prompt(self) -> AbstractContextManager:
        # A model that keeps its texts runs the encoder anew while the encoder has hooks.
        self.capture = EncoderCapture(self.family, self.model, self.encoder_layers)
        return self.capture

    def on_sample(self, arguments: Mapping[str, Any]) -> None:
        self.encoder_arrays = {}

    def on_prompts(self, prompts: Mapping[str, list[EncodedPrompt]], call: EncodePromptCall) -> None:
        capture, self.capture = self.capture, None  # it holds the states of every layer
        if capture is None or (self.session.run is not None and self.session.run.nested):
            return
        if unread := capture.unread():
            raise Unrecordable(described(unread))
        if self.session.arguments is None:
            self.encoder_arrays = {}
        for branch, encoded in prompts.items():
            arrays = [capture.of(prompt) for prompt in encoded]
            # A later call, for another encoder, does not run this one again.
            if any(arrays) or branch not in self.encoder_arrays:
                self.encoder_arrays[branch] = arrays

    def on_run_begin(self, run: Run) -> None:
        if run.nested:
            return
        metadata = self.family.metadata(self.model, run.arguments)
        if run.arguments.get("latents") is not None and self.resumed is None:
            metadata["seed"] = None  # the run begins from these latents, not from the seed's
        self.attention_hook.reset_counts()
        self.recorder = RunRecorder(self, run, metadata)

    def on_start_index(self, run: Run, index: int) -> None:
        if self._is_recorded(run):
            self.recorder.start_at(index)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        if self._is_recorded(evaluation.run):
            self.recorder.begin_evaluation(evaluation)

    def on_attention(self, call: Call) -> None:
        if self.session.evaluation is not None and self._is_recorded(self.session.evaluation.run):
            self.recorder.take(call)

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        if self._is_recorded(run):
            self.recorder.finish_step(step, self.attention_hook.unread_modules())

    def on_run_end(self, run: Run, images: list | None, result: Any, error: BaseException | None) -> None:
        if self._is_recorded(run):
            self._close(images, None if result is None else verdicts(self.model, result), error)

    def _is_recorded(self, run: Run) -> bool:
        return self.recorder is not None and self.recorder.run is run

    def _close(
        self, images: list | None = None, safety: list[str] | None = None, error: BaseException | None = None
    ) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.end(images, safety) if error is None else recorder.abort(error)


def _listed(values) -> tuple | None:
    if values is None:
        return None
    # A span is a tuple too, and one word may be given as it is.
    single = isinstance(values, str | Word) or (isinstance(values, tuple) and all(isinstance(v, int) for v in values))
    return (values,) if single and values != () else tuple(values)
