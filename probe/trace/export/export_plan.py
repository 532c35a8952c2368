"""The plan of an export of a picture's maps: branches, words or tokens, arrays, and their description."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toushi.probe.text.alignment import Word, same_unknown
from toushi.probe.trace.picture_datasets import choose_words
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import AttentionQuery, WordSpec, select_sites
from toushi.probe.trace.trace_errors import NotRecorded

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class BranchPlan:
    """The exported part of one branch: words, each with its query, or all tokens with one query."""

    name: str
    labels: list[str]
    queries: list[AttentionQuery]
    entries: list[dict[str, object]]

    @property
    def by_token(self) -> bool:
        return self.queries[0].weights is None

    @property
    def unknown(self) -> list[bool]:
        """Of each word or token, whether the vocabulary lacks it."""
        return [entry["kind"] == "unknown" if self.by_token else bool(entry["unknown"]) for entry in self.entries]

    def values(self, site: str, step: int) -> np.ndarray | None:
        """float32 [head?, word or token, y, x]; None where the step lacks the site."""
        maps = [query.step(site, step) for query in self.queries]
        if maps[0] is None:
            return None
        together = maps[0] if self.by_token else np.stack([one for one in maps if one is not None], -3)
        return together.astype(np.float32, copy=False)


@dataclass(frozen=True)
class ArrayPlan:
    """One array, which is written step by step."""

    name: str
    query: AttentionQuery
    sites: list[str]  # of one grid
    shape: tuple[int, ...]  # [step, layer, head?, token?, y, x]
    about: dict[str, object]

    @property
    def axes(self) -> list[str]:
        middle = ["head"] * self.query.by_head(self.sites[0]) + ["token"] * (self.query.weights is None)
        return ["step", "layer", *middle, "y", "x"]

    def at(self, step: int) -> np.ndarray:
        """float32 [layer, head?, token?, y, x]."""
        result = np.full(self.shape[1:], np.nan, np.float32)
        for site, place in zip(self.sites, result):
            if (maps := self.query.step(site, step)) is not None:
                place[tuple(map(slice, maps.shape))] = maps
        return result


def plan_branches(
    trace: Trace, words: Sequence[WordSpec] | None, tokens: bool
) -> tuple[list[BranchPlan], dict[str, str]]:
    """The branches to export, and what is left out, with the reason."""
    sites, left_out, result = select_sites(trace.manifest), {}, []
    chosen, without_attention = ({name: {} for name in trace.branches}, {}) if tokens else choose_words(trace, words)
    for name in trace.branches if words is None else chosen:
        try:
            every = AttentionQuery(trace.files, None, name, sites)
        except NotRecorded as missing:
            if words is not None:
                raise
            left_out[name] = str(missing)
            continue
        left_out |= {key: why for key, why in without_attention.items() if key.startswith(f"{name}: ")}
        if tokens:
            result.append(_of_tokens(name, every))
        elif name in chosen:
            result.append(_of_words(trace, name, chosen[name], sites))
    if not result:
        why = next(iter(left_out.values()), "the prompt has no words")
        raise NotRecorded(f"There is nothing to export: {why.rstrip('.')}. All tokens can be exported (--tokens).")
    return result, left_out


def _of_words(trace: Trace, name: str, words: Mapping[str, Word], sites: list[str]) -> BranchPlan:
    queries = [AttentionQuery(trace.files, word, name, sites) for word in words.values()]
    every, tokens = trace.words(name), trace.tokens(name)
    entries = []
    for label, word in words.items():
        same = [other.text for other in same_unknown(every, tokens, word.span)]  # words of one <unk> have one map
        entries.append({"word": label, "text": word.text, "start": word.start, "end": word.end, "unknown": same})
    return BranchPlan(name, list(words), queries, entries)


def _of_tokens(name: str, every: AttentionQuery) -> BranchPlan:
    places = every.manifest.branches[name].places()
    entries = [{"token": token.column, "text": token.text, "kind": token.kind} for token in places]
    return BranchPlan(name, [token.text for token in places], [every], entries)


def describe(trace: Trace, branches: list[BranchPlan]) -> dict[str, object]:
    fields = trace.manifest.as_dict()
    given = {name: fields.get(name) for name in ("prompt", "negative_prompt", "model", "seed", "size", "guidance")}
    of = "tokens" if branches[0].by_token else "words"
    return {
        "format": "toushi-export",
        "version": 1,
        **given,
        "unit": "probability",
        "keep": trace.keep,
        "complete": trace.complete,
        "summed": {branch.name: _summed(trace, branch) for branch in branches} if trace.keep == "sum" else None,
        "times": dict(zip(map(str, trace.steps), (None if math.isnan(t) else t for t in trace.times))),
        of: {branch.name: branch.entries for branch in branches},
    }


def _summed(trace: Trace, branch: BranchPlan) -> dict[str, int]:
    """Site -> the number of steps over which it was summed. Where a cache skipped it, there are fewer."""
    return {site: trace.step_count(site, branch.name) for site in branch.queries[0].sites}


def plan_arrays(branches: list[BranchPlan]) -> list[ArrayPlan]:
    arrays, names = [], set()
    for branch in branches:
        for number, query in enumerate(branch.queries):
            label = "tokens" if branch.by_token else _safe(branch.labels[number])
            about = {"tokens": branch.entries} if branch.by_token else branch.entries[number]
            shapes = {site: query.shape(site) for site in query.sites}
            grids = dict.fromkeys((shape[-2:], len(shape)) for shape in shapes.values())  # in the sites' order
            for grid in grids:
                sites = [site for site, shape in shapes.items() if (shape[-2:], len(shape)) == grid]
                shape = (len(query.steps), len(sites), *map(max, zip(*(shapes[site] for site in sites))))
                base = f"{branch.name}/{label}/{'x'.join(map(str, grid[0]))}"
                name = next(n for i in itertools.count(2) for n in (base, f"{base}-{i}") if n not in names)
                names.add(name)
                arrays.append(ArrayPlan(name, query, sites, shape, {"branch": branch.name, **about}))
    return arrays


def _safe(label: str) -> str:
    """The label as one part of a path in a zip that can be unpacked safely."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]|^[._]+', "-", label)[:80] or "-"


def describe_arrays(arrays: list[ArrayPlan]) -> dict[str, object]:
    return {
        plan.name: {"axes": plan.axes, "steps": plan.query.steps, "layers": plan.sites, **plan.about} for plan in arrays
    }


def iterate_steps(arrays: list[ArrayPlan], tick: Tick) -> Iterator[tuple[ArrayPlan, Iterator[tuple[int, np.ndarray]]]]:
    """Each plan with (index, values) of every step."""
    total, done = sum(len(plan.query.steps) for plan in arrays), itertools.count(1)

    def steps(plan: ArrayPlan) -> Iterator[tuple[int, np.ndarray]]:
        for index, step in enumerate(plan.query.steps):
            yield index, plan.at(step)
            tick(next(done), total)

    for plan in arrays:
        yield plan, steps(plan)


def count_arrays(arrays: list[ArrayPlan]) -> str:
    return f"{len(arrays)} array{'s' * (len(arrays) != 1)}"
