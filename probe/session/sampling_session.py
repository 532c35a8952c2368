"""Follows a model while it samples: which prompts, which rows of the batch, which step.

A session wraps the methods by which a model samples while there are subscribers, and informs them of events
(`subscriber.py`). One model has one session, however many subscribers record or edit it. The scheduler tells the step:
`set_timesteps` begins a run, and everything until `step` returns belongs to that step.
"""

import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from toushi.hooks.attention import AttentionHook
from toushi.hooks.module_hooks import argument_hooks, state_hooks
from toushi.hooks.torch_private import tensor_version
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.encoder_inputs import ENCODER_PARAMETERS, note_encoder_inputs
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    EncoderInputs,
    Family,
    Images,
    Model,
    SchedulerStep,
    submodule,
    unwrap,
)
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.patching import patch_method
from toushi.probe.session.row_matching import BranchMismatch, PromptKey, index_of_ids, match_rows, restore_prompts
from toushi.probe.session.subscriber import EncoderBatch, EncoderRow, Evaluation, Run, Subscriber

MATCH_CACHE_SIZE = 4  # denoiser inputs whose matched rows are remembered

_sessions: dict[int, "SamplingSession"] = {}  # by the id of the model


@contextmanager
def subscribe(model: Model, subscriber: Subscriber) -> Iterator["SamplingSession"]:
    """A context manager that yields the session of the model. Inside, the subscriber gets the session's events.

    Raises UnknownFamily for a model that no family describes, and ToushiError for anything but a Subscriber.
    """
    if not isinstance(subscriber, Subscriber):
        raise ToushiError(f"expected an object of a class that inherits from Subscriber, but {subscriber!r} came")
    model = unwrap(model)
    session = _sessions.get(id(model)) or SamplingSession(model)
    with session, session.attach(subscriber):
        yield session


def session_of(model: Model) -> "SamplingSession | None":
    """The open session of this model, if there is one."""
    return _sessions.get(id(unwrap(model)))


def image_place(values: Sequence[object]) -> int:
    """Where the image is in what a block of joint attention returns: text and image [row, token, feature], or it alone."""
    is_pair = len(values) == 2 and all(isinstance(value, Tensor) and value.dim() == 3 for value in values)
    return int(is_pair)


class SamplingSession:
    """Made by `subscribe`, and entered once for each subscriber. It patches the model once."""

    def __init__(self, model: Model):
        self.model = model
        self.family: Family = family_of(model)
        self.subscribers: list[Subscriber] = []
        self.prompts: dict[str, list[EncodedPrompt]] = {}  # branch -> one for each picture
        self.precomputed_prompts: list[EncodedPrompt] = []  # encoded outside of a sampling call, maybe for a later one
        self.encoder_batch: EncoderBatch | None = None  # while the recorded text encoder computes
        self.arguments: Arguments | None = None  # of the sampling call that is running
        self.run: Run | None = None
        self.evaluation: Evaluation | None = None  # the latest one of the denoiser
        self._in_step = False  # inside scheduler.step
        self._matches: list[tuple[tuple[Tensor, ...], tuple, list[PromptKey]]] = []  # text tensors, version, rows
        self._users = 0
        self._patches = ExitStack()

    # --- lifetime

    def __enter__(self) -> "SamplingSession":
        if not self._users:
            with ExitStack() as patches:
                _sessions[id(self.model)] = self
                patches.callback(_sessions.pop, id(self.model))
                self._patch(patches)
                self._patches = patches.pop_all()
        self._users += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._users -= 1
        if not self._users:
            self._patches.close()
            # A subscriber keeps its session alive, but the tensors of the last run must not stay in memory.
            self.prompts, self.precomputed_prompts, self._matches, self.evaluation = {}, [], [], None

    @contextmanager
    def attach(self, subscriber: Subscriber) -> Iterator[None]:
        """Informs the subscriber until the end of the `with`."""
        subscriber.session = self
        with ExitStack() as hooks:
            subscriber.attention_hook = hooks.enter_context(
                AttentionHook(subscriber.attention_modules(), subscriber.on_attention, subscriber.on_attention_edit)
            )
            if subscriber.on_state_edit is not None:
                place_of = image_place if self.family.joint else lambda values: 0
                modules, on_state = subscriber.state_modules(), subscriber.on_state_edit
                hooks.enter_context(state_hooks(modules, on_state, prepend=True, place_of=place_of))
            self.subscribers.append(subscriber)
            hooks.callback(self.subscribers.remove, subscriber)
            yield

    def describe(self) -> dict[str, object]:
        """Manifest fields of all subscribers. Raises ToushiError if two of them describe the same field."""
        fields: dict[str, object] = {}
        authors: dict[str, str] = {}
        for subscriber in self.subscribers:
            author = type(subscriber).__name__
            for name, value in subscriber.describe().items():
                if name in fields:
                    raise ToushiError(
                        f"two subscribers describe the manifest field {name!r}: {authors[name]} and {author}. Expected "
                        "different names: rename the field in one of them."
                    )
                fields[name], authors[name] = value, author
        return fields

    def _patch(self, patches: ExitStack) -> None:
        model, family = self.model, self.family
        methods = [(model, family.encode_prompt, self._encode_prompt), (model, family.sample, self._sample)]
        if family.evaluate is not None:
            methods.append((model, family.evaluate, self._evaluate))
        if family.timesteps_method is not None and hasattr(model, family.timesteps_method):
            methods.append((model, family.timesteps_method, self._get_timesteps))
        for instance, name, wrap in methods:
            patches.enter_context(patch_method(instance, name, wrap))
        self._patch_scheduler(patches)
        denoiser = {family.denoiser: (submodule(model, family.denoiser), family.denoiser_inputs)}
        patches.enter_context(family.hooks(model))
        patches.enter_context(argument_hooks(denoiser, self._begin_evaluation))

    def _patch_scheduler(self, patches: ExitStack) -> None:
        self._scheduler = getattr(self.model, self.family.scheduler)
        patches.enter_context(patch_method(self._scheduler, "set_timesteps", self._set_timesteps))
        patches.enter_context(patch_method(self._scheduler, "step", self._scheduler_step))

    # --- prompts

    def _encode_prompt(self, encode_prompt: Callable) -> Callable:
        signature = inspect.signature(encode_prompt)

        def wrapper(*args, **kwargs):
            # Copies, because a pipeline may put its template around the prompts in the list that it was given.
            arguments = {
                name: list(value) if isinstance(value, list) else value
                for name, value in signature.bind(*args, **kwargs).arguments.items()
            }
            earlier = self.prompts if self.arguments is not None else {}
            call = EncodePromptCall(None, self.model, arguments, self.arguments or {}, {}, earlier)
            with self._encoder_inputs(call) as encoder_calls, ExitStack() as contexts:
                for subscriber in self.subscribers:
                    contexts.enter_context(subscriber.encode_prompt_context())
                result = encode_prompt(*args, **kwargs)
            cache = getattr(self.model, "encode_prompt_cache", None)  # its answers come without the encoders
            if cache is not None and cache.encoder_calls is not None:
                encoder_calls = cache.encoder_calls
            call = call._replace(result=result, encoder_calls=encoder_calls)
            prompts = restore_prompts(self.family.encoded_prompts(call), self.precomputed_prompts)
            self.prompts, self._matches = {**earlier, **prompts}, []
            if self.arguments is None and self.family.evaluate is None:
                self.precomputed_prompts += [prompt for branch in prompts.values() for prompt in branch]
            self._notify("on_prompts", prompts, call)
            return result

        return wrapper

    @contextmanager
    def _encoder_inputs(self, call: EncodePromptCall) -> Iterator[dict[str, list[EncoderInputs]]]:
        """Notes the inputs of every text encoder. If an encoder is edited, its prompts are known before it computes."""
        family, model = self.family, self.model
        modules = {name: getattr(model, name, None) for name in family.text_encoders}
        encoders: dict[str, tuple[nn.Module, Sequence[str]]] = {
            name: (unwrap(module), ENCODER_PARAMETERS) for name, module in modules.items() if module is not None
        }
        edited = any(subscriber.edits_encoder for subscriber in self.subscribers)
        if edited and family.text_encoder not in encoders:
            encoders[family.text_encoder] = (submodule(model, family.text_encoder), (family.input_ids,))

        def before_call(name: str, inputs: EncoderInputs | None) -> None:
            is_edited = edited and name == family.text_encoder and inputs is not None
            batch = self._match_encoder_rows(call._replace(encoder_calls=encoder_calls)) if is_edited else None
            self.encoder_batch = batch

        try:
            with note_encoder_inputs(encoders, before_call) as encoder_calls:
                yield encoder_calls
        finally:
            self.encoder_batch = None

    def _match_encoder_rows(self, call: EncodePromptCall) -> EncoderBatch:
        encoder_calls = call.encoder_calls[self.family.text_encoder]
        ids = encoder_calls[-1].ids
        if self.family.tokens_of_encoder_call is None:
            return EncoderBatch(len(ids), [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `encoded_prompts` gives the same warnings in a moment
            branch, prompts = self.family.tokens_of_encoder_call(call, len(encoder_calls) - 1)
        starts = [index_of_ids(row, prompt.ids) for row, prompt in zip(ids, prompts)]
        rows = [
            EncoderRow(row, branch, prompt, start)
            for row, (prompt, start) in enumerate(zip(prompts, starts))
            if start is not None
        ]
        return EncoderBatch(len(ids), rows)

    # --- runs

    def _sample(self, sample: Callable) -> Callable:
        signature = inspect.signature(sample)

        def wrapper(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            prompts = self.family.prompts_from_arguments(bound.arguments)
            self.prompts, self._matches = restore_prompts(prompts, self.precomputed_prompts), []
            self.arguments = bound.arguments
            if getattr(self.model, self.family.scheduler) is not self._scheduler:
                self._patch_scheduler(self._patches)  # it was exchanged since the last call
            try:
                self._notify("on_sample", bound.arguments)
                result = sample(*args, **kwargs)
            except BaseException as error:
                self._end_run(error=error)
                raise
            finally:
                self.arguments = None
            self._end_run(self.family.images(result), result)
            return result

        return wrapper

    def _evaluate(self, evaluate: Callable) -> Callable:
        """A run of one step. Inside another run, nothing of that run changes."""
        signature = inspect.signature(evaluate)

        def wrapper(*args, **kwargs):
            if self._in_step:
                return evaluate(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            times = torch.as_tensor(bound.arguments["time"], dtype=torch.float64).flatten().tolist()
            if self.arguments is None and self.run is not None and self.run.index >= self.run.count:
                self._end_run()  # a sampling loop of the user's own is over; nothing else tells it
            outer, evaluation, prompts = self.run, self.evaluation, self.prompts
            nested = outer is not None
            try:
                self._begin_run(Run(1, lambda picture: [times[picture % len(times)]], {}, single=True, nested=nested))
                result = evaluate(*args, **kwargs)
                assert self.family.evaluation_step is not None
                self._finish_step(self.family.evaluation_step(result, bound.arguments))
            except BaseException as error:
                self._end_run(error=error)
                raise
            else:
                self._end_run()
            finally:
                self.run, self.evaluation, self._matches = outer, evaluation, []
                if nested:
                    self.prompts = prompts
            return result

        return wrapper

    def _set_timesteps(self, set_timesteps: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            result = set_timesteps(*args, **kwargs)
            self._end_run()
            times = self.family.timesteps(getattr(self.model, self.family.scheduler))
            self._begin_run(Run(len(times) - 1, lambda picture: times, self.arguments or {}))
            return result

        return wrapper

    def _get_timesteps(self, get_timesteps: Callable) -> Callable:
        """The model says at which step it begins, if it begins from an image."""

        def wrapper(*args, **kwargs):
            result = get_timesteps(*args, **kwargs)
            scheduler = getattr(self.model, self.family.scheduler)
            self._set_index(len(scheduler.timesteps) - len(result[0]))
            return result

        return wrapper

    def _scheduler_step(self, step: Callable) -> Callable:
        signature = inspect.signature(step)

        def wrapper(*args, **kwargs):
            if self.run is None:
                return step(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            scheduler = getattr(self.model, self.family.scheduler)
            index = self.family.step_index(scheduler, bound.arguments, self.run.index)
            if index is not None and index == self.run.index - 1 and not self.run.denoiser_ran:
                return step(*args, **kwargs)  # of other latents, from the same evaluation
            if index is not None:
                self._set_index(index)
            self._in_step = True
            try:
                scheduler_step = self.family.step(step, bound.arguments)
            finally:
                self._in_step = False
            self._finish_step(scheduler_step)
            return scheduler_step.result

        return wrapper

    def _begin_run(self, run: Run) -> None:
        self.run, self._matches = run, []
        try:
            self._notify("on_run_begin", run)
        except BaseException as error:
            self._end_run(error=error)
            raise

    def _set_index(self, index: int) -> None:
        if self.run is not None and index != self.run.index:
            self._notify("on_start_index", self.run, index)
            self.run.index = index

    def _finish_step(self, step: SchedulerStep) -> None:
        run = self.run
        assert run is not None
        try:
            self._notify("on_step", run, step)
        finally:  # the scheduler has made the step, even if a subscriber raises
            run.index += 1
            run.denoiser_ran = False
            run.evaluations.clear()

    def _end_run(self, images: Images = None, result: object = None, error: BaseException | None = None) -> None:
        """Informs every subscriber. Then raises the first error of a subscriber, unless the run ended by an error."""
        run, self.run, self.evaluation, self._matches = self.run, None, None, []
        if run is None:
            return
        failure: BaseException | None = None
        for subscriber in list(self.subscribers):
            try:
                subscriber.on_run_end(run, images, result, error)
            except BaseException as raised:
                failure = failure or raised
        if failure is not None and error is None:
            raise failure

    def _notify(self, event: str, *args) -> None:
        for subscriber in list(self.subscribers):  # one of them may leave during the event
            getattr(subscriber, event)(*args)

    # --- rows

    def _begin_evaluation(self, name: str, *values) -> None:
        # Outside of a run somebody calls the denoiser directly. That counts as a run of one step.
        run = self.run or Run(1, lambda picture: None, {}, single=True, nested=True)
        run.denoiser_ran = True
        self.evaluation = Evaluation(self, run, dict(zip(self.family.denoiser_inputs, values)))
        self._notify("on_evaluation", self.evaluation)

    def match_rows(self, inputs: DenoiserInputs, run: Run) -> list[PromptKey]:
        """Branch and picture of each row. Remembered, since comparing takes time and most texts return at every step."""
        version = (inputs.branches, frozenset(run.evaluations), *map(tensor_version, inputs.text_tensors))
        for tensors, known_version, rows in self._matches:
            same = known_version == version and len(tensors) == len(inputs.text_tensors)
            if same and all(map(operator.is_, tensors, inputs.text_tensors)):
                return rows
        states = {branch: [prompt.states for prompt in prompts] for branch, prompts in self.prompts.items()}
        try:
            rows = match_rows(inputs.texts(), states, self.family.branch_order, run.evaluations, inputs.branches)
        except BranchMismatch as error:
            if not self._matches:
                raise
            raise BranchMismatch(
                f"the text that the denoiser gets was exchanged at step {run.index} (by a callback that returns other "
                "prompt_embeds?). A run is recorded with one text: leave the exchange out, or do not record this run"
            ) from error
        self._matches = [(inputs.text_tensors, version, rows), *self._matches[: MATCH_CACHE_SIZE - 1]]
        return rows
