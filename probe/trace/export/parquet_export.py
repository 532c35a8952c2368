"""The export of a picture's maps as one parquet table, a row for each value; export_trace.py describes its columns."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from toushi.probe.trace.export.export_plan import BranchPlan, Tick

ROWS = 2**18  # of a row group


def write_parquet(branches: list[BranchPlan], about: dict[str, object], path: Path, tick: Tick) -> str:
    """The number of rows of the file that it writes, in words. Memory holds ROWS of them, and a site's maps at a step."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.dictionary(pa.int32(), pa.string())
    kinds = dict.fromkeys(("step", "head", "token", "y", "x"), pa.int32())
    kinds |= {
        **dict.fromkeys(("branch", "layer", "grid", "word", "text"), text),
        "unknown": pa.bool_(),
        "value": pa.float32(),
    }
    what = ["token", "text"] if branches[0].by_token else ["word"]
    order = ["step", "branch", "layer", "grid", "head", *what, "unknown", "y", "x", "value"]
    metadata = {"toushi": json.dumps(about, ensure_ascii=False)}
    schema = pa.schema([(name, kinds[name]) for name in order], metadata=metadata)
    names = _names(branches)
    dictionaries = {name: pa.array(values, pa.string()) for name, values in names.items()}

    def batch(columns: Mapping[str, np.ndarray | None], size: int) -> pa.RecordBatch:
        arrays = []
        for name in order:
            values = columns[name]
            if values is None:
                arrays.append(pa.nulls(size, kinds[name]))
            elif name in dictionaries:
                arrays.append(pa.DictionaryArray.from_arrays(values, dictionaries[name]))
            else:
                arrays.append(pa.array(values, kinds[name]))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    rows, waiting = 0, []
    with open(path, "wb") as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting, schema), row_group_size=ROWS)
                waiting.clear()

        for columns, size in _rows(branches, names, tick):
            waiting.append(batch(columns, size))
            rows += size
            if sum(one.num_rows for one in waiting) >= ROWS:
                flush()
        flush()
    return f"{rows:,} rows"


def _names(branches: list[BranchPlan]) -> dict[str, list[str]]:
    """Column -> the texts that a row refers to by number."""
    texts = list(dict.fromkeys(label for branch in branches for label in branch.labels))
    sites = list(branches[0].queries[0].manifest.sites)
    shapes = [branch.queries[0].shape(site) for branch in branches for site in branch.queries[0].sites]
    grids = list(dict.fromkeys(_grid(shape) for shape in shapes))
    return {"branch": [branch.name for branch in branches], "layer": sites, "grid": grids, "word": texts, "text": texts}


def _grid(shape: tuple[int, ...]) -> str:
    """Rows and columns of cells, as in "16x16"."""
    return "x".join(map(str, shape[-2:]))


def _rows(
    branches: list[BranchPlan], names: dict[str, list[str]], tick: Tick
) -> Iterator[tuple[Mapping[str, np.ndarray | None], int]]:
    """(column -> values, number of rows), at most ROWS at once, sorted by step."""
    steps = sorted({step for branch in branches for step in branch.queries[0].steps})
    for done, step in enumerate(steps, 1):
        for number, branch in enumerate(branches):
            labels = np.array([names["word"].index(label) for label in branch.labels], np.int32)
            unknown = np.array(branch.unknown, bool)
            tokens = np.array(branch.queries[0].columns if branch.by_token else [], np.int32)
            for site in branch.queries[0].sites if step in branch.queries[0].steps else ():
                if (values := branch.values(site, step)) is None:
                    continue
                shape = values.shape if values.ndim == 4 else (1, *values.shape)
                same = {"step": step, "branch": number, "layer": names["layer"].index(site)}
                same["grid"] = names["grid"].index(_grid(values.shape))
                flat = values.reshape(-1)
                for first in range(0, flat.size, ROWS):
                    part = flat[first : first + ROWS]
                    at = np.unravel_index(np.arange(first, first + part.size), shape)
                    head, place, y, x = (index.astype(np.int32) for index in at)
                    columns = {name: np.full(part.size, value, np.int32) for name, value in same.items()}
                    columns |= {"head": head if values.ndim == 4 else None, "y": y, "x": x, "value": part}
                    columns |= {"word": labels[place], "text": labels[place], "unknown": unknown[place]}
                    columns |= {"token": tokens[place]} if branch.by_token else {}
                    yield columns, part.size
        tick(done, len(steps))
