"""One run of a model under `record`: its texts, its current step, one trace for each picture of the batch."""

import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.hooks.hook_error import WireError
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.preview import preview
from toushi.probe.pipelines.family import Encoded, Family, Scene, Site, Stepped, Stretch
from toushi.probe.recording.forecast import OverBudget, Size, check, forecast_of
from toushi.probe.recording.policy import Policy
from toushi.probe.recording.provenance import of_picture, surroundings
from toushi.probe.recording.step_maps import Maps, probabilities
from toushi.probe.session.row_matching import Place, alike, places
from toushi.probe.text.alignment import segment
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.writer import TraceWriter

# Small calls are read together at the end of an evaluation, which is twice as fast as one by one in the midst of the
# model; until then their queries must be held. Large ones are read at once, while they are in the cache.
HELD = 1 << 20  # bytes


class Unrecordable(ToushiError):
    """The model attends in a way that cannot be read or placed."""


@dataclass
class Texts:
    """What one call of encode_prompt gave: for each branch its prompts, and what the encoder did with them."""

    branches: dict[str, list[Encoded]]
    encoder: dict[str, list[dict[str, np.ndarray]]]


def grid_of(latent: tuple[int, int], cells: int) -> tuple[int, int]:
    """Rows and columns of a map with so many cells: the latent's own grid, or that grid 2, 3, 4 … times coarser."""
    for coarser in range(1, max(latent) + 1):
        grid = (-(-latent[0] // coarser), -(-latent[1] // coarser))
        if grid[0] * grid[1] == cells:
            return grid
    raise Unrecordable(f"{cells} image positions are no whole fraction of a latent of {latent[0]}x{latent[1]} cells")


class Run:
    """Filled from the wires: `evaluate` before the denoiser runs, `take` at each attention, `finish_step` after."""

    def __init__(
        self,
        model,
        family: Family,
        policy: Policy,
        sites: Mapping[str, Site],
        texts: Callable[[], Texts],
        folders: Callable[[int], list[Path]],
        count: int,
        times: Callable[[int], list[float] | None],
        about: Mapping[str, Any],
        resumed: bool = False,
    ):
        self.model, self.family, self.policy, self.sites = model, family, policy, sites
        self.texts, self.folders, self.about = texts, folders, about
        self.count, self.times = count, times
        self.recorded = policy.recorded(count)
        self.thread = threading.get_ident()
        self.resumed = resumed  # whether the writers go on in an older trace
        self.index = 0
        self.writers: list[TraceWriter] = []
        self.columns: dict[Place, list[int]] = {}
        self.seen: dict[str, dict] = {}  # site -> its entry in the manifest
        self.sizes: dict[str, Size] = {}  # key -> size, of the first picture
        self.kernels: set[str] = set()
        self.latent: tuple[int, int] = (0, 0)
        self.joint: tuple[Stretch, ...] | None = None
        self.keys: int | None = None
        self.rows_of_text: list[tuple[tuple[Tensor, ...], tuple[int, ...], list[Place]]] = []
        self.rows: list[Place] = []
        self.taken: set[str] = set()
        self.spanned: list[tuple[int, Place]] = []
        self.span: tuple[slice, list[list[int] | slice]] = (slice(0, 0), [])
        self.refusal: OverBudget | None = None
        self.measured = True  # whether the forecast was held against the budget since a site was added
        self._begin_step()

    def _begin_step(self) -> None:
        self.ran = False  # whether the denoiser was run in this step
        self.evaluations: Counter[Place] = Counter()
        self.fresh: list[tuple[int, Place]] = []
        self.waiting: list[Call] = []
        self.held = 0
        self.maps: list[Maps] = []
        self.started = time.perf_counter()

    @property
    def recording(self) -> bool:
        return self.index in self.recorded

    def at(self, index: int) -> None:
        """The sampler is about to take this step. A run that begins in the midst has no steps before it."""
        if index != self.index and self.ran and self.policy.steps is not None:
            raise Unrecordable(
                f"this run began at step {index} without saying so, so that the wrong steps would be kept: "
                "record all of them (leave out steps=…)"
            )
        if index > self.index and not self.writers and not self.resumed:
            self.recorded = [step for step in self.recorded if step >= index]
            if not self.recorded and self.policy.steps is not None:
                raise ToushiError(f"steps: this run begins at step {index}, after all that were asked for")
        self.index = index

    # --- from the wires

    def evaluate(self, inputs: Mapping[str, Any]) -> None:
        """The denoiser is about to run: finds out which rows are whose."""
        if threading.get_ident() != self.thread:
            raise Unrecordable(
                "the model was run from a second thread while a run was recorded: "
                "give each thread a model and a recording of its own"
            )
        self.ran = True
        if not self.recording:
            return
        self._read()  # what waits belongs to the rows of the evaluation before this one
        scene = self.family.scene(self.model, inputs)
        self.latent, self.joint, self.keys = scene.grid, scene.joint, scene.keys
        self.rows = self._whose(scene)
        wanted = self.policy.branches
        self.fresh, self.taken = [], set()
        for row, place in enumerate(self.rows):
            self.evaluations[place] += 1
            # Of several evaluations in one step the first is kept (Heun's second one looks from another place).
            if self.evaluations[place] == 1 and (wanted is None or place[0] in wanted):
                self.fresh.append((row, place))
        if self.fresh != self.spanned:
            self.spanned, self.span = self.fresh, self._span()

    def _whose(self, scene: Scene) -> list[Place]:
        """Of each row the branch and picture. Comparing texts takes time, and most come again at every step."""
        version = tuple(0 if key.is_inference() else key._version for key in scene.key)
        for key, known_version, rows in self.rows_of_text:
            if known_version == version and len(key) == len(scene.key) and all(map(operator.is_, key, scene.key)):
                return rows
        known = self.texts()
        states = {branch: [text.states for text in some] for branch, some in known.branches.items()}
        rows = places(scene.texts(), states, self.family.rows, self.evaluations)
        self.rows_of_text = [(scene.key, version, rows), *self.rows_of_text[:3]]
        for place in rows:
            if place not in self.columns:
                self.columns[place] = self.policy.columns(known.branches[place[0]][place[1]], place[0])
        return rows

    def _span(self) -> tuple[slice, list[list[int] | slice]]:
        """The stretch of columns that the fresh rows need together, and where in it each row's own ones are."""
        every = [self.columns[place] for _, place in self.fresh]
        first = min((columns[0] for columns in every if columns), default=0)
        last = max((columns[-1] + 1 for columns in every if columns), default=0)
        own: list[list[int] | slice] = []
        for columns in every:
            at = [column - first for column in columns]
            whole = bool(at) and at == list(range(at[0], at[-1] + 1))
            own.append(slice(at[0], at[-1] + 1) if whole else at)
        return slice(first, last), own

    def take(self, call: Call) -> None:
        """One attention call at one site: its maps are wanted if this is the first evaluation of the step."""
        if not self.recording or not self.fresh:
            return
        rows, heads, cells, keys = call.shape
        site = self.sites[call.site]
        if rows != len(self.rows):
            raise Unrecordable(f"{call.site}: expected {len(self.rows)} rows, one for each text, but {rows} came")
        columns = self.span[0].stop
        if self.joint is not None and site.kind == "cross":
            image = self.latent[0] * self.latent[1]
            last = max(stretch.image for stretch in self.joint) + image
            if cells != keys or cells < last:
                raise Unrecordable(f"{call.site}: expected one sequence of at least {last}, but {cells}x{keys} came")
            cells, columns = image, max(own.text + own.columns for own in self.joint)
        if site.kind == "cross" and keys < columns:
            raise Unrecordable(f"{call.site}: expected {columns} text columns, but it looks at {keys} keys")
        if site.kind == "cross" and self.keys not in (None, keys):
            raise Unrecordable(
                f"{call.site}: looks at {keys} keys, and the text has {self.keys} columns: which keys are the text's "
                f"is not known for {self.family.name}. Leave it out with sites=…"
            )
        if call.site in self.taken:
            raise Unrecordable(f"{call.site}: attends twice in one evaluation; name the modules inside it instead")
        self.taken.add(call.site)
        if call.site not in self.seen:
            self.seen[call.site] = {"kind": site.kind, "grid": list(grid_of(self.latent, cells)), "heads": heads}
            self._measure(call.site, heads, cells, keys)
        if self.refusal is None:  # else they are only measured
            self.waiting.append(call)
            self.held += call.bytes
            if self.held > HELD or call.what.query.is_inference():  # such tensors do not tell of changes
                self._read()

    def _read(self) -> None:
        """Makes the maps of the calls that wait."""
        if not self.measured:
            self._check()
        calls, self.waiting, self.held = self.waiting, [], 0
        stored = torch.float32 if self.policy.keep == "sum" else getattr(torch, self.policy.dtype)
        mean = self.policy.keep != "heads"
        for call in calls:
            if call.stale:
                raise Unrecordable(f"{call.site}: its queries or keys were changed in place after they were used")
            self.kernels.add(call.kernel)
        crossing = [call for call in calls if self.joint is None and self.sites[call.site].kind == "cross"]
        some = None if len(self.fresh) == len(self.rows) else [row for row, _ in self.fresh]
        read = probabilities(crossing, self.span[0], some, mean, stored)
        self.maps += [Maps(call.site, self.fresh, self.span[1], found, None) for call, found in zip(crossing, read)]
        fresh_places = dict(self.fresh)
        for call in (call for call in calls if call not in crossing):
            whole = self.sites[call.site].kind == "self"
            for stretch, rows in alike(fresh_places, None if whole else self.joint).items():
                fresh = [(row, fresh_places[row]) for row in rows]
                some = None if len(rows) == len(self.rows) else rows
                own = None if whole else [self.span[1][self.fresh.index(one)] for one in fresh]
                rest = None
                if stretch is None:
                    found = call.probabilities(slice(None), some, None, mean, stored)
                else:
                    image = slice(stretch.image, stretch.image + self.latent[0] * self.latent[1])
                    columns = slice(stretch.text, stretch.text + stretch.columns)
                    text = call.probabilities(columns, some, image, mean)
                    # By the kernel's own log-sum-exp. Adding up the image's keys instead, as the tests do, would
                    # cost as much as the attention itself.
                    rest = (1 - text.sum(-2)).clamp_(min=0).to(stored)
                    found = text[..., self.span[0], :].to(stored)
                self.maps.append(Maps(call.site, fresh, own, found, rest))

    def _measure(self, name: str, heads: int, cells: int, keys: int) -> None:
        """Adds a site to the forecast."""
        for _, place in self.fresh:
            if place[1] == 0:
                whole = self.sites[name].kind == "self"
                kept = keys if whole else len(self.columns[place]) + (self.joint is not None)
                self.sizes[layout.map_key(name, place[0])] = Size(heads, kept, cells)
        self.measured = False

    def _check(self) -> None:
        """Once the forecast is over the budget no more maps are made, only measured."""
        self.measured = True
        forecast = forecast_of(self.sizes.values(), self.policy, len(self.recorded), self.latent)
        try:
            check(forecast, self.policy, pictures=1 + max(item for _, item in self.rows))
        except OverBudget as refusal:
            self.refusal = refusal
            self.maps, self.waiting = [], []

    def finish_step(self, stepped: Stepped, blind: Mapping[str, str]) -> None:
        """The scheduler moved on: writes what was seen since the last step."""
        if self.recording:
            if blind:
                listed = "; ".join(f"{name} {why}" for name, why in blind.items())
                raise Unrecordable(f"these sites could not be read: {listed}. Leave them out with sites=…")
            self._read()
            if self.refusal is not None:
                raise self.refusal
            if not self.writers:
                self._open()
            seconds = round(time.perf_counter() - self.started, 6)
            info = {"seconds": seconds, "evaluations": max(self.evaluations.values(), default=0)}
            # A copy: the sampler, or its caller, may change its latents while they wait for the disk.
            latents = self.family.picture(stepped.latents.detach(), self.latent)
            latents = latents.to("cpu", torch.float32, copy=True)
            seen = None
            if stepped.foreseen is not None and hasattr(self.model, "vae"):
                seen = preview(self.model.vae, self.family.factor(self.model), stepped.foreseen.float()).cpu()
            found = self._arrays()
            for item, writer in enumerate(self.writers):
                tensors = found[item]
                tensors["latent"] = latents[item].numpy()
                if seen is not None:
                    tensors["preview"] = seen[item].numpy()
                times = self.times(item)
                writer.write_step(self.index, tensors, time=times[self.index] if times else None, **info)
        self.index += 1
        self._begin_step()

    def _arrays(self) -> list[dict[str, np.ndarray]]:
        """The maps of this step by name, for each picture."""
        found: list[dict[str, np.ndarray]] = [{} for _ in self.writers]
        for maps in self.maps:
            arrays = maps.values.cpu().numpy()
            arrays = arrays.reshape(*arrays.shape[:-1], *self.seen[maps.site]["grid"])
            for number, (_, (branch, item)) in enumerate(maps.fresh):
                own = slice(None) if maps.own is None else maps.own[number]
                found[item][layout.map_key(maps.site, branch)] = arrays[number][..., own, :, :]
                if maps.rest is not None:
                    rest = maps.rest[number].cpu().numpy()
                    rest = rest.reshape(*rest.shape[:-1], *self.seen[maps.site]["grid"])
                    found[item][layout.rest_key(maps.site, branch)] = rest
        return found

    # --- the traces

    def _open(self) -> None:
        texts = self.texts()
        count = 1 + max((item for _, item in self.rows), default=0)
        for item, folder in enumerate(self.folders(count)):
            writer = TraceWriter(folder, self._manifest(texts, item, count), resume=self.resumed)
            self.writers.append(writer)
            if layout.ENCODER in writer.manifest.files:
                continue
            encoder = {}
            for branch, some in texts.encoder.items():
                if branch in writer.manifest.branches:
                    encoder |= {f"{key}/{branch}": array for key, array in some[item].items()}
            if encoder:
                writer.write_encoder(encoder)

    def _manifest(self, texts: Texts, item: int, count: int) -> dict[str, Any]:
        prompts = {branch: some[item].prompt for branch, some in texts.branches.items()}
        kept = self.policy.branches
        branches = {}
        for branch, number in self.columns:
            if number == item and (kept is None or branch in kept):
                text = texts.branches[branch][item]
                branches[branch] = {
                    "tokens": text.tokens,
                    "words": segment(text.prompt) if text.prompt is not None else [],
                    "columns": None if self.policy.words is None else self.columns[branch, number],
                }
        if not branches:
            had = ", ".join(dict.fromkeys(branch for branch, _ in self.columns)) or "none"
            raise Unrecordable(f"expected a branch {' or '.join(kept or ())}, but this run has {had} (guidance of 1?)")
        encoder = {
            name: {"kind": "encoder", "grid": None, "heads": getattr(site.module, "heads", None)}
            for name, site in self.sites.items()
            if site.kind == "encoder"
        }
        factor = self.family.factor(self.model)
        return {
            **surroundings(self.model),
            "prompt": prompts.get("cond"),
            "negative_prompt": prompts.get("uncond"),
            "branches": {branch: branches[branch] for branch in ("cond", "uncond") if branch in branches},
            "sites": encoder | self.seen,
            "family": self.family.name,
            "not_recorded": self.family.not_recorded(self.model),
            "keep": self.policy.keep,
            "steps": {
                "count": self.count,
                "times": self.times(item),
                "recorded": None if len(self.recorded) == self.count else self.recorded,
            },
            "evaluations": max(self.evaluations.values(), default=None),
            "kept_evaluation": "first",
            "size": [self.latent[0] * factor, self.latent[1] * factor] if self.latent[0] else None,
            "kernel": ", ".join(sorted(self.kernels)) or None,
            "heat_map": getattr(self.model, "heat_map", None),
            "batch": count,
            "safety": None if getattr(self.model, "safety_checker", None) is None else "not run",
            "kept": {"words": self.policy.words, "dtype": self.policy.dtype, "budget": self.policy.budget},
            **{name: of_picture(value, item, count) for name, value in self.about.items()},
        }

    def end(self, pictures: Iterable | None, safety: Sequence[str] | None = None) -> None:
        """The run came to its end; `pictures` are what it drew, if that is known, `safety` what a checker said."""
        for writer, verdict in zip(self.writers, safety or ()):
            writer.update(safety=verdict)
        if self.writers and pictures is not None:
            for writer, picture in zip(self.writers, pictures):
                writer.write_image(picture)
        self._close(complete=self.index >= self.count)

    def abort(self, error: BaseException) -> None:
        """The run was broken off: what is finished stays readable, and the manifest says that it is not complete."""
        refused = isinstance(error, ToushiError | WireError)
        if not self.writers and self.seen and not refused:
            self._open()
        self._close(complete=False)

    def _close(self, complete: bool) -> None:
        failure = None
        for writer in self.writers:
            try:
                writer.close(complete)
            except ToushiError as error:
                failure = error
        if failure is not None:
            raise failure
