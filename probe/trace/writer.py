"""Writes a trace while the model runs: one thread, a short queue, every finished step safe on disk.

A step goes to a temporary name, is renamed, fsynced and only then listed, so whatever ends the process or the power,
each listed step can be read. When the disk is slower than the sampler, the sampler waits; memory does not grow. Small
steps are listed together, ten times a second, because each listing waits for the disk. Sums are written, and their
steps listed, every two seconds, since each time all sums are written anew.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toushi.probe.base.atomic_io import (
    fsync_file,
    fsync_folder,
    safetensors_parts,
    write_atomic,
    write_json,
    write_with_digest,
)
from toushi.probe.trace.image_file import picture_bytes
from toushi.probe.trace.output_dir import prepare_output_dir, reason
from toushi.probe.trace.safetensors_reader import StepStore
from toushi.probe.trace.step_array import StepArray
from toushi.probe.trace.trace_errors import BadRecord, WriteFailed
from toushi.probe.trace.trace_format import (
    ENCODER,
    FORMAT,
    IMAGE,
    MANIFEST,
    STEPS,
    VERSION,
    fits,
    is_encoder_key,
    is_trace_file,
    step_file,
)
from toushi.probe.trace.trace_json import Json, as_json

if TYPE_CHECKING:
    from toushi.probe.trace.manifest import FileName, Manifest

SMALL = 4 << 20  # bytes of steps that may wait, however many they are, and that may be listed together
TOGETHER = 8  # steps that may be listed together
PAUSE = 0.1  # seconds that a step may wait for others to be listed with
SUMS_PAUSE = 2.0  # the same, for steps of which only the sum is kept

# What must be equal for a run to continue the trace of another.
SAME_RUN = (
    "prompt",
    "negative_prompt",
    "branches",
    "sites",
    "keep",
    "steps",
    "seed",
    "guidance",
    "sampler",
    "size",
    "edits",
)


class TraceWriter:
    """Writes one trace. The arrays that it is given belong to the writer: do not change them afterwards.

    `queue_size` steps may wait for the disk, or more that are not larger than `small` bytes together. A failure of
    the writing thread (disk full, folder removed) is raised by the next call as WriteFailed. `resume`: the files
    of the unfinished trace in the folder (`trace.files`), of the same run; its steps are kept and others added.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: "Mapping[str, object] | Manifest",
        overwrite: bool = False,
        queue_size: int = 2,
        resume: StepStore | None = None,
        small: int = SMALL,
    ):
        self.folder = Path(folder)
        fields = manifest if isinstance(manifest, Mapping) else manifest.as_dict()
        given = {"format": FORMAT, "version": VERSION, "kind": "picture", **fields}
        self.manifest = _checked({**given, "complete": False, "files": {}})
        self._failure: WriteFailed | None = None
        self._closed = False
        self._last = -1
        self._finished: list[int] = []
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._shapes: dict[str, list[tuple[int, ...]] | None] = {}
        self._manifest_lock = threading.Lock()
        self._unsaved = True  # whether the manifest on disk is not this one, or may not be there after a power cut
        self._unlisted: dict[int, dict[str, object]] = {}  # steps that are stored or summed, and their lines
        self._is_sum = self.manifest.keep == "sum"
        self._due: float | None = None  # when what is stored and not listed has to be
        self._unlisted_bytes = 0
        if resume:
            self._resume(resume)
        else:
            prepare_output_dir(self.folder, overwrite)
        try:
            # Waiting for the disk can wait until the first step is listed.
            write_json(self.folder / MANIFEST, self.manifest.as_dict(), sync=False)
            self._lines = (self.folder / STEPS).open("ab")
        except OSError as error:
            raise WriteFailed(
                f"Cannot write a trace in {self.folder}: {reason(error)}. Choose another folder."
            ) from None
        self._queue_size, self._small = queue_size, small
        self._jobs: deque[tuple[str, int, Callable[[], None] | None]] = deque()  # the first one is being done
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"trace {self.folder.name}", daemon=True)
        self._thread.start()

    def write_step(self, index: int, tensors: Mapping[str, StepArray], **info: object) -> None:
        """Queues one step; `info` (time, seconds, evaluations, …) goes to its line in steps.jsonl.

        `tensors` may still be on their way from a GPU: only the writing thread asks for their values.
        """
        index = int(index)
        if not self._last < index < self.manifest.steps.count:
            raise BadRecord(
                f"Steps must come in order, after {self._last} and below {self.manifest.steps.count} "
                f"(steps.count of the manifest); step {index} came."
            )
        line = as_json(info, f"What is noted of step {index}")
        arrays = {key: self._fitting(key, array) for key, array in tensors.items()}
        self._put(f"step {index}", lambda: self._step(index, arrays, line), _bytes(arrays))
        self._last = index

    def write_encoder(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Queues the encoder's states and attention; names from state_key and encoder_attention_key."""
        for key, array in tensors.items():
            if not is_encoder_key(key, self.manifest.branches) or array.dtype not in (np.float16, np.float32):
                raise BadRecord(
                    f'Of an encoder "state/number/branch" and "attention/number/branch" are kept, float16 or float32; '
                    f'"{key}", {array.dtype} came.'
                )
        arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
        self._put(
            ENCODER,
            lambda: self._listed(ENCODER, safetensors_parts(arrays)),
            _bytes(arrays),
        )

    def write_image(self, image) -> None:
        """Queues the picture (PIL) as image.png."""
        self._put(IMAGE, lambda: self._listed(IMAGE, [picture_bytes(image)]))

    def update(self, **fields: object) -> None:
        """Changes fields of the manifest, at once on disk too. `complete` and `files` are the writer's own."""
        if own := {"complete", "files", "format", "version"} & set(fields):
            raise BadRecord(f"{', '.join(sorted(own))} of the manifest cannot be set: the writer keeps them.")
        self._raise_failure()
        with self._manifest_lock:
            self.manifest = _checked({**self.manifest.as_dict(), **fields})
        self._shapes.clear()
        try:
            self._save_manifest()
        except OSError as error:
            self._failure = WriteFailed(self._failure_message(MANIFEST, error))
            raise self._failure from None

    def close(self, complete: bool) -> None:
        """Waits for what is queued, then notes in the manifest whether the run came to its end.

        With `complete`, a failure of the writing thread is raised here. Without, because the run has ended with an
        error of its own, it is not, and the trace stays incomplete in the manifest.
        """
        if self._closed:
            return
        self._closed = True
        with self._turn:
            self._jobs.append(("", 0, None))
            self._turn.notify_all()
        self._thread.join()
        try:
            self._lines.close()  # writes what an earlier failure left in its buffer
        except OSError as error:
            self._failure = self._failure or WriteFailed(self._failure_message(STEPS, error))
        if self._failure is None:
            try:
                self.manifest.complete = complete
                self._save_manifest()
            except OSError as error:
                self._failure = WriteFailed(self._failure_message(MANIFEST, error))
        if complete:
            self._raise_failure()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close(complete=kind is None)

    # --- on the caller's thread

    def _resume(self, old: StepStore) -> None:
        """Takes over the finished steps of the folder, and deletes files that a killed process left half written."""
        for field in SAME_RUN:
            there, here = getattr(old.manifest, field), getattr(self.manifest, field)
            if there != here:
                raise BadRecord(
                    f"Cannot resume {self.folder}: its {field} is {there!r:.120}, this run's is {here!r:.120}."
                )
        self.manifest = old.manifest.model_copy(update={"complete": False})
        self._finished = old.steps
        self._last = self._finished[-1] if self._finished else -1
        if self._is_sum and self._finished:
            file = old.step(self._last)
            self._sums = {key: file.read(key).copy() for key in file.keys}
            self._counts = json.loads(file.metadata["counts"])
        lines = "".join(json.dumps(line.as_dict(), ensure_ascii=False) + "\n" for line in old.lines.values())
        files = [line.file for line in old.lines.values()]
        # Of sums the last one is the trace; a kill may have come before the one before it was removed.
        listed = {*(files[-1:] if self._is_sum else files), *self.manifest.files}
        try:
            write_atomic(self.folder / STEPS, lines)
            for path in self.folder.iterdir():
                if is_trace_file(path.name) and path.name not in {*listed, MANIFEST, STEPS}:
                    path.unlink()
        except OSError as error:
            raise WriteFailed(f"Cannot resume {self.folder}: {reason(error)}.") from None

    def _fitting(self, key: str, array: StepArray) -> StepArray:
        if key not in self._shapes:
            self._shapes[key] = self.manifest.step_shapes(key)
        allowed = self._shapes[key]
        if allowed is None:
            raise BadRecord(
                f'"{key}" names nothing that can be recorded: expected latent, preview, or '
                f'"site/branch" of a site and a branch in the manifest, with "/rest" after it or not.'
            )
        if not fits(array.shape, allowed):
            expected = " or ".join(map(str, allowed)).replace("-1", "any")
            raise BadRecord(f'"{key}" must have the shape {expected}; {array.shape} came.')
        kinds = (np.uint8,) if key == "preview" else (np.float16, np.float32)
        if array.dtype not in kinds:
            names = " or ".join(np.dtype(kind).name for kind in kinds)
            raise BadRecord(f'"{key}" must be {names}; {array.dtype} came.')
        return array

    def _put(self, what: str, job: Callable[[], None], size: int = 0) -> None:
        if self._closed:
            raise BadRecord(f"The trace in {self.folder} is closed; nothing more can be written.")
        with self._turn:
            while self._failure is None and len(self._jobs) > self._queue_size:
                if size + sum(waiting for _, waiting, _ in self._jobs) <= self._small:
                    break
                self._turn.wait()
            self._raise_failure()
            self._jobs.append((what, size, job))
            self._turn.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- on the writing thread

    def _work(self) -> None:
        while True:
            patience = self._flush_timeout()
            if patience is not None and patience <= 0:
                self._do(STEPS, self._list)
                continue
            with self._turn:
                if not self._turn.wait_for(lambda: self._jobs, patience):
                    continue
                what, _, job = self._jobs[0]
            if job is None:
                if self._failure is None:
                    self._do(STEPS, self._list)
                return
            if self._failure is None:  # after a failure jobs are dropped, so that a waiting sampler wakes up
                self._do(what, job)
                self._due = self._due or time.monotonic() + (SUMS_PAUSE if self._is_sum and self._finished else PAUSE)
            with self._turn:
                self._jobs.popleft()
                self._turn.notify_all()

    def _flush_timeout(self) -> float | None:
        """Seconds that stored steps may still wait for others to be listed with; None if no step waits."""
        if self._failure is not None or self._due is None:
            return None
        together = self._is_sum or (len(self._unlisted) < TOGETHER and self._unlisted_bytes < self._small)
        return self._due - time.monotonic() if together else 0.0

    def _do(self, what: str, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            with suppress(Exception):
                self._list()  # the steps before it are whole
            self._failure = WriteFailed(self._failure_message(what, error))

    def _step(self, index: int, tensors: dict[str, StepArray], info: dict[str, Json]) -> None:
        # safetensors would store the buffer of a strided view
        arrays = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
        line = {**info, "step": index, "file": step_file(index, self.manifest.keep)}
        if self._is_sum:
            self._add(arrays)  # written when the step is listed
        else:
            about = write_with_digest(self.folder / line["file"], safetensors_parts(arrays), sync=False)
            self._unlisted_bytes += about["bytes"]
            line |= about
        self._unlisted[index] = line

    def _list(self) -> None:
        """Lists the stored steps, after an fsync has made them safe."""
        self._due = None
        if self._unsaved and (self._unlisted or not self._closed):  # else `close` will
            self._save_manifest()
        if not self._unlisted:
            return
        steps = list(self._unlisted)
        if self._is_sum:
            counts = {"counts": json.dumps(self._counts)}
            path = self.folder / step_file(steps[-1], "sum")
            about = write_with_digest(path, safetensors_parts(self._sums, counts), sync=False)
            self._unlisted = {step: {**line, **about} for step, line in self._unlisted.items()}
        for step in steps[-1:] if self._is_sum else steps:
            fsync_file(self.folder / step_file(step, self.manifest.keep))
        fsync_folder(self.folder)
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._unlisted.values())
        self._unlisted, self._unlisted_bytes = {}, 0
        self._lines.write(lines.encode())
        self._lines.flush()
        os.fsync(self._lines.fileno())
        if self._is_sum and self._finished:
            # Only now: until its successor is listed, the older sum is the one to read.
            (self.folder / step_file(self._finished[-1], "sum")).unlink(missing_ok=True)
        self._finished += steps

    def _add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds a step to the sums."""
        for key, array in arrays.items():
            if key in ("latent", "preview"):
                self._sums[key] = array
            elif key in self._sums:
                self._sums[key] += array
            else:
                self._sums[key] = array.astype(np.float32)
            self._counts[key] = self._counts.get(key, 0) + 1

    def _listed(self, name: "FileName", parts: Sequence[bytes | memoryview]) -> None:
        about = write_with_digest(self.folder / name, parts)
        fsync_folder(self.folder)
        with self._manifest_lock:
            self.manifest.list_file(name, about)
            self._unsaved = True

    def _save_manifest(self) -> None:
        with self._manifest_lock:
            write_json(self.folder / MANIFEST, self.manifest.as_dict())
            self._unsaved = False

    def _failure_message(self, what: str, error: Exception) -> str:
        kept = f"{len(self._finished)} steps are finished and can be read" if self._finished else "No step is finished"
        return (
            f"Writing {what} in {self.folder} failed: {reason(error)}. {kept}. "
            "Free some space or choose another folder, keep less (mean, sum, fewer sites), and run again."
        )


def _checked(manifest: dict) -> "Manifest":
    """The manifest as it will be read again: JSON types only."""
    from toushi.probe.trace.manifest import check_manifest  # with pydantic, which takes 0.15 s to import

    what = "The manifest to write"
    checked = check_manifest({**as_json(manifest, what), "version": VERSION}, what)
    checked.version = checked.oldest_version()
    return checked


def _bytes(arrays: Mapping[str, StepArray]) -> int:
    return sum(array.nbytes for array in arrays.values())
