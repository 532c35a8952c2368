"""The one follower of a running model: which prompt, which row, which step.

A session wraps the methods by which a model samples, for as long as somebody subscribes, and tells its subscribers what
happens (`subscriber.py`). One model has one session, however many record or edit it. Which step is running is known
from the scheduler: `set_timesteps` begins a run, and everything until `step` returns belongs to that step.
"""

import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from toushi.hooks.attention import AttentionHook
from toushi.hooks.module_hooks import argument_hooks, state_hooks
from toushi.hooks.torch_private import tensor_version
from toushi.probe.pipelines.family import (
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    EncoderInputs,
    Family,
    submodule,
    unwrapped,
)
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.patching import patched_method
from toushi.probe.session.row_matching import Place, index_of_ids, match_rows, restore_prompts
from toushi.probe.session.subscriber import EncoderRow, Evaluation, Run, Subscriber

KNOWN_TEXTS = 4  # recent texts of the denoiser whose rows are remembered

_sessions: dict[int, "SamplingSession"] = {}  # by the id of the model


@contextmanager
def subscribe(model, subscriber: Subscriber) -> Iterator["SamplingSession"]:
    """Tells the subscriber what happens while the model samples, until the end of the `with`. Gives the session."""
    model = unwrapped(model)
    session = _sessions.get(id(model)) or SamplingSession(model)
    with session, session.attached(subscriber):
        yield session


def session_of(model) -> "SamplingSession | None":
    """The session that is open for this model now."""
    return _sessions.get(id(unwrapped(model)))


class SamplingSession:
    """Made by `subscribe`; entered once for each subscriber, it patches the model once."""

    def __init__(self, model):
        self.model = model
        self.family: Family = family_of(model)
        self.subscribers: list[Subscriber] = []
        self.prompts: dict[str, list[EncodedPrompt]] = {}  # of each branch, one for each picture
        self.precomputed: list[EncodedPrompt] = []  # encoded outside of a sampling call, maybe for a later one
        self.encoder_rows: list[EncoderRow] = []  # while the recorded text encoder runs
        self.arguments: Mapping[str, Any] | None = None  # of the sampling call that is running
        self.run: Run | None = None
        self.evaluation: Evaluation | None = None  # the latest of the denoiser
        self._in_step = False  # inside scheduler.step
        self._rows_of_text: list[tuple[tuple[Tensor, ...], tuple, list[Place]]] = []
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

    def __exit__(self, *exception) -> None:
        self._users -= 1
        if not self._users:
            self._patches.close()
            # Whoever keeps a subscriber keeps its session, but not the tensors of its last run.
            self.prompts, self.precomputed, self._rows_of_text, self.evaluation = {}, [], [], None

    @contextmanager
    def attached(self, subscriber: Subscriber) -> Iterator[None]:
        subscriber.session = self
        with ExitStack() as hooks:
            subscriber.attention_hook = hooks.enter_context(
                AttentionHook(subscriber.attention_modules(), subscriber.on_attention, subscriber.on_attention_edit)
            )
            if subscriber.on_state_edit is not None:
                hooks.enter_context(state_hooks(subscriber.state_modules(), subscriber.on_state_edit, prepend=True))
            self.subscribers.append(subscriber)
            hooks.callback(self.subscribers.remove, subscriber)
            yield

    def describe(self) -> dict[str, Any]:
        """What the subscribers want to be written into a manifest."""
        return {key: value for subscriber in self.subscribers for key, value in subscriber.describe().items()}

    def _patch(self, patches: ExitStack) -> None:
        model, family = self.model, self.family
        scheduler = getattr(model, family.scheduler)
        methods = [(model, family.encode_prompt, self._encode_prompt), (model, family.sample, self._sample)]
        if family.evaluate is not None:
            methods.append((model, family.evaluate, self._evaluate))
        methods += [(scheduler, "set_timesteps", self._set_timesteps), (scheduler, "step", self._scheduler_step)]
        if family.timesteps_method is not None and hasattr(model, family.timesteps_method):
            methods.append((model, family.timesteps_method, self._cut_schedule))
        for instance, name, wrap in methods:
            patches.enter_context(patched_method(instance, name, wrap))
        denoiser = {family.denoiser: (submodule(model, family.denoiser), family.denoiser_inputs)}
        patches.enter_context(argument_hooks(denoiser, self._denoiser_called))

    # --- prompts

    def _encode_prompt(self, encode_prompt: Callable) -> Callable:
        signature = inspect.signature(encode_prompt)

        def wrapper(*args, **kwargs):
            # Copies: a pipeline may put its template around the prompts in the very list that it was given.
            arguments = {
                name: list(value) if isinstance(value, list) else value
                for name, value in signature.bind(*args, **kwargs).arguments.items()
            }
            earlier = self.prompts if self.arguments is not None else {}
            call = EncodePromptCall(None, self.model, arguments, self.arguments or {}, {}, earlier)
            with self._encoder_inputs(call) as runs, ExitStack() as contexts:
                for subscriber in self.subscribers:
                    contexts.enter_context(subscriber.around_encode_prompt())
                result = encode_prompt(*args, **kwargs)
            kept = getattr(self.model, "kept_texts", None)  # may have answered without running the encoder
            runs = runs if kept is None or kept.last is None else kept.last
            call = call._replace(result=result, encoder_runs=runs)
            prompts = restore_prompts(self.family.encoded_prompts(call), self.precomputed)
            self.prompts, self._rows_of_text = {**earlier, **prompts}, []
            if self.arguments is None and self.family.evaluate is None:
                self.precomputed += [prompt for branch in prompts.values() for prompt in branch]
            self._tell("on_prompts", prompts, call)
            return result

        return wrapper

    @contextmanager
    def _encoder_inputs(self, call: EncodePromptCall) -> Iterator[dict[str, list[EncoderInputs]]]:
        """Notes the inputs of every text encoder; where an encoder is edited, whose its rows are, before it runs."""
        family, model = self.family, self.model
        modules = {name: getattr(model, name, None) for name in family.text_encoders}
        parameters = {
            name: (unwrapped(module), ["input_ids", "attention_mask"]) for name, module in modules.items() if module
        }
        edited = any(subscriber.edits_encoder for subscriber in self.subscribers)
        if edited and family.text_encoder not in parameters:
            parameters[family.text_encoder] = (submodule(model, family.text_encoder), [family.input_ids])
        runs: dict[str, list[EncoderInputs]] = {name: [] for name in parameters}

        def note(name: str, ids: Tensor | None, mask: Tensor | None = None) -> None:
            self.encoder_rows = []
            if ids is None:
                return
            runs[name].append(EncoderInputs(ids.tolist(), None if mask is None else mask.long().tolist()))
            if edited and name == family.text_encoder:
                self.encoder_rows = self._rows_of_encoder(call._replace(encoder_runs=runs), runs[name])

        try:
            with argument_hooks(parameters, note):
                yield runs
        finally:
            self.encoder_rows = []

    def _rows_of_encoder(self, call: EncodePromptCall, runs: list[EncoderInputs]) -> list[EncoderRow]:
        if self.family.tokens_of_run is None:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `encoded_prompts` gives the same warnings in a moment
            branch, prompts = self.family.tokens_of_run(call, len(runs) - 1)
        starts = [index_of_ids(ids, prompt.ids) for ids, prompt in zip(runs[-1].ids, prompts)]
        return [
            EncoderRow(row, branch, prompt, start)
            for row, (prompt, start) in enumerate(zip(prompts, starts))
            if start is not None
        ]

    # --- runs

    def _sample(self, sample: Callable) -> Callable:
        signature = inspect.signature(sample)

        def wrapper(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = self.family.given_prompts(bound.arguments)
            self.prompts, self._rows_of_text = restore_prompts(given, self.precomputed), []
            self.arguments = bound.arguments
            try:
                self._tell("on_sample", bound.arguments)
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
        """A run of one step; within another run nothing of that run changes."""
        signature = inspect.signature(evaluate)

        def wrapper(*args, **kwargs):
            if self._in_step:
                return evaluate(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            times = torch.as_tensor(bound.arguments["time"], dtype=torch.float64).flatten().tolist()
            if self.arguments is None and self.run is not None and self.run.index >= self.run.count:
                self._end_run()  # a loop by hand is over, which nothing else ends
            outer, evaluation, prompts = self.run, self.evaluation, self.prompts
            nested = outer is not None
            try:
                self._begin_run(Run(1, lambda item: [times[item % len(times)]], {}, single=True, nested=nested))
                result = evaluate(*args, **kwargs)
                assert self.family.evaluation_step is not None
                self._finish_step(self.family.evaluation_step(result, bound.arguments))
            except BaseException as error:
                self._end_run(error=error)
                raise
            else:
                self._end_run()
            finally:
                self.run, self.evaluation, self._rows_of_text = outer, evaluation, []
                if nested:
                    self.prompts = prompts
            return result

        return wrapper

    def _set_timesteps(self, set_timesteps: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            result = set_timesteps(*args, **kwargs)
            self._end_run()
            times = self.family.timesteps(getattr(self.model, self.family.scheduler))
            self._begin_run(Run(len(times) - 1, lambda item: times, self.arguments or {}))
            return result

        return wrapper

    def _cut_schedule(self, get_timesteps: Callable) -> Callable:
        """The model says at which step it begins, where a given image stands for those before it."""

        def wrapper(*args, **kwargs):
            result = get_timesteps(*args, **kwargs)
            scheduler = getattr(self.model, self.family.scheduler)
            self._move_to(len(scheduler.timesteps) - len(result[0]))
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
            if index is not None:
                self._move_to(index)
            self._in_step = True
            try:
                stepped = self.family.step(step, bound.arguments)
            finally:
                self._in_step = False
            self._finish_step(stepped)
            return stepped.result

        return wrapper

    def _begin_run(self, run: Run) -> None:
        self.run, self._rows_of_text = run, []
        try:
            self._tell("on_run_begin", run)
        except BaseException as error:
            self._end_run(error=error)
            raise

    def _move_to(self, index: int) -> None:
        if self.run is not None and index != self.run.index:
            self._tell("on_start_index", self.run, index)
            self.run.index = index

    def _finish_step(self, step) -> None:
        run = self.run
        assert run is not None
        try:
            self._tell("on_step", run, step)
        finally:  # the scheduler has made the step, whatever a subscriber says
            run.index += 1
            run.denoiser_ran = False
            run.evaluations.clear()

    def _end_run(self, images: list | None = None, result: Any = None, error: BaseException | None = None) -> None:
        """Tells every subscriber, then raises the first error of one of them, unless the run ended with its own."""
        run, self.run, self.evaluation, self._rows_of_text = self.run, None, None, []
        failure: BaseException | None = None
        for subscriber in list(self.subscribers) if run is not None else ():
            try:
                subscriber.on_run_end(run, images, result, error)
            except BaseException as raised:
                failure = failure or raised
        if failure is not None and error is None:
            raise failure

    def _tell(self, event: str, *args) -> None:
        for subscriber in list(self.subscribers):  # one may leave meanwhile
            getattr(subscriber, event)(*args)

    # --- rows

    def _denoiser_called(self, name: str, *values) -> None:
        # Outside of a run somebody calls the denoiser by hand: the only step of a run.
        run = self.run or Run(1, lambda item: None, {}, single=True, nested=True)
        run.denoiser_ran = True
        self.evaluation = Evaluation(self, run, dict(zip(self.family.denoiser_inputs, values)))
        self._tell("on_evaluation", self.evaluation)

    def match(self, inputs: DenoiserInputs, run: Run) -> list[Place]:
        """Branch and picture of each row. Comparing texts takes time, and most come again at every step."""
        version = (inputs.branches, frozenset(run.evaluations), *map(tensor_version, inputs.key))
        for key, known_version, rows in self._rows_of_text:
            same = known_version == version and len(key) == len(inputs.key)
            if same and all(map(operator.is_, key, inputs.key)):
                return rows
        states = {branch: [prompt.states for prompt in prompts] for branch, prompts in self.prompts.items()}
        rows = match_rows(inputs.texts(), states, self.family.branch_order, run.evaluations, inputs.branches)
        self._rows_of_text = [(inputs.key, version, rows), *self._rows_of_text[: KNOWN_TEXTS - 1]]
        return rows
