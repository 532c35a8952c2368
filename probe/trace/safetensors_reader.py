"""Reads the files of a trace without trusting them: regular files inside the folder, of the size that was listed."""

import math
import stat
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open

from toushi.probe.base.safe_read import read_regular_file
from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.trace_format import fits

if TYPE_CHECKING:  # pydantic takes 0.15 s to import, which recording waits for only when it has a manifest to write
    from toushi.probe.trace.listing import StepLine
    from toushi.probe.trace.manifest import Manifest

JSON_BYTES = 2**26  # of a manifest or a list of steps; a quarter of a million steps are less
EMPTY = 2**20  # values along the other axes of a tensor without any
OPEN_FILES = 256  # mapped at once; a mapping costs address space, not memory


def read_bytes(folder: Path, name: str, limit: int = 2**28) -> bytes:
    """The content of a regular file in the folder. A link is refused, because it can lead out of the folder."""
    return read_regular_file(folder / name, limit, DamagedTrace)


class SafetensorsFile:
    """One safetensors file, mapped and read slice by slice. Only the slices that are asked for are in memory."""

    def __init__(self, folder: Path, name: str, size: int | None = None):
        self.path = folder / name
        try:
            about = self.path.lstat()
        except OSError as error:
            raise DamagedTrace(
                f"{self.path} is listed in steps.jsonl, but cannot be read: {error.strerror}. Record the run again, or leave "
                "the step out."
            ) from None
        if not stat.S_ISREG(about.st_mode):
            raise DamagedTrace(f"{self.path} must be a regular file; something else has that name.")
        if size is not None and about.st_size != size:
            raise DamagedTrace(
                f"{self.path} must have {size} bytes, as listed; it has {about.st_size}. It was cut or changed "
                "after it was written. Record the run again, or leave the step out."
            )
        try:
            self._file = safe_open(self.path, framework="np")
            self.keys = frozenset(self._file.keys())
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self.checked: dict[str, tuple[int, ...]] = {}  # shapes that agree with the manifest
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedTrace(f"{self.path} is not a readable safetensors file: {error}.") from None

    def shape(self, key: str) -> tuple[int, ...]:
        shape = tuple(self._slice(key).get_shape())
        # An empty tensor takes no bytes, so results computed from it could be of any size.
        if 0 in shape and math.prod(n for n in shape if n) > EMPTY:
            raise DamagedTrace(f'{self.path}: "{key}" is empty, yet {shape}; that cannot be right.')
        return shape

    def read(self, key: str, where: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor, or the part of it that the slices select, one for each axis from the first."""
        shape = self.shape(key)
        whole = self._slice(key)
        if whole.get_dtype() not in ("F16", "F32", "U8"):
            raise DamagedTrace(f'{self.path}: "{key}" must be F16, F32 or U8; {whole.get_dtype()} is there.')
        try:
            if not where and 0 in shape:  # safetensors cuts nothing out of an empty axis
                return self._file.get_tensor(key)
            return whole[where] if where else whole[:]
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedTrace(f'{self.path}: "{key}" cannot be read: {error}.') from None

    def _slice(self, key: str):
        if key not in self.keys:
            raise DamagedTrace(f'{self.path} has no "{key}".')
        return self._file.get_slice(key)


class StepStore:
    """The files of one trace, each opened when it is first asked for; their tensors checked against the manifest."""

    def __init__(self, folder: Path, manifest: "Manifest", lines: "list[StepLine]"):
        self.folder, self.manifest = folder, manifest
        self.lines = {line.step: line for line in lines}
        self._open: OrderedDict[str, SafetensorsFile] = OrderedDict()
        self._allowed: dict[str, list[tuple[int, ...]] | None] = {}
        self._lock = Lock()

    @property
    def steps(self) -> list[int]:
        """The finished steps."""
        return list(self.lines)

    @property
    def times(self) -> list[float]:
        """The model's time at each of `steps`; NaN where it is not known."""
        planned = dict(enumerate(self.manifest.steps.times or []))
        listed = {step: line.time for step, line in self.lines.items()}
        return [float(planned.get(step, math.nan) if time is None else time) for step, time in listed.items()]

    def step(self, step: int) -> SafetensorsFile:
        return self.named(self.lines[step].file, self.lines[step].bytes)

    def named(self, name: str, size: int) -> SafetensorsFile:
        with self._lock:
            if name not in self._open:
                self._open[name] = SafetensorsFile(self.folder, name, size)
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return self._open[name]

    def shape(self, file: SafetensorsFile, key: str) -> tuple[int, ...]:
        """The shape of a tensor of a step file, checked against the manifest. Raises DamagedTrace."""
        if key in file.checked:
            return file.checked[key]
        if key not in self._allowed:
            self._allowed[key] = self.manifest.step_shapes(key)
        shape, allowed = file.shape(key), self._allowed[key]
        if allowed is None or not fits(shape, allowed):
            expected = " or ".join(map(str, allowed or [])).replace("-1", "any") or "nothing of that name"
            raise DamagedTrace(f'{file.path}: "{key}" must be {expected} by the manifest; it is {shape}.')
        file.checked[key] = shape
        return shape
