"""Does a trace hold what it says: files, checksums, shapes, probabilities, all the steps."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from toushi.probe.trace import manifest as layout
from toushi.probe.trace.manifest import DamagedTrace
from toushi.probe.trace.safetensors_reader import Tensors, read_bytes
from toushi.probe.trace.selection import Question

if TYPE_CHECKING:
    from toushi.probe.trace.reader import Trace

TOLERANCE = 1e-3  # text columns and rest sum to 1 within this, after storage in float16


def problems(trace: "Trace") -> Iterator[str]:
    yield from _completeness(trace)
    for name, about in trace.manifest.get("files", {}).items():
        yield from _bytes_as_listed(trace, name, about)
    if layout.IMAGE in trace.manifest.get("files", {}):
        yield from _picture(trace)
    for step in trace.steps[-1:] if trace.keep == "sum" else trace.steps:
        line = trace.files.lines[step]
        listed = list(_bytes_as_listed(trace, line["file"], line))
        yield from listed
        if not listed:
            yield from _tensors(trace, step)


def _completeness(trace: "Trace") -> Iterator[str]:
    planned = trace.manifest["steps"].get("recorded")
    planned = range(trace.manifest["steps"]["count"]) if planned is None else planned
    missing = sorted(set(planned) - set(trace.steps))
    if not trace.complete:
        yield f"The run did not end: {len(trace.steps)} of {len(planned)} steps are finished."
    elif missing:
        yield f"The manifest says complete, but {len(missing)} steps are missing, the first is {missing[0]}."


def _bytes_as_listed(trace: "Trace", name: str, about: dict) -> Iterator[str]:
    try:
        path = trace.folder / name
        if name == layout.IMAGE:
            digest = hashlib.sha256(read_bytes(trace.folder, name)).hexdigest()
        else:
            with open(Tensors(trace.folder, name, about["bytes"]).path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (DamagedTrace, OSError) as error:
        yield str(error)
        return
    if digest != about["sha256"]:
        yield f"{path} is not what was written: its sha256 is {digest}, listed is {about['sha256']}."


def _picture(trace: "Trace") -> Iterator[str]:
    try:
        image, size = trace.image(), trace.manifest.get("size")
    except DamagedTrace as error:
        yield str(error)
        return
    if size is not None and image is not None and list(image.shape[:2]) != size:
        yield f"{layout.IMAGE} is {image.shape[0]}x{image.shape[1]}; the manifest says {size[0]}x{size[1]}."


def _tensors(trace: "Trace", step: int) -> Iterator[str]:
    try:
        file = trace.files.step(step)
        for key in sorted(file.keys):
            trace.files.shape(file, key)
            if not np.isfinite(file.read(key)).all():
                yield f'{file.path}: "{key}" holds values that are not finite.'
        for site, about in trace.sites.items():
            for branch in trace.branches:
                if about["kind"] != "encoder" and layout.map_key(site, branch) in file.keys:
                    yield from _probabilities(trace, site, branch, step)
    except DamagedTrace as error:
        yield str(error)


def _probabilities(trace: "Trace", site: str, branch: str, step: int) -> Iterator[str]:
    question = Question(trace, None, branch, [site], None if trace.keep == "sum" else step)
    maps, rest = question.step(site, step), question.rest(site, step)
    assert maps is not None
    where = f'Step {step}, "{layout.map_key(site, branch)}"'
    if maps.size and (maps.min() < 0 or maps.max() > 1 + TOLERANCE):
        yield f"{where}: probabilities lie between 0 and 1; these reach from {maps.min():.4g} to {maps.max():.4g}."
    total = maps.sum(-3, dtype=np.float32) + rest
    # With only some words kept, the rest of the sum is not in the trace.
    all_kept = question.axis == "key" or trace.manifest["branches"][branch].get("columns") is None
    worst = np.abs(total - 1).max()
    if all_kept and not worst <= TOLERANCE:
        yield f"{where}: text columns and rest sum to 1 in each cell; here they are off by up to {worst:.4g}."
    elif not all_kept and not total.max() <= 1 + TOLERANCE:
        yield f"{where}: the kept columns and rest sum to at most 1; here they reach {total.max():.4g}."
