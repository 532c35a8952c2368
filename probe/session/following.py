"""Where a run is while it is edited: which step, which row is whose text, and where in it the words are."""

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from toushi.hooks.module_hooks import argument_hooks
from toushi.probe.editing.edit import BadEdit
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall, Family, JointSequence, submodule
from toushi.probe.recording.encoder_capture import EncodedIds, place_in
from toushi.probe.session.patching import wrapped_run
from toushi.probe.session.row_matching import Place, known, places


class Following:
    """`with Following(...) as run:` knows of every run of the denoiser, and of the encoder, what it is given.

    `twice`: the prompts are read without edits first (`held`), to learn where their words are, then with them.
    `by_step`: whether it matters which step it is. `beginning(count)` is called when a run of so many steps begins.
    """

    def __init__(self, model, family: Family, twice: bool, by_step: bool, beginning: Callable[[int], None]):
        self.model, self.family = model, family
        self.twice, self.by_step, self.beginning = twice, by_step, beginning
        self.step, self.count = 0, 1
        self.evaluations: Counter[Place] = Counter()  # in this step
        self.arguments: Mapping[str, Any] | None = None  # of the `sample` that is running
        self.texts: dict[str, list[EncodedPrompt]] = {}
        self.aside: list[EncodedPrompt] = []  # encoded outside of `sample`
        self.rows: list[tuple[Place, int] | None] = []  # whose each row is, and where in it the text begins
        self.joint: Sequence[JointSequence] | None = None
        self.cells, self.keys = 0, None
        self.unread: list[Place] = []
        self.held = False
        self.wires = ExitStack()

    def __enter__(self) -> "Following":
        model, family = self.model, self.family
        watched = {family.denoiser: (submodule(model, family.denoiser), family.denoiser_inputs)}
        if self.twice:
            watched[family.text_encoder] = (submodule(model, family.text_encoder), [family.input_ids])
        with ExitStack() as wires:
            wires.enter_context(argument_hooks(watched, self._begin))
            around = self._encoding, self._sampling, self._evaluating, self._beginning, self._stepping, self._starting
            wires.enter_context(wrapped_run(model, family, *around))
            self.wires = wires.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self.wires.close()

    def _encoding(self, encode_prompt: Callable) -> Callable:
        signature = inspect.signature(encode_prompt)
        plainly = getattr(type(self.model), self.family.encode_prompt).__get__(self.model)

        def copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
            # A pipeline may put its template around the prompts in the very list that it was given.
            return {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}

        def wrapper(*arguments, **named):
            bound = signature.bind(*arguments, **named)
            given = copied(bound.arguments)
            before = self.texts if self.arguments is not None else {}
            first = plainly if self.twice else encode_prompt
            self.held = True
            try:
                with EncodedIds(self.family, self.model) as ids:
                    result = first(*bound.args, **bound.kwargs)
            finally:
                self.held = False
            said = EncodePromptCall(result, self.model, given, self.arguments or {}, ids.found, before)
            texts = self.family.encoded_prompts(said)
            if self.twice:
                self.texts = {**before, **texts}
                self.unread = [(branch, item) for branch, some in texts.items() for item in range(len(some))]
                bound.arguments.update(copied(given))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # they were said a moment ago
                    result = encode_prompt(*bound.args, **bound.kwargs)
                    texts = self.family.encoded_prompts(said._replace(result=result))
            self.texts = {**before, **known(texts, self.aside)}
            if self.arguments is None:
                self.aside += [text for some in texts.values() for text in some]
            return result

        return wrapper

    def _sampling(self, sample: Callable) -> Callable:
        signature = inspect.signature(sample)

        def wrapper(*arguments, **named):
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            given = self.family.given_prompts(bound.arguments)
            self.texts = known(given, self.aside)
            self.arguments = bound.arguments
            try:
                return sample(*arguments, **named)
            finally:
                self.arguments = None

        return wrapper

    def _beginning(self, set_timesteps: Callable) -> Callable:
        def wrapper(*arguments, **named):
            result = set_timesteps(*arguments, **named)
            self.step, self.count = 0, len(self.family.timesteps(getattr(self.model, self.family.scheduler))) - 1
            self.evaluations.clear()
            self.beginning(self.count)
            return result

        return wrapper

    def _starting(self, index: int) -> None:
        self.step = index

    def _stepping(self, step: Callable) -> Callable:
        signature = inspect.signature(step)

        def wrapper(*arguments, **named):
            bound = signature.bind(*arguments, **named)
            index = self.family.step_index(getattr(self.model, self.family.scheduler), bound.arguments, self.step)
            if index is not None and index != self.step:  # a run may begin in the midst
                if self.evaluations and self.by_step:
                    raise BadEdit(
                        f"this run began at step {index} without saying so, so that the wrong steps were edited: "
                        "edit all of them (leave out steps)"
                    )
                self.step = index
            result = step(*arguments, **named)
            self.step += 1
            self.evaluations.clear()
            return result

        return wrapper

    def _evaluating(self, evaluate: Callable) -> Callable:
        """One evaluation aside counts as the only step of a run."""

        def wrapper(*arguments, **named):
            aside = (self.step, self.count, self.texts, self.evaluations)
            self.step, self.count, self.evaluations = 0, 1, Counter()
            try:
                return evaluate(*arguments, **named)
            finally:
                self.step, self.count, self.texts, self.evaluations = aside

        return wrapper

    def _begin(self, name: str, *given) -> None:
        """The encoder or the denoiser is about to run: which row is which text?"""
        if self.held:
            return
        if name == self.family.denoiser:
            scene = self.family.read_inputs(self.model, dict(zip(self.family.denoiser_inputs, given)))
            self.joint, self.cells, self.keys = scene.joint, scene.grid[0] * scene.grid[1], scene.keys
            states = {branch: [text.states for text in some] for branch, some in self.texts.items()}
            whose = places(scene.texts(), states, self.family.branch_order, self.evaluations)
            self.evaluations.update(whose)
            self.rows = [(place, 0) for place in whose]
        else:
            self.joint = None
            self.rows = [] if given[0] is None else [self._whose(ids) for ids in given[0].tolist()]

    def _whose(self, ids: list[int]) -> tuple[Place, int] | None:
        """Whose these ids are, with padding behind or before them, and where they begin."""
        for place in self.unread:
            start = place_in(ids, list(self.texts[place[0]][place[1]].ids))
            if start is not None:
                self.unread.remove(place)
                return place, start
        return None

    def known_rows(self) -> list[tuple[int, str, EncodedPrompt, int]]:
        """Row, branch, text, and where in the row the text begins."""
        rows = [(row, *found) for row, found in enumerate(self.rows) if found is not None]
        return [(row, branch, self.texts[branch][item], start) for row, (branch, item), start in rows]
