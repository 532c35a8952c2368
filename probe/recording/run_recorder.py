"""One run under `record`: from attention calls to maps, step by step, one trace for each picture of the batch."""

import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from toushi.hooks.attention import Call, probabilities_of
from toushi.hooks.hook_error import HookError
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.preview import preview
from toushi.probe.pipelines.family import DenoiserInputs, Images, SchedulerStep
from toushi.probe.pipelines.size_estimate import MapSize
from toushi.probe.recording.forecast import OverBudget, check_budget, fits_budget, forecast_from_maps, reason_not_heads
from toushi.probe.recording.picture_manifest import SiteEntry, picture_manifest
from toushi.probe.recording.policy import KeptColumns
from toushi.probe.recording.recording_plan import RecordingPlan
from toushi.probe.recording.step_maps import ColumnPlan, Maps, StepTensor, arrays_of_pictures
from toushi.probe.recording.unrecordable import (
    KeptMean,
    SiteLeftOut,
    StepsNotComputed,
    Unrecordable,
    check_shape,
    not_computed_message,
    unread_message,
)
from toushi.probe.session.map_grid import grid_of
from toushi.probe.session.row_matching import PromptKey, group_rows_by_layout
from toushi.probe.session.subscriber import Evaluation, Run, Session
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.step_array import StepArray
from toushi.probe.trace.writer import TraceWriter

# Small calls are read together at the end of an evaluation, which is twice as fast as one by one while the model
# computes. Until then their queries stay in memory. Large ones are read at once, while they are in the CPU's cache.
PENDING_MAX_BYTES = 1 << 20


class RunRecorder:
    """Called by the recording: `begin_evaluation`, then `add_call` at each attention call, and `finish_step` at the end."""

    def __init__(self, plan: RecordingPlan, session: Session, run: Run, metadata: Mapping[str, object]):
        self.plan, self.session, self.run, self.metadata = plan, session, run, metadata
        self.family, self.policy = plan.family, plan.policy
        self.recorded_steps = self.policy.recorded_steps(run.count)
        self.keep = self.policy.keep  # None until the first recorded step shows whether every head fits the budget
        self.keep_reason: str | None = None
        self.writers: list[TraceWriter] = []
        self.columns: dict[PromptKey, KeptColumns] = {}
        self.site_entries: dict[str, SiteEntry] = {}
        self.sizes: dict[str, MapSize] = {}  # tensor name -> size, of the first picture
        self.left_out: dict[str, str] = {}  # site -> why it is not recorded, learned during the run
        self.kernels: set[str] = set()
        self.threads = torch.get_num_threads()  # that the denoiser computes with
        self.inputs: DenoiserInputs | None = None  # of the current evaluation
        self.rows: list[PromptKey] = []
        self.kept_rows: list[tuple[int, PromptKey]] = []  # those whose maps are kept of this evaluation
        self.column_plans: dict[tuple[PromptKey, ...], ColumnPlan] = {}  # of rows with these prompts
        self.called_sites: set[str] = set()  # in this evaluation
        self.not_computed: dict[str, list[int]] = {}  # site -> steps whose evaluations did not call it
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
        """Whether the maps of the current step are kept."""
        return self.run.index in self.recorded_steps

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the finest grid; (0, 0) before the first recorded evaluation."""
        return (0, 0) if self.inputs is None else self.inputs.grid

    def start_at(self, index: int) -> None:
        """The current step is this one, not the expected one. Raises Unrecordable if it is an earlier one, or if the
        wrong steps were kept."""
        if index < self.run.index:
            raise Unrecordable(
                f"the scheduler makes step {index} again, after another evaluation of the denoiser (a pipeline that draws "
                "several views, or that goes back). A trace has one evaluation of each prompt and one latent at each "
                "step: draw one view, or without going back"
            )
        if self.run.denoiser_ran and self.policy.steps is not None:
            raise Unrecordable(
                f"this run is at step {index}, not at step {self.run.index} as expected (image-to-image), so `steps=` would "
                "select the wrong ones: remove steps=…"
            )
        if index > self.run.index and not self.writers and self.plan.resumed is None:
            self.recorded_steps = [step for step in self.recorded_steps if step >= index]
            if not self.recorded_steps and self.policy.steps is not None:
                raise ToushiError(f"steps: this run begins at step {index}, after all steps that were asked for")

    # --- evaluations and attention calls

    def begin_evaluation(self, evaluation: Evaluation) -> None:
        """Selects the rows whose maps are kept. Raises Unrecordable if a second thread uses the model."""
        if threading.get_ident() != self.run.thread:
            raise Unrecordable(
                "a second thread used the model while a run was recorded: give each thread a model and a recording of its "
                "own"
            )
        self.threads = torch.get_num_threads()
        if not self.is_step_recorded:
            return
        self._read_pending()  # they belong to the rows of the evaluation before this one
        self.inputs, self.rows = evaluation.inputs, evaluation.rows
        selected = self.policy.branches
        self.kept_rows, self.called_sites = [], set()
        for row, (branch, picture) in enumerate(self.rows):
            if (key := (branch, picture)) not in self.columns:
                self.columns[key] = self.policy.columns(self.session.prompts[branch][picture], branch)
                if branch == "cond" and self.plan.concepts is not None:
                    concepts = list(range(len(self.plan.concepts.prompt.tokens)))
                    self.columns[layout.CONCEPTS, picture] = KeptColumns(concepts, [])
            # Of several evaluations in one step the first is kept (Heun's second one has other latents).
            if self.run.evaluations[key] == 1 and (selected is None or branch in selected):
                self.kept_rows.append((row, key))

    def _column_plan(self, keys: Sequence[PromptKey]) -> ColumnPlan:
        rows = tuple(keys)
        if rows not in self.column_plans:
            self.column_plans[rows] = ColumnPlan.of([self.columns[key] for key in rows])
        return self.column_plans[rows]

    def add_call(self, call: Call) -> None:
        """Keeps the maps of one attention call, if this is the first evaluation of a recorded step."""
        if not self.is_step_recorded or not self.kept_rows or self.inputs is None:
            return
        kind = self.plan.sites[call.site].kind
        if kind == "cross" and self.inputs.text_sites is not None and not self._attends_to_text(call):
            return
        columns = max(self.columns[key].end for _, key in self.kept_rows)
        cells = check_shape(call, kind, self.inputs, len(self.rows), columns)
        if call.site in self.called_sites:
            raise Unrecordable(f"{call.site}: attends twice in one evaluation; name the modules inside it instead")
        self.called_sites.add(call.site)
        if call.site not in self.site_entries:
            _, heads, _, keys = call.shape
            self.site_entries[call.site] = {"kind": kind, "grid": list(grid_of(self.grid, cells)), "heads": heads}
            self._add_size(call.site, heads, cells, keys)
        if self.refusal is None:  # else the sizes are all that is needed
            self.pending.append(call)
            self.pending_bytes += call.bytes
            if self.pending_bytes > PENDING_MAX_BYTES or call.inputs.query.is_inference():
                self._read_pending()  # inference tensors do not count changes in place

    def _attends_to_text(self, call: Call) -> bool:
        """Whether image cells attend to the text. If not, the site is left out, with a warning."""
        assert self.inputs is not None and self.inputs.text_sites is not None
        reason = None if call.site in self.inputs.text_sites else "its keys are not known to be the text's"
        if reason is None and call.shape[2] == 1 and self.grid != (1, 1):
            reason = "it has one query, which may be of the text"
        if reason is not None and call.site not in self.left_out:
            self.left_out[call.site] = reason
            warnings.warn(SiteLeftOut(f"{call.site} is not recorded: {reason}"), stacklevel=2)
        return reason is None

    def _read_pending(self) -> None:
        """Computes the maps of the pending calls."""
        if not self.is_size_checked:
            self._check_size()
        calls, self.pending, self.pending_bytes = self.pending, [], 0
        for call in calls:
            if call.stale:
                raise Unrecordable(f"{call.site}: its queries or keys were changed in place after they were used")
            self.kernels.add(call.kernel)
        self.maps += self._read(calls)

    def _read(self, calls: Sequence[Call]) -> Iterator[Maps]:
        joint = None if self.inputs is None else self.inputs.joint
        keys, dtype, mean = dict(self.kept_rows), self._stored_dtype, self.keep in ("mean", "sum")
        of_self = [call for call in calls if self.plan.sites[call.site].kind == "self"]
        cross = [call for call in calls if call not in of_self]
        for sequence, group in group_rows_by_layout(keys, joint).items():
            kept, rows = [keys[row] for row in group], None if len(group) == len(self.rows) else group
            plan = self._column_plan(kept)
            if sequence is None:  # all keys are text
                precise = torch.float32 if plan.has_pads else dtype  # pads are added up before they are rounded
                for call, values in zip(cross, probabilities_of(cross, plan.computed, rows, mean, precise)):
                    yield Maps(call.site, kept, plan.places, plan.keep(values, dtype), None)
                continue
            image = slice(sequence.image, sequence.image + self.grid[0] * self.grid[1])
            columns = slice(sequence.text, sequence.text + sequence.columns)
            for call in cross:
                text = call.probabilities(columns, rows, image, mean)
                # By the kernel's own log-sum-exp. A sum over the image's keys, as in the tests, would cost as much as
                # the attention itself.
                rest = (1 - text.sum(-2)).clamp_(min=0).to(dtype)
                yield Maps(call.site, kept, plan.places, plan.keep(text[..., plan.computed, :], dtype), rest)
        every, rows = list(keys.values()), None if len(keys) == len(self.rows) else list(keys)
        for call in of_self:
            yield Maps(call.site, every, None, call.probabilities(slice(None), rows, None, mean, dtype), None)
        asked = {row: (layout.CONCEPTS, picture) for row, (branch, picture) in keys.items() if branch == "cond"}
        if (concepts := self.plan.concepts) is not None and asked:
            for call in cross:
                yield Maps(call.site, list(asked.values()), None, concepts.maps(call, list(asked), mean, dtype), None)

    # --- size

    def _add_size(self, name: str, heads: int, cells: int, keys: int) -> None:
        """Adds a site to the forecast."""
        joint = self.inputs is not None and self.inputs.joint is not None
        for _, (branch, picture) in self.kept_rows:
            if picture == 0:
                is_self = self.plan.sites[name].kind == "self"
                columns = keys if is_self else self.columns[branch, picture].count + joint  # one more for `rest`
                self.sizes[layout.map_key(name, branch)] = MapSize(heads, columns, cells)
                if self.plan.concepts is not None and not is_self:
                    count = len(self.plan.concepts.prompt.tokens)
                    self.sizes[layout.map_key(name, layout.CONCEPTS)] = MapSize(heads, count, cells)
        self.is_size_checked = False

    def _check_size(self) -> None:
        """Compares the forecast with the budget. Over the budget no more maps are computed, only their sizes."""
        self.is_size_checked = True
        forecast = forecast_from_maps(self.sizes.values(), self.policy, len(self.recorded_steps), self.grid)
        pictures = 1 + max(picture for _, picture in self.rows)
        if self.keep is None and fits_budget(forecast, "heads", self.policy, pictures):
            return
        try:
            check_budget(forecast, self.keep or "mean", self.policy, pictures)
            if self.keep is None:
                self._set_keep("mean", reason_not_heads(forecast, self.policy, pictures))
        except OverBudget as refusal:
            self.refusal = refusal
            self.maps, self.pending = [], []

    def _set_keep(self, keep: str, reason: str) -> None:
        """Decides what is kept, if the policy leaves it open. Maps that were computed until now are converted."""
        self.keep, self.keep_reason = keep, reason
        self.maps = [maps.convert(self._stored_dtype, mean=keep == "mean") for maps in self.maps]
        if keep == "mean":
            warnings.warn(KeptMean(reason), stacklevel=2)

    @property
    def _stored_dtype(self) -> torch.dtype:
        """Sums are kept in fp32, and so are maps that may still be averaged."""
        return torch.float32 if self.keep in (None, "sum") else getattr(torch, self.policy.dtype)

    # --- steps and traces

    def finish_step(self, step: SchedulerStep, unread: Mapping[str, str]) -> None:
        """Writes the maps since the last step. `unread`: sites whose attention could not be read, with the reason."""
        if self.is_step_recorded:
            if unread:
                raise Unrecordable(unread_message(unread))
            self._read_pending()
            if self.left_out and not self.site_entries:
                raise Unrecordable(f"no attention is certain to be to the text: {self.left_out}")
            if self.refusal is not None:
                raise self.refusal
            if self.keep is None:
                self._set_keep("heads", "every head fits the budget")
            if not self.writers:
                self._open_writers()
            evaluations = max(self.run.evaluations.values(), default=0)
            info = {"seconds": round(time.perf_counter() - self.started, 6), "evaluations": evaluations}
            for site in self.site_entries.keys() - self.called_sites if self.kept_rows else ():
                self.not_computed.setdefault(site, []).append(self.run.index)
            arrays = self._step_arrays(step)
            for picture, writer in enumerate(self.writers):
                times = self.run.times(picture)
                writer.write_step(self.run.index, arrays[picture], time=times and times[self.run.index], **info)
        self._begin_step()

    def _step_arrays(self, step: SchedulerStep) -> list[dict[str, StepArray]]:
        """What is written of this step, for each picture."""
        pictures = [("cond", picture) for picture in range(len(self.writers))]
        # A copy, because the sampler or its caller may change the latents while they wait for the disk.
        latents = self.family.unpack_latents(step.latents.detach(), self.grid).to(torch.float32, copy=True)
        parts = [StepTensor(lambda branch: "latent", pictures, None, latents)]
        if step.denoised is not None and (vae := getattr(self.plan.model, "vae", None)) is not None:
            previews = preview(vae, step.denoised.float())
            parts.append(StepTensor(lambda branch: "preview", pictures, None, previews))
        for maps in self.maps:
            grid = self.site_entries[maps.site]["grid"]
            assert grid is not None, "only sites of the encoder have no grid"
            key = partial(layout.map_key, maps.site)
            parts.append(StepTensor(key, maps.rows, maps.places, maps.values.unflatten(-1, grid)))
            if maps.rest is not None:
                key = partial(layout.rest_key, maps.site)
                parts.append(StepTensor(key, maps.rows, None, maps.rest.unflatten(-1, grid)))
        return arrays_of_pictures(parts, len(self.writers))

    def _open_writers(self) -> None:
        count = 1 + max((picture for _, picture in self.rows), default=0)
        for picture, folder in enumerate(self.plan.folders.add(count)):
            writer = TraceWriter(folder, picture_manifest(self, picture, count), resume=self.plan.resumed)
            self.writers.append(writer)
            if layout.ENCODER in writer.manifest.files:
                continue
            encoder = {
                f"{key}/{branch}": array
                for branch, arrays in self.plan.encoder_arrays.items()
                if branch in writer.manifest.branches
                for key, array in arrays[picture].items()
            }
            if encoder:
                writer.write_encoder(encoder)

    def end(self, images: Images, safety: Sequence[str] | None = None, returned: bool = False) -> None:
        """Closes the traces of a run. `images` are its pictures if known, `safety` the verdicts.

        If the sampling method `returned`, the run had as many steps as it was asked for, even if the scheduler has more.
        """
        if returned and self.run.index < self.run.count and not getattr(self.plan.model, "interrupt", False):
            self._end_early()
        for writer, verdict in zip(self.writers, safety or ()):
            writer.update(safety=verdict)
        for writer, image in zip(self.writers, images or ()):
            writer.write_image(image)
        if self.not_computed:
            message = not_computed_message(self.not_computed, len(self.recorded_steps), len(self.site_entries))
            warnings.warn(StepsNotComputed(message), stacklevel=2)
        self._close_writers(complete=self.run.index >= self.run.count)

    def _end_early(self) -> None:
        """Corrects the number of steps. Raises ToushiError if none of those came that were asked for."""
        count = self.run.count = self.run.index
        kept = [step for step in self.recorded_steps if step < count]
        if self.policy.steps is not None and not kept:
            raise ToushiError(f"steps: this run ended after {count} steps, before all steps that were asked for")
        for picture, writer in enumerate(self.writers):
            times, recorded = self.run.times(picture), None if len(kept) == count else kept
            writer.update(steps={"count": count, "times": times and times[: count + 1], "recorded": recorded})

    def abort(self, error: BaseException) -> None:
        """Closes the traces of a run that an error ended. Finished steps stay readable; the manifest says "not complete"."""
        if not self.writers and self.site_entries and not isinstance(error, ToushiError | HookError):
            self._open_writers()
        self._close_writers(complete=False)

    def _close_writers(self, complete: bool) -> None:
        with ExitStack() as every:  # all are closed, even if one of them raises; the last callback is called first
            for writer in reversed(self.writers):
                every.callback(writer.close, complete)
                if self.not_computed:
                    every.callback(writer.update, not_computed=self.not_computed)
