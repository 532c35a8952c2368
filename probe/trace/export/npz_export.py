"""The export of a picture's maps as npz: one array for each word and grid, written step by step."""

import json
import zipfile
from pathlib import Path

import numpy as np

from toushi.probe.trace.export.export_plan import (
    BranchPlan,
    Tick,
    count_arrays,
    describe_arrays,
    iterate_steps,
    plan_arrays,
)


def write_npz(branches: list[BranchPlan], about: dict[str, object], path: Path, tick: Tick) -> str:
    """The number of arrays in the file that it writes, in words."""
    arrays = plan_arrays(branches)
    about["arrays"] = describe_arrays(arrays)
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        with file.open("about.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(json.dumps(about, ensure_ascii=False)), allow_pickle=False)
        for plan, steps in iterate_steps(arrays, tick):
            header = {"descr": "<f4", "fortran_order": False, "shape": plan.shape}
            with file.open(plan.name + ".npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_2_0(entry, header)
                for _, values in steps:
                    entry.write(np.ascontiguousarray(values, "<f4").data)
    return count_arrays(arrays)
