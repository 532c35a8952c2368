"""Checks a trace against its manifest: files, checksums, shapes, probabilities, number of steps."""

import hashlib
from collections.abc import Iterator

import numpy as np

from toushi.probe.trace.image_file import read_image
from toushi.probe.trace.manifest import FileEntry
from toushi.probe.trace.safetensors_reader import SafetensorsFile, StepStore, read_bytes
from toushi.probe.trace.selection import AttentionQuery
from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.trace_format import CONCEPTS, IMAGE, map_key

TOLERANCE = 1e-3  # text columns and rest sum to 1 within this, after storage in float16


def verify(files: StepStore) -> list[str]:
    """One sentence for each fault of the trace of a picture; an empty list if there is none."""
    return list(_problems(files))


def changed_files(files: StepStore) -> list[str]:
    """One sentence for each listed file that is missing or not what was written; an empty list if there is none."""
    listed = files.manifest.files | {line.file: line for line in files.lines.values()}
    return [problem for name, entry in listed.items() for problem in _changed_bytes(files, name, entry)]


def _problems(files: StepStore) -> Iterator[str]:
    manifest = files.manifest
    yield from _completeness(files)
    for name, listed in manifest.files.items():
        yield from _changed_bytes(files, name, listed)
    if IMAGE in manifest.files:
        yield from _picture(files)
    for step in files.steps[-1:] if manifest.keep == "sum" else files.steps:
        line = files.lines[step]
        changed = list(_changed_bytes(files, line.file, line))
        yield from changed
        if not changed:
            yield from _tensors(files, step)


def _completeness(files: StepStore) -> Iterator[str]:
    manifest = files.manifest
    planned = manifest.steps.recorded
    planned = range(manifest.steps.count) if planned is None else planned
    missing = sorted(set(planned) - set(files.steps))
    if not manifest.complete:
        yield f"The run did not end: {len(files.steps)} of {len(planned)} steps are finished."
    elif missing:
        yield f"The manifest says complete, but {len(missing)} steps are missing, the first is {missing[0]}."


def _changed_bytes(files: StepStore, name: str, listed: FileEntry) -> Iterator[str]:
    path = files.folder / name
    try:
        if name == IMAGE:
            digest = hashlib.sha256(read_bytes(files.folder, name)).hexdigest()
        else:
            with open(SafetensorsFile(files.folder, name, listed.bytes).path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (DamagedTrace, OSError) as error:
        yield str(error)
        return
    if digest != listed.sha256:
        yield f"{path} is not what was written: its sha256 is {digest}, listed is {listed.sha256}."


def _picture(files: StepStore) -> Iterator[str]:
    try:
        image, size = read_image(files.folder), files.manifest.size
    except DamagedTrace as error:
        yield str(error)
        return
    if size is not None and image.shape[:2] != size:
        yield f"{IMAGE} is {image.shape[0]}x{image.shape[1]}; the manifest says {size[0]}x{size[1]}."


def _tensors(files: StepStore, step: int) -> Iterator[str]:
    try:
        file = files.step(step)
        for key in sorted(file.keys):
            files.shape(file, key)
            if not np.isfinite(file.read(key)).all():
                yield f'{file.path}: "{key}" holds values that are not finite.'
        for name, site in files.manifest.sites.items():
            for branch in files.manifest.branches:
                if site.kind != "encoder" and branch != CONCEPTS and map_key(name, branch) in file.keys:
                    yield from _probabilities(files, name, branch, step)
    except DamagedTrace as error:
        yield str(error)


def _probabilities(files: StepStore, site: str, branch: str, step: int) -> Iterator[str]:
    manifest = files.manifest
    query = AttentionQuery(files, None, branch, [site], None if manifest.keep == "sum" else step)
    maps, rest = query.step(site, step), query.rest(site, step)
    assert maps is not None and rest is not None  # the step has the site
    where = f'Step {step}, "{map_key(site, branch)}"'
    if maps.size and (maps.min() < 0 or maps.max() > 1 + TOLERANCE):
        yield f"{where}: probabilities lie between 0 and 1; these reach from {maps.min():.4g} to {maps.max():.4g}."
    total = maps.sum(-3, dtype=np.float32) + rest
    # With only some words kept, the rest of the sum is not in the trace.
    all_kept = query.axis == "key" or manifest.branches[branch].covers_all_columns()
    worst = np.abs(total - 1).max()
    if all_kept and not worst <= TOLERANCE:
        yield f"{where}: text columns and rest sum to 1 in each cell; here they are off by up to {worst:.4g}."
    elif not all_kept and not total.max() <= 1 + TOLERANCE:
        yield f"{where}: the kept columns and rest sum to at most 1; here they reach {total.max():.4g}."
