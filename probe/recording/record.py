"""`with record(model, folder):` writes a trace of every picture that the model samples inside."""

import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import nn

from toushi.hooks.attention import Call
from toushi.hooks.hook_error import HookError
from toushi.hooks.torch_private import is_compiled
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.attention_processors import native_attention
from toushi.probe.pipelines.component_facts import describe_components
from toushi.probe.pipelines.family import (
    Arguments,
    EncodedPrompt,
    EncodePromptCall,
    Images,
    Model,
    SchedulerStep,
    unwrap,
)
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.call_facts import describe_call
from toushi.probe.recording.concepts import read_concepts
from toushi.probe.recording.encoder_capture import EncoderCapture
from toushi.probe.recording.policy import DEFAULT_BUDGET, Policy
from toushi.probe.recording.provenance import git_commit, not_reproducible_reason
from toushi.probe.recording.recording_plan import RecordingPlan
from toushi.probe.recording.run_recorder import RunRecorder
from toushi.probe.recording.safety_checker import safety_verdicts
from toushi.probe.recording.trace_folders import TraceFolders
from toushi.probe.recording.unrecordable import Unrecordable, unread_message
from toushi.probe.session.sampling_session import session_of, subscribe
from toushi.probe.session.subscriber import Evaluation, Run, Subscriber
from toushi.probe.text.alignment import WordSpec
from toushi.probe.trace.output_dir import prepare_output_dir
from toushi.probe.trace.safetensors_reader import StepStore


class NotReproducible(UserWarning):
    """The picture cannot be made again from its trace alone."""


class Uncompiled(UserWarning):
    """Compiled parts of the model compute uncompiled while they are recorded."""


class SourcePicture(NamedTuple):
    """A picture that is traced, not drawn."""

    image: Image.Image | None  # becomes image.png; None: the picture of the run does
    facts: Mapping[str, object]  # manifest fields


class HiddenStatesOnly(UserWarning):
    """The attention of the text encoder cannot be read, so only its hidden states are kept."""


def record(
    model: Model,
    folder: str | Path,
    keep: str | None = None,
    words: WordSpec | Iterable[WordSpec] | None = None,
    sites: str | Iterable[str] | None = None,
    steps: int | slice | str | Iterable[int] | None = None,
    branches: str | Iterable[str] | None = None,
    overwrite: bool = False,
    *,
    dtype: str = "float16",
    budget: int | str = DEFAULT_BUDGET,
    pads: bool = False,
    native_attention: bool = False,
    concepts: str | Iterable[str] = (),
    hash_weights: bool = False,
) -> "Recording":
    """A context manager. What `model` samples inside is recorded in `folder`.

    One picture makes the folder a trace; a batch or several runs make it a collection of 000, 001, ….

    keep      "heads": every head at every step; "mean": the mean over heads at every step; "sum": that, summed
              over the steps in one file; by default "heads" where that fits the budget, else "mean" with a warning
    words     words of the prompt ("猫", "猫#2", a Word, a span): only the columns of their tokens are kept in `cond`
    sites     globs of attention modules; by default all of the text encoder and all image-to-text ones. Image
              self-attention, which is large, is kept only if a glob matches it
    steps     index, indices or slice of the steps to keep, also as text ("5:11"); by default all
    branches  "cond", "uncond", or what the model's family declares; by default all
    overwrite whether a trace in the folder is replaced
    dtype     of the stored maps, float16 or float32 (sums are always float32)
    budget    bytes on disk, or a text such as "500MB"; a run that would need more is refused before anything is written
    pads      whether every column of padding is kept by itself; by default only their sum is, as one column
    native_attention  whether sites that compute by xformers, sage, flash or in slices, which cannot be read, are
              switched to PyTorch's own attention inside the `with`; the picture may then differ by rounding
    concepts  texts outside the prompt ("dog"), or a word in another text ("银行@河边的银行"), which the image is asked
              about, too. Their maps are the branch "concepts" of the trace. Cross-attention only
    hash_weights  whether the manifest has the sha256 of all weights in memory; by default it has that of a sample of
              them, which a change of a few numbers may miss

    The pictures are bit-identical to those that are sampled without it. Modules that torch.compile compiled run
    uncompiled inside the `with`, which rounds differently: a warning (Uncompiled) says so.

    Raises UnknownFamily; UnknownSite for a glob that matches nothing; UnreadableAttention or Unrecordable for attention
    that cannot be read; OverBudget; WriteFailed for a folder with other files.
    """
    if not isinstance(folder, str | PathLike):
        raise ToushiError(f"record(model, folder) expects a folder, but a {type(folder).__name__} came")
    policy = Policy.from_arguments(keep, words, steps, branches, dtype, budget, pads)
    concepts = [concepts] if isinstance(concepts, str) else list(concepts)
    if concepts and policy.branches is not None and "cond" not in policy.branches:
        raise ToushiError(
            f"concepts are asked of the branch cond, but branches={policy.branches} leaves it out: add cond"
        )
    return Recording(
        model,
        Path(folder),
        policy,
        sites,
        overwrite,
        None,
        native_attention,
        concepts=concepts,
        hash_weights=hash_weights,
    )


class Recording(Subscriber):
    """Made by `record`."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        policy: Policy,
        sites: str | Iterable[str] | None,
        overwrite: bool = False,
        resumed: StepStore | None = None,
        switch_attention: bool = False,
        concepts: Sequence[str] = (),
        hash_weights: bool = False,
    ):
        model = unwrap(model)
        family = family_of(model)
        policy.check_branches(family)
        self.model, self.family, self.overwrite = model, family, overwrite
        self.switch_attention, self.hash_weights, self.concepts = switch_attention, hash_weights, concepts
        self.switched: dict[str, str] = {}  # site -> what computed its attention before
        components = {"": model} if isinstance(model, nn.Module) else model.components
        parts = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
        self.uncompiled = [name or type(model).__name__ for name, part in parts.items() if is_compiled(part)]
        selected = family.select_sites(model, sites)
        self.plan = RecordingPlan(model, family, policy, selected, TraceFolders(folder), resumed)
        self.recorder: RunRecorder | None = None
        self.capture: EncoderCapture | None = None  # while prompts are encoded
        self.subscription = ExitStack()
        self.call: dict[str, object] = {}  # manifest fields of the latest sampling call
        self.source: SourcePicture | None = None  # set before the `with`, if a picture is traced
        self.has_warned = False  # that a picture cannot be made again
        self.is_new_folder = False  # whether the recording made it, so that it is removed if it stays empty
        names = [name.removeprefix(f"{family.layers}.") for name in self.plan.site_names("encoder")]
        self.encoder_layers = [int(name.split(".")[0]) for name in names]

    @property
    def traces(self) -> list[Path]:
        """The folders of the traces that were written so far."""
        return self.plan.folders.paths

    def __enter__(self) -> "Recording":
        session = session_of(self.model)
        others = [] if session is None else [other for other in session.subscribers if isinstance(other, Recording)]
        if others:
            raise ToushiError(
                f"this model is being recorded in {others[0].plan.folders.root} already: "
                "end that recording first, or record once and read the trace twice"
            )
        with ExitStack() as subscription:
            if self.switch_attention:
                self.switched = subscription.enter_context(native_attention(self.plan.sites))
            if self.concepts:
                modules = {name: self.plan.sites[name].module for name in self.plan.site_names("cross")}
                self.plan.concepts = read_concepts(self.model, modules, self.concepts)
            self._subscribe(subscription)
            self.subscription = subscription.pop_all()
        return self

    def _subscribe(self, subscription: ExitStack) -> None:
        self.family.check(self.model, self.plan.sites)
        if self.encoder_layers and (reason := self.family.hidden_attention(self.model)) is not None:
            warnings.warn(HiddenStatesOnly(reason), stacklevel=3)
        if self.uncompiled:
            message = (
                f"{', '.join(self.uncompiled)} of the model computes uncompiled while it is recorded; the picture may "
            )
            message += "differ by rounding from a compiled one (by 2e-5 in the latents of a tiny pipeline in fp32)"
            warnings.warn(Uncompiled(message), stacklevel=3)
        if self.plan.resumed is None:
            root = self.plan.folders.root
            self.is_new_folder = not os.path.exists(root)  # False for a name that the system refuses
            prepare_output_dir(root, self.overwrite)
        threading.Thread(target=git_commit, daemon=True).start()  # its answer is remembered for the manifest
        subscription.enter_context(subscribe(self.model, self))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        try:
            self._close(error=error)
        finally:
            self.subscription.close()
            if self.is_new_folder and not self.traces:
                with suppress(OSError):  # it holds what a killed writer left
                    self.plan.folders.root.rmdir()
        if isinstance(error, HookError):
            raise Unrecordable(str(error)) from error
        if error is None and not self.traces:
            raise ToushiError(f"nothing was sampled inside the recording, so {self.plan.folders.root} has no trace")

    # --- events of the session

    def describe(self) -> dict[str, object]:
        facts = {"attention_switched": self.switched, "uncompiled": self.uncompiled}
        return {name: fact for name, fact in facts.items() if fact}

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return {name: self.plan.sites[name].module for name in self.plan.site_names("cross", "self")}

    def encode_prompt_context(self) -> AbstractContextManager:
        # A model that caches its texts computes them again while the encoder has hooks.
        self.capture = EncoderCapture(self.family, self.model, self.encoder_layers)
        return self.capture

    def on_sample(self, arguments: Arguments) -> None:
        self.plan.encoder_arrays = {}
        self.call = describe_call(getattr(self.model, self.family.sample), arguments)

    def on_prompts(self, prompts: Mapping[str, list[EncodedPrompt]], call: EncodePromptCall) -> None:
        capture, self.capture = self.capture, None  # it holds the states of every layer
        if capture is None or (self.session.run is not None and self.session.run.nested):
            return
        if unread := capture.unread():
            raise Unrecordable(unread_message(unread))
        if self.session.arguments is None:
            self.plan.encoder_arrays = {}
        for branch, encoded in prompts.items():
            arrays = [capture.arrays_of(prompt) for prompt in encoded]
            # A later call is for another encoder and has no arrays of this one.
            if any(arrays) or branch not in self.plan.encoder_arrays:
                self.plan.encoder_arrays[branch] = arrays

    def on_run_begin(self, run: Run) -> None:
        if run.nested:
            return
        metadata = self.family.metadata(self.model, run.arguments) | (self.call if run.arguments else {})
        metadata |= {"components": describe_components(self.model, self.family, self.hash_weights)}
        metadata |= {} if self.source is None else self.source.facts
        if run.arguments.get("latents") is not None and self.plan.resumed is None:
            metadata["seed"] = None  # the run begins from these latents, not from those of the seed
        if (
            self.source is None
            and not self.has_warned
            and (reason := not_reproducible_reason(run.arguments, metadata)) is not None
        ):
            self.has_warned = True
            warnings.warn(NotReproducible(f"this picture cannot be made again from its trace: {reason}"), stacklevel=2)
        self.attention_hook.reset_counts()
        self.recorder = RunRecorder(self.plan, self.session, run, metadata)

    def on_start_index(self, run: Run, index: int) -> None:
        if (recorder := self._recorder_of(run)) is not None:
            recorder.start_at(index)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        if (recorder := self._recorder_of(evaluation.run)) is not None:
            recorder.begin_evaluation(evaluation)

    def on_attention(self, call: Call) -> None:
        evaluation = self.session.evaluation
        if evaluation is not None and (recorder := self._recorder_of(evaluation.run)) is not None:
            recorder.add_call(call)

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        if (recorder := self._recorder_of(run)) is not None:
            recorder.finish_step(step, self.attention_hook.unread_modules())

    def on_run_end(self, run: Run, images: Images, result: object, error: BaseException | None) -> None:
        if self._recorder_of(run) is not None:
            self._close(images, result, error)

    def _recorder_of(self, run: Run) -> RunRecorder | None:
        return self.recorder if self.recorder is not None and self.recorder.run is run else None

    def _close(self, images: Images = None, result: object = None, error: BaseException | None = None) -> None:
        recorder, self.recorder = self.recorder, None
        if self.source is not None and self.source.image is not None:
            images = [self.source.image]
        if recorder is not None and error is not None:
            recorder.abort(error)
        elif recorder is not None:
            safety = None if result is None else safety_verdicts(self.model, result)
            recorder.end(images, safety, returned=result is not None)
