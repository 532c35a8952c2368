"""One run under `record`: from attention calls to maps, step by step, one trace for each picture of the batch."""

import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toushi.hooks.attention import Call, probabilities_of
from toushi.hooks.hook_error import HookError
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.preview import preview
from toushi.probe.pipelines.family import DenoiserInputs, SchedulerStep
from toushi.probe.pipelines.size_estimate import MapSize
from toushi.probe.recording.forecast import OverBudget, check, fits, forecast_of, reason_not_heads
from toushi.probe.recording.picture_manifest import picture_manifest
from toushi.probe.recording.policy import KeptColumns
from toushi.probe.recording.step_maps import Maps, RowColumns, column_range
from toushi.probe.recording.unrecordable import Unrecordable, described
from toushi.probe.session.row_matching import Place, group_rows_by_layout
from toushi.probe.session.subscriber import Evaluation, Run
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.writer import TraceWriter

if TYPE_CHECKING:
    from toushi.probe.recording.record import Recording

# Small calls are read together at the end of an evaluation, which is twice as fast as one by one while the model runs;
# until then their queries must be held. Large ones are read at once, while they are in the cache.
PENDING_MAX_BYTES = 1 << 20


class KeptMean(UserWarning):
    """Every head would not fit the budget, so only their mean is kept."""


def grid_of(latent: tuple[int, int], cells: int) -> tuple[int, int]:
    """Rows and columns of a map with so many cells: the latent's own grid, or that grid 2, 3, 4 … times coarser."""
    for coarser in range(1, max(latent) + 1):
        grid = (-(-latent[0] // coarser), -(-latent[1] // coarser))
        if grid[0] * grid[1] == cells:
            return grid
    raise Unrecordable(f"{cells} image positions are no whole fraction of a latent of {latent[0]}x{latent[1]} cells")


class RunRecorder:
    """Filled by the recording: `begin_evaluation`, then `take` at each attention call, `finish_step` at the end."""

    def __init__(self, recording: "Recording", run: Run, metadata: Mapping[str, Any]):
        self.recording, self.run, self.metadata = recording, run, metadata
        self.session, self.family, self.policy = recording.session, recording.family, recording.policy
        self.recorded_steps = self.policy.recorded(run.count)
        self.keep = self.policy.keep  # None until the first recorded step shows whether every head fits the budget
        self.keep_reason: str | None = None
        self.writers: list[TraceWriter] = []
        self.columns: dict[Place, KeptColumns] = {}  # of each branch and picture
        self.site_info: dict[str, dict] = {}  # site -> its entry in the manifest
        self.sizes: dict[str, MapSize] = {}  # tensor name -> size, of the first picture
        self.kernels: set[str] = set()
        self.threads = torch.get_num_threads()  # that the denoiser computes with
        self.inputs: DenoiserInputs | None = None  # of the evaluation that is running
        self.rows: list[Place] = []
        self.kept_rows: list[tuple[int, Place]] = []  # those whose maps are wanted in this evaluation
        self.column_range = slice(0, 0)  # that the kept rows need together
        self.row_columns: list[RowColumns] = []  # of each kept row, counted in that range
        self.range_of: list[tuple[int, Place]] = []  # the rows that these two belong to
        self.sites_taken: set[str] = set()  # in this evaluation
        self.refusal: OverBudget | None = None
        self.is_size_checked = True  # since the last site was added
        self._begin_step()

    def _begin_step(self) -> None:
        self.kept_rows = []
        self.pending: list[Call] = []
        self.pending_bytes = 0
        self.maps: list[Maps] = []
        self.started = time.perf_counter()

    @property
    def is_step_recorded(self) -> bool:
        return self.run.index in self.recorded_steps

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the finest grid; (0, 0) before the first recorded evaluation."""
        return (0, 0) if self.inputs is None else self.inputs.grid

    def start_at(self, index: int) -> None:
        """The run makes this step next, not the one that was expected."""
        if self.run.denoiser_ran and self.policy.steps is not None:
            raise Unrecordable(
                f"this run is at step {index} without saying so before, so `steps=` would select the wrong ones: "
                "record all of them (remove steps=…)"
            )
        if index > self.run.index and not self.writers and self.recording.resumed is None:
            self.recorded_steps = [step for step in self.recorded_steps if step >= index]
            if not self.recorded_steps and self.policy.steps is not None:
                raise ToushiError(f"steps: this run begins at step {index}, after all that were asked for")

    # --- evaluations and attention calls

    def begin_evaluation(self, evaluation: Evaluation) -> None:
        if threading.get_ident() != self.run.thread:
            raise Unrecordable(
                "the model was run from a second thread while a run was recorded: "
                "give each thread a model and a recording of its own"
            )
        self.threads = torch.get_num_threads()
        if not self.is_step_recorded:
            return
        self._read_pending()  # they belong to the rows of the evaluation before this one
        self.inputs, self.rows = evaluation.inputs, evaluation.rows
        wanted = self.policy.branches
        self.kept_rows, self.sites_taken = [], set()
        for row, place in enumerate(self.rows):
            if place not in self.columns:
                branch, picture = place
                self.columns[place] = self.policy.columns(self.session.prompts[branch][picture], branch)
            # Of several evaluations in one step the first is kept (Heun's second one looks from another place).
            if self.run.evaluations[place] == 1 and (wanted is None or place[0] in wanted):
                self.kept_rows.append((row, place))
        if self.kept_rows != self.range_of:
            self.range_of = self.kept_rows
            self.column_range, self.row_columns = column_range([self.columns[place] for _, place in self.kept_rows])

    def take(self, call: Call) -> None:
        """One attention call at one site: its maps are kept if this is the first evaluation of the step."""
        if not self.is_step_recorded or not self.kept_rows or self.inputs is None:
            return
        kind = self.recording.selected[call.site].kind
        cells = self._check_shape(call, kind)
        if call.site in self.sites_taken:
            raise Unrecordable(f"{call.site}: attends twice in one evaluation; name the modules inside it instead")
        self.sites_taken.add(call.site)
        if call.site not in self.site_info:
            _, heads, _, keys = call.shape
            self.site_info[call.site] = {"kind": kind, "grid": list(grid_of(self.grid, cells)), "heads": heads}
            self._add_size(call.site, heads, cells, keys)
        if self.refusal is None:  # else they are only measured
            self.pending.append(call)
            self.pending_bytes += call.bytes
            if self.pending_bytes > PENDING_MAX_BYTES or call.inputs.query.is_inference():
                self._read_pending()  # inference tensors do not tell of changes

    def _check_shape(self, call: Call, kind: str) -> int:
        """Number of image cells of the call. Raises Unrecordable if rows, sequence or keys are not the expected ones."""
        assert self.inputs is not None
        rows, _, cells, keys = call.shape
        joint = self.inputs.joint
        if rows != len(self.rows):
            raise Unrecordable(f"{call.site}: expected {len(self.rows)} rows, one for each text, but {rows} came")
        if kind != "cross":
            return cells
        columns = self.column_range.stop
        if joint is not None:
            image = self.grid[0] * self.grid[1]
            last = max(sequence.image for sequence in joint) + image
            if cells != keys or cells < last:
                raise Unrecordable(f"{call.site}: expected one sequence of at least {last}, but {cells}x{keys} came")
            cells, columns = image, max(sequence.text + sequence.columns for sequence in joint)
        if keys < columns:
            raise Unrecordable(f"{call.site}: expected {columns} text columns, but it looks at {keys} keys")
        if self.inputs.keys not in (None, keys):
            raise Unrecordable(
                f"{call.site}: looks at {keys} keys, and the text has {self.inputs.keys} columns: which keys are the "
                f"text's is not known for {self.family.name}. Leave it out with sites=…"
            )
        return cells

    def _read_pending(self) -> None:
        """Makes the maps of the calls that wait."""
        if not self.is_size_checked:
            self._check_size()
        calls, self.pending, self.pending_bytes = self.pending, [], 0
        stored, mean = self._stored_dtype, self.keep in ("mean", "sum")
        joint = None if self.inputs is None else self.inputs.joint
        kinds = {name: site.kind for name, site in self.recording.selected.items()}
        for call in calls:
            if call.stale:
                raise Unrecordable(f"{call.site}: its queries or keys were changed in place after they were used")
            self.kernels.add(call.kernel)
        # Pads are added up before they are rounded.
        precise = torch.float32 if any(columns.pads is not None for columns in self.row_columns) else stored
        crossing = [call for call in calls if joint is None and kinds[call.site] == "cross"]
        rows = None if len(self.kept_rows) == len(self.rows) else [row for row, _ in self.kept_rows]
        for call, values in zip(crossing, probabilities_of(crossing, self.column_range, rows, mean, precise)):
            self.maps += Maps(call.site, self.kept_rows, self.row_columns, values, None).with_pads_summed(stored)
        places = dict(self.kept_rows)
        for call in (call for call in calls if call not in crossing):
            whole = kinds[call.site] == "self"
            for sequence, group in group_rows_by_layout(places, None if whole else joint).items():
                kept = [(row, places[row]) for row in group]
                rows = None if len(group) == len(self.rows) else group
                if sequence is None:
                    values = call.probabilities(slice(None), rows, None, mean, stored)
                    self.maps.append(Maps(call.site, kept, None, values, None))
                    continue
                image = slice(sequence.image, sequence.image + self.grid[0] * self.grid[1])
                columns = slice(sequence.text, sequence.text + sequence.columns)
                text = call.probabilities(columns, rows, image, mean)
                # By the kernel's own log-sum-exp. Adding up the image's keys instead, as the tests do, would cost as
                # much as the attention itself.
                rest = (1 - text.sum(-2)).clamp_(min=0).to(stored)
                own = [self.row_columns[self.kept_rows.index(one)] for one in kept]
                values = text[..., self.column_range, :].to(precise)
                self.maps += Maps(call.site, kept, own, values, rest).with_pads_summed(stored)

    # --- size

    def _add_size(self, name: str, heads: int, cells: int, keys: int) -> None:
        """Adds a site to the forecast."""
        joint = self.inputs is not None and self.inputs.joint is not None
        for _, place in self.kept_rows:
            if place[1] == 0:
                whole = self.recording.selected[name].kind == "self"
                kept = keys if whole else self.columns[place].count + joint
                self.sizes[layout.map_key(name, place[0])] = MapSize(heads, kept, cells)
        self.is_size_checked = False

    def _check_size(self) -> None:
        """Once the forecast is over the budget no more maps are made, only measured."""
        self.is_size_checked = True
        forecast = forecast_of(self.sizes.values(), self.policy, len(self.recorded_steps), self.grid)
        pictures = 1 + max(picture for _, picture in self.rows)
        if self.keep is None and fits(forecast, "heads", self.policy, pictures):
            return
        try:
            check(forecast, self.keep or "mean", self.policy, pictures)
            if self.keep is None:
                self._decide("mean", reason_not_heads(forecast, self.policy, pictures))
        except OverBudget as refusal:
            self.refusal = refusal
            self.maps, self.pending = [], []

    def _decide(self, keep: str, reason: str) -> None:
        """Settles what is kept, where that was left open. Maps that were read until now become what is kept."""
        self.keep, self.keep_reason = keep, reason
        self.maps = [maps.stored(self._stored_dtype, mean=keep == "mean") for maps in self.maps]
        if keep == "mean":
            warnings.warn(KeptMean(reason), stacklevel=2)

    @property
    def _stored_dtype(self) -> torch.dtype:
        """Sums are kept in fp32, and so is what may still become a mean."""
        return torch.float32 if self.keep in (None, "sum") else getattr(torch, self.policy.dtype)

    # --- steps and traces

    def finish_step(self, step: SchedulerStep, unread: Mapping[str, str]) -> None:
        """Writes what was read since the last step."""
        if self.is_step_recorded:
            if unread:
                raise Unrecordable(described(unread))
            self._read_pending()
            if self.refusal is not None:
                raise self.refusal
            if self.keep is None:
                self._decide("heads", "every head fits the budget")
            if not self.writers:
                self._open_writers()
            seconds = round(time.perf_counter() - self.started, 6)
            info = {"seconds": seconds, "evaluations": max(self.run.evaluations.values(), default=0)}
            # A copy: the sampler, or its caller, may change its latents while they wait for the disk.
            latents = self.family.unpack_latents(step.latents.detach(), self.grid)
            latents = latents.to("cpu", torch.float32, copy=True)
            model, previews = self.recording.model, None
            if step.denoised is not None and hasattr(model, "vae"):
                previews = preview(model.vae, self.family.cell_pixels(model), step.denoised.float()).cpu()
            arrays = self._arrays()
            for picture, writer in enumerate(self.writers):
                tensors = arrays[picture]
                tensors["latent"] = latents[picture].numpy()
                if previews is not None:
                    tensors["preview"] = previews[picture].numpy()
                times = self.run.times(picture)
                writer.write_step(self.run.index, tensors, time=times[self.run.index] if times else None, **info)
        self._begin_step()

    def _arrays(self) -> list[dict[str, np.ndarray]]:
        """The maps of this step by name, for each picture."""
        arrays: list[dict[str, np.ndarray]] = [{} for _ in self.writers]
        for maps in self.maps:
            grid = self.site_info[maps.site]["grid"]
            values = maps.values.cpu().numpy()
            values = values.reshape(*values.shape[:-1], *grid)
            for number, (_, (branch, picture)) in enumerate(maps.rows):
                own = slice(None) if maps.columns is None else maps.columns[number].single
                arrays[picture][layout.map_key(maps.site, branch)] = values[number][..., own, :, :]
                if maps.rest is not None:
                    rest = maps.rest[number].cpu().numpy()
                    arrays[picture][layout.rest_key(maps.site, branch)] = rest.reshape(*rest.shape[:-1], *grid)
        return arrays

    def _open_writers(self) -> None:
        count = 1 + max((picture for _, picture in self.rows), default=0)
        for picture, folder in enumerate(self.recording.folders.new(count)):
            writer = TraceWriter(folder, picture_manifest(self, picture, count), resume=self.recording.resumed)
            self.writers.append(writer)
            if layout.ENCODER in writer.manifest.files:
                continue
            encoder = {}
            for branch, arrays in self.recording.encoder_arrays.items():
                if branch in writer.manifest.branches:
                    encoder |= {f"{key}/{branch}": array for key, array in arrays[picture].items()}
            if encoder:
                writer.write_encoder(encoder)

    def end(self, images: Iterable | None, safety: Sequence[str] | None = None) -> None:
        """The run came to its end; `images` (PIL) are its pictures if known, `safety` a checker's verdicts."""
        for writer, verdict in zip(self.writers, safety or ()):
            writer.update(safety=verdict)
        if self.writers and images is not None:
            for writer, image in zip(self.writers, images):
                writer.write_image(image)
        self._close_writers(complete=self.run.index >= self.run.count)

    def abort(self, error: BaseException) -> None:
        """The run was broken off: what is finished stays readable, and the manifest says that it is not complete."""
        refused = isinstance(error, ToushiError | HookError)
        if not self.writers and self.site_info and not refused:
            self._open_writers()
        self._close_writers(complete=False)

    def _close_writers(self, complete: bool) -> None:
        failure = None
        for writer in self.writers:
            try:
                writer.close(complete)
            except ToushiError as error:
                failure = error
        if failure is not None:
            raise failure
