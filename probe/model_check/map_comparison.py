"""Recorded maps against a softmax that is computed from queries and keys of the same drawing, made once more."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toushi.probe.model_check.observation import (
    AttentionCall,
    FirstStep,
    argument_calls,
    attention_calls,
    explicit_softmax,
    read_inputs,
    step_calls,
)
from toushi.probe.pipelines.family import DenoiserInputs, Family, Model, submodule
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_format import PADS, map_key

ALL_CELLS = 256  # up to so many cells of a map are all compared, of larger ones CELLS
CELLS = 64
RowKey = tuple[str, int]  # branch, picture of the batch


def texts_of_prompts(
    base: FirstStep, changed: Mapping[RowKey, FirstStep], pictures: int
) -> list[tuple[Tensor, RowKey]]:
    """Text states of the base drawing with the prompt that each belongs to.

    A row belongs to the prompt whose change changed it. Rows that no prompt of `changed` changes are those of `uncond`,
    in their order.
    """
    texts: list[tuple[Tensor, RowKey]] = []
    for evaluation, rows in enumerate(base.texts):
        for row, text in enumerate(rows):
            keys = [key for key, other in changed.items() if not same_text(text, other.texts[evaluation][row])]
            if len(keys) == 1:
                texts.append((text, keys[0]))
            elif not keys:
                others = sum(branch == "uncond" for _, (branch, _) in texts)
                texts.append((text, ("uncond", others % pictures)))
    return texts


def same_text(first: Tensor, second: Tensor) -> bool:
    """Whether two texts [column, feature] are equal up to the rounding of batches of other lengths."""
    if first.shape != second.shape:
        return False
    size = first.abs().max().item() if first.numel() else 0.0
    return (first - second).abs().max().item() <= 1e-3 * size if size else bool((second == 0).all())


class MapComparison:
    """`with comparison.follow_drawing():` compares all that is drawn inside with the traces of the same drawing.

    `worst` is the largest difference of a probability, `where` its place, `compared` the number of maps.
    """

    def __init__(self, model: Model, family: Family, traces: Sequence[Trace], texts: Sequence[tuple[Tensor, RowKey]]):
        self.model, self.family, self.traces, self.texts = model, family, traces, texts
        self.steps = iter(traces[0].steps)  # of image-to-image the first ones are left out
        self.step, self.done = next(self.steps), set()
        self.inputs: DenoiserInputs | None = None
        self.rows: list[tuple[int, RowKey]] = []
        self.worst, self.where, self.compared = 0.0, "", 0

    @contextmanager
    def follow_drawing(self) -> Iterator[None]:
        sites = {name: site.module for name, site in self.family.sites(self.model).items() if site.kind == "cross"}
        denoiser = submodule(self.model, self.family.denoiser)
        with (
            attention_calls(sites, self._on_call),
            argument_calls(denoiser, self._on_evaluation),
            step_calls(self.model, self.family, self._on_step),
        ):
            yield

    def expected_count(self) -> int:
        """Maps that the traces hold."""
        return sum(1 for trace in self.traces for _ in maps_of(trace))

    def _on_step(self) -> None:
        self.step, self.done = next(self.steps, self.step), set()

    def _on_evaluation(self, arguments: dict[str, Any]) -> None:
        """Of several evaluations of a prompt in one step the first is recorded."""
        self.inputs = read_inputs(self.model, self.family, arguments)
        self.rows = []
        for row, text in enumerate(self.inputs.texts()):
            own = None if self.inputs.branches is None else self.inputs.branches[row]  # of rows with one text
            known = ((own or branch, picture) for other, (branch, picture) in self.texts if same_text(other, text))
            if (key := next((key for key in known if key not in self.done), None)) is not None:
                self.rows.append((row, key))
                self.done.add(key)

    def _on_call(self, call: AttentionCall) -> None:
        assert self.inputs is not None
        for row, (branch, picture) in self.rows:
            trace = self.traces[picture]
            file, key = trace.files.step(self.step), map_key(call.site, branch)
            if key not in file.keys:
                continue
            maps = file.read(key).astype(np.float64)
            maps = maps.reshape(*maps.shape[:2], -1)  # [head, token, cell]
            cells = choose_cells(maps.shape[2])
            joint = None if self.inputs.joint is None else self.inputs.joint[row]
            image, text = (0, 0) if joint is None else (joint.image, joint.text)
            softmax = explicit_softmax(call, row, [image + cell for cell in cells])
            places = trace.manifest.branches[branch]
            columns = [places.pad_columns if c == PADS else [c] for c in places.place_columns()]
            expected = torch.stack([softmax[..., [text + c for c in group or ()]].sum(-1) for group in columns], 1)
            self._compare(maps[..., cells], expected, key)
            if joint is not None:
                rest = file.read(f"{key}/rest").reshape(len(maps), -1)[:, cells]
                words = softmax[..., text : text + joint.columns].sum(-1)
                self._compare(rest, softmax.sum(-1) - words, f"{key}/rest")
            self.compared += 1

    def _compare(self, maps: np.ndarray, expected: Tensor, key: str) -> None:
        different = maps.shape != tuple(expected.shape)
        difference = 1.0 if different else float(np.abs(maps - expected.numpy()).max())
        if difference > self.worst or not self.where:
            self.worst, self.where = difference, f"step {self.step}, {key}"


def choose_cells(count: int) -> list[int]:
    """Indices of the cells of a map that are compared, spread over the picture."""
    return list(range(count)) if count <= ALL_CELLS else np.linspace(0, count - 1, CELLS).astype(int).tolist()


def maps_of(trace: Trace) -> Iterator[tuple[int, str, str]]:
    """Step, key of the maps and branch of every map of the image's attention to the text."""
    for step in trace.steps:
        for name, site in trace.sites.items():
            for branch in trace.branches:
                if site.kind == "cross" and map_key(name, branch) in trace.files.step(step).keys:
                    yield step, map_key(name, branch), branch


def largest_sum_error(trace: Trace) -> float:
    """How far text columns and rest are from 1 in a cell of any head, at most."""
    worst = 0.0
    for step, key, _ in maps_of(trace):
        file = trace.files.step(step)
        total = file.read(key).astype(np.float64).sum(1)
        if f"{key}/rest" in file.keys:
            total = total + file.read(f"{key}/rest")
        worst = max(worst, float(np.abs(total - 1).max()))
    return worst
