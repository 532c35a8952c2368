"""`with record(model, folder):` writes a trace of whatever the model draws inside.

Joins the wires (hooks), the family table and the trace writer. Which step is running is known from the scheduler:
its `set_timesteps` begins a run, and everything until its `step` returns belongs to that step. Both are wrapped on
that one instance, as are `encode_prompt` and `sample`; all of it is undone at the end, whatever happens.
"""

import inspect
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from toushi.hooks.attention import Call, Watch
from toushi.hooks.hook_error import WireError
from toushi.hooks.module_hooks import argument_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import Encoded, Said, family_of, plain, submodule
from toushi.probe.recording.encoder_capture import EncodedIds, EncoderCapture
from toushi.probe.recording.policy import DISK, Policy
from toushi.probe.recording.provenance import git_commit
from toushi.probe.recording.run_recorder import Run, Texts, Unrecordable
from toushi.probe.recording.safety_checker import verdicts
from toushi.probe.session.patching import wrapped_run
from toushi.probe.session.row_matching import known
from toushi.probe.text.alignment import Word
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.output_dir import prepare_output_dir
from toushi.probe.trace.writer import write_collection


class HiddenStatesOnly(UserWarning):
    """The text encoder attends where it cannot be read. Its kernel is not changed for that."""


_recorded: dict[int, Path] = {}  # id of each model being recorded -> where to


def record(
    model,
    folder: str | Path,
    keep: str = "heads",
    words: str | Iterable | None = None,
    sites: str | Iterable[str] | None = None,
    steps: int | slice | Iterable[int] | None = None,
    branches: str | Iterable[str] | None = None,
    overwrite: bool = False,
    *,
    dtype: str = "float16",
    budget: int = DISK,
) -> "Recording":
    """A context manager: what `model` draws inside is recorded in `folder`.

    One picture makes the folder a trace; a batch or several runs make it a collection of 000, 001, ….

    keep      "heads": every head at every step; "mean": the mean over heads at every step; "sum": that, summed
              over the steps in one file
    words     words of the prompt ("猫", "猫#2", a Word, a span): only their tokens' columns of `cond` are kept
    sites     globs of attention modules; by default all of the text encoder's and all image-to-text ones. Image
              self-attention, which is large, only where it is named
    steps     index, indices or slice of the steps to keep
    branches  "cond", "uncond"; by default both
    dtype     of the stored maps, float16 or float32 (sums are always float32)
    budget    bytes on disk; a run that would need more is refused before its first map

    What is drawn is, bit for bit, what would be drawn without it. Raises ToushiError types: a site that matches
    nothing, an attention that cannot be read, a folder that holds something else.
    """
    steps = steps if steps is None or isinstance(steps, int | slice) else tuple(steps)
    policy = Policy(keep, _listed(words), steps, _listed(branches), dtype, budget)
    return Recording(model, Path(folder), policy, sites, overwrite)


class Recording:
    """Made by `record`. `traces`: the folders of the traces written so far."""

    def __init__(
        self,
        model,
        folder: Path,
        policy: Policy,
        sites: str | Iterable[str] | None,
        overwrite: bool = False,
        resumed: bool = False,
    ):
        self.model, self.folder, self.policy, self.overwrite = plain(model), folder, policy, overwrite
        self.resumed = (
            resumed  # whether the one run of this recording goes on in an older trace, see toushi.probe.resume
        )
        self.family = family_of(self.model)
        self.sites = self.family.chosen(self.model, sites)
        self.traces: list[Path] = []
        self.run: Run | None = None
        self.texts = Texts({}, {})
        self.aside: list[Encoded] = []  # encoded outside of `sample`
        self.arguments: dict[str, Any] | None = None  # of the `sample` that is running
        self.stepping = False  # inside scheduler.step
        self.wires = ExitStack()
        layers = f"{self.family.layers}."
        self.encoder_layers = [
            int(name.removeprefix(layers).split(".")[0]) for name, site in self.sites.items() if site.kind == "encoder"
        ]

    def __enter__(self) -> "Recording":
        if id(self.model) in _recorded:
            raise ToushiError(
                f"this model is being recorded in {_recorded[id(self.model)]} already: "
                "end that recording first, or record once and read the trace twice"
            )
        self.family.check(self.model, self.sites)
        if self.encoder_layers and (why := self.family.unseen(self.model)) is not None:
            warnings.warn(HiddenStatesOnly(why), stacklevel=2)
        if not self.resumed:
            prepare_output_dir(self.folder, self.overwrite)
        # Asking git takes longer than a step; its answer is wanted when the first step is finished.
        threading.Thread(target=git_commit, daemon=True).start()
        model, family = self.model, self.family
        denoiser = submodule(model, family.denoiser)
        watched = {name: site.module for name, site in self.sites.items() if site.kind != "encoder"}
        with ExitStack() as wires:
            _recorded[id(model)] = self.folder
            wires.callback(_recorded.pop, id(model))
            self.watch = wires.enter_context(Watch(watched, self._take))
            wires.enter_context(argument_hooks({family.denoiser: (denoiser, family.inputs)}, self._evaluate))
            around = self._encoding, self._sampling, self._evaluating, self._beginning, self._stepping, self._starting
            wires.enter_context(wrapped_run(model, family, *around))
            self.wires = wires.pop_all()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.wires.close()
        self._end_run(error=error)
        if isinstance(error, WireError):
            raise Unrecordable(str(error)) from error
        if error is None and not self.traces:
            raise ToushiError(f"nothing was drawn inside the recording, so {self.folder} holds no trace")

    # --- from the wires

    def _take(self, call: Call) -> None:
        if self.run is not None:
            self.run.take(call)

    def _evaluate(self, name: str, *inputs) -> None:
        if self.run is not None:
            self.run.evaluate(dict(zip(self.family.inputs, inputs)))

    # --- around the model's methods

    def _encoding(self, encode_prompt: Callable) -> Callable:
        signature = inspect.signature(encode_prompt)

        def wrapper(*arguments, **named):
            # A copy: a pipeline may put its template around the prompts in the very list that it was given.
            given = {
                name: list(value) if isinstance(value, list) else value
                for name, value in signature.bind(*arguments, **named).arguments.items()
            }
            capture = EncoderCapture(self.family, self.model, self.encoder_layers)
            # A model that keeps its texts runs the encoder anew while the encoder has hooks.
            with capture, EncodedIds(self.family, self.model) as ids:
                result = encode_prompt(*arguments, **named)
            kept = getattr(self.model, "kept_texts", None)  # may have answered without running the encoder
            read = ids.found if kept is None or kept.last is None else kept.last
            if blind := capture.blind():
                listed = "; ".join(f"{name} {why}" for name, why in blind.items())
                raise Unrecordable(f"these sites could not be read: {listed}. Leave them out with sites=…")
            before = self.texts if self.arguments is not None else Texts({}, {})
            said = Said(result, self.model, given, self.arguments or {}, read, before.branches)
            texts = known(self.family.texts(said), self.aside)
            encoder = {branch: [capture.of(text) for text in some] for branch, some in texts.items()}
            # A later call, for another encoder, does not run this one again.
            encoder = {branch: some for branch, some in encoder.items() if any(some) or branch not in before.encoder}
            self.texts = Texts({**before.branches, **texts}, {**before.encoder, **encoder})
            if self.arguments is None and self.family.evaluate is None:  # maybe for ready-made embeddings
                self.aside += [text for some in texts.values() for text in some]
            return result

        return wrapper

    def _sampling(self, sample: Callable) -> Callable:
        signature = inspect.signature(sample)

        def wrapper(*arguments, **named):
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            given = self.family.given(bound.arguments)
            self.arguments = bound.arguments
            self.texts = Texts(known(given, self.aside), {})
            try:
                result = sample(*arguments, **named)
            except BaseException as error:
                self._end_run(error=error)
                raise
            finally:
                self.arguments = None
            self._end_run(self.family.pictures(result), safety=verdicts(self.model, result))
            return result

        return wrapper

    def _evaluating(self, evaluate: Callable) -> Callable:
        signature = inspect.signature(evaluate)

        def wrapper(*arguments, **named):
            if self.stepping:
                return evaluate(*arguments, **named)
            if self.run is not None:  # somebody looks aside between two steps, which is no part of the run
                aside, self.run, texts = self.run, None, self.texts
                try:
                    return evaluate(*arguments, **named)
                finally:
                    self.run, self.texts = aside, texts
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            times = torch.as_tensor(bound.arguments["time"], dtype=torch.float64).flatten().tolist()
            run = self._begin_run(1, lambda item: [times[item % len(times)]])
            try:
                result = evaluate(*arguments, **named)
                run.finish_step(self.family.evaluated(result, bound.arguments), self.watch.blind())
            except BaseException as error:
                self._end_run(error=error)
                raise
            self._end_run()
            return result

        return wrapper

    def _beginning(self, set_timesteps: Callable) -> Callable:
        def wrapper(*arguments, **named):
            result = set_timesteps(*arguments, **named)
            self._end_run()
            times = self.family.times(getattr(self.model, self.family.scheduler))
            self._begin_run(len(times) - 1, lambda item: times)
            return result

        return wrapper

    def _starting(self, index: int) -> None:
        if self.run is not None:
            self.run.at(index)

    def _stepping(self, step: Callable) -> Callable:
        signature = inspect.signature(step)

        def wrapper(*arguments, **named):
            if self.run is None:
                return step(*arguments, **named)
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            scheduler = getattr(self.model, self.family.scheduler)
            index = self.family.place(scheduler, bound.arguments, self.run.index)
            if index is not None:  # a run may begin in the midst
                self.run.at(index)
            self.stepping = True
            try:
                stepped = self.family.step(step, bound.arguments)
            finally:
                self.stepping = False
            self.run.finish_step(stepped, self.watch.blind())
            return stepped.result

        return wrapper

    # --- runs and folders

    def _begin_run(self, count: int, times: Callable[[int], list[float]]) -> Run:
        given = self.arguments or {}
        about = self.family.about(self.model, given)
        if given.get("latents") is not None and not self.resumed:
            about["seed"] = None  # these latents, not the seed's, are where it begins
        self.watch.forget()
        self.run = Run(
            self.model,
            self.family,
            self.policy,
            self.sites,
            lambda: self.texts,
            self._places,
            count,
            times,
            about,
            self.resumed,
        )
        return self.run

    def _end_run(
        self, pictures: list | None = None, error: BaseException | None = None, safety: list[str] | None = None
    ) -> None:
        run, self.run = self.run, None
        if run is not None:
            run.end(pictures, safety) if error is None else run.abort(error)

    def _places(self, count: int) -> list[Path]:
        """Folders for so many new traces. A folder that turns out to hold several becomes a collection."""
        if count == 1 and not self.traces:
            self.traces = [self.folder]
            return self.traces
        if self.traces == [self.folder]:
            self.traces = [_moved_inside(self.folder)]
        first = len(self.traces)
        new = [self.folder / f"{number:03d}" for number in range(first, first + count)]
        self.traces = self.traces + new
        write_collection(self.folder, [path.name for path in self.traces])
        return new


def _moved_inside(folder: Path) -> Path:
    """Moves the trace in the folder to its member 000; the manifest goes last, so that it is never half there."""
    member = folder / "000"
    member.mkdir()
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda p: p.name == layout.MANIFEST)
    for path in files:
        path.rename(member / path.name)
    return member


def _listed(values) -> tuple | None:
    if values is None:
        return None
    # A span is a tuple too, and one word may be given as it is.
    alone = isinstance(values, str | Word) or (isinstance(values, tuple) and all(isinstance(v, int) for v in values))
    return (values,) if alone and values != () else tuple(values)
