"""The export of a picture's maps as zarr: the arrays of the npz in one zip, a chunk for each step."""

import math
from pathlib import Path
from typing import Any

from toushi.probe.trace.export.export_plan import (
    BranchPlan,
    Tick,
    count_arrays,
    describe_arrays,
    iterate_steps,
    plan_arrays,
)


def write_zarr(branches: list[BranchPlan], about: dict[str, Any], path: Path, tick: Tick) -> str:
    import zarr

    arrays = plan_arrays(branches)
    about["arrays"] = describe_arrays(arrays)
    with zarr.storage.ZipStore(path, mode="w") as store:
        root = zarr.create_group(store, attributes=about)
        for plan, steps in iterate_steps(arrays, tick):
            array = root.create_array(
                plan.name,
                shape=plan.shape,
                dtype="float32",
                chunks=(1, *(max(1, n) for n in plan.shape[1:])),
                fill_value=math.nan,
                dimension_names=plan.axes,
                attributes=about["arrays"][plan.name],
            )
            for index, values in steps:
                array[index] = values
    return count_arrays(arrays)
