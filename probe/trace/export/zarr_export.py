"""Datasets of a trace as a zarr folder, one group each: `xarray.open_datatree("cat.zarr")` opens it."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.safe_read import read_regular_file
from toushi.probe.trace.export.export_plan import Tick

BATCH = 2**26  # bytes of values that are written at once
MADE_BY = "toushi-export"  # the attribute `format` of the root, by which an export is known


def write_zarr(datasets: Mapping[str, xr.Dataset], attributes: Mapping[str, object], folder: Path, tick: Tick) -> str:
    """The number of groups in the folder that it writes, in words.

    Without dask, xarray reads a whole variable to write it. So a large dataset is appended to the folder, some steps
    (or layers of an encoder) at a time, and memory holds BATCH bytes of it, or one step. Version 2 of the format has a
    list of all groups, with which a tree opens at once.
    """
    import zarr

    xr.Dataset(attrs={"format": MADE_BY, **attributes}).to_zarr(folder, mode="w-", consolidated=False, zarr_format=2)
    total, done = sum(dataset.sizes[_axis(dataset)] for dataset in datasets.values()), itertools.count(1)
    for name, dataset in datasets.items():
        for places in _write_group(dataset, folder, name):
            for _ in range(places):
                tick(next(done), total)
    zarr.consolidate_metadata(folder, zarr_format=2)
    return f"{len(datasets)} group{'s' * (len(datasets) != 1)}"


def _write_group(dataset: xr.Dataset, folder: Path, name: str) -> Iterator[int]:
    """Writes one group; yields how many steps (or layers) each part has, once it is written."""
    axis = _axis(dataset)
    count = dataset.sizes[axis]
    size = max(1, BATCH * count // max(1, dataset.nbytes))
    for first in range(0, max(1, count), size):
        part = dataset.isel({axis: slice(first, first + size)})
        if first == 0:
            part.to_zarr(folder, group=name, mode="a", consolidated=False, zarr_format=2)
        else:
            written = [key for key, variable in part.variables.items() if axis not in variable.dims]
            part.drop_vars(written).to_zarr(folder, group=name, append_dim=axis, consolidated=False, zarr_format=2)
        yield part.sizes[axis]


def _axis(dataset: xr.Dataset) -> str:
    return "step" if "step" in dataset.dims else "layer"


# --- the folder -----------------------------------------------------------------------------------------


def is_zarr_export(folder: Path) -> bool:
    """Whether `toushi export` wrote the folder."""
    try:
        attributes = json.loads(read_regular_file(folder / ".zattrs"))
    except (ToushiError, ValueError, RecursionError):
        return False
    return isinstance(attributes, dict) and attributes.get("format") == MADE_BY


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields the path of a folder to write, beside `path`; after the block that folder takes the place of `path`.

    An exception in the block removes what was written, and `path` stays as it was.
    """
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        yield temporary
        if path.is_dir():
            path.rename(old)
        elif path.exists():
            path.unlink()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
