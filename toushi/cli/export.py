"""`toushi export`: the maps of a trace in one file for other programs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from toushi.cli.terminal import table
from toushi.cli.trace import Words
from toushi.cli.trace_listing import Folder
from toushi.probe.base.byte_sizes import format_bytes


@dataclass(frozen=True)
class Export:
    ABOUT = """Exports the maps of a trace as npz, parquet or zarr.

  toushi export runs/cat --to npz                      (one array for each word and grid)
  toushi export runs/cat --to parquet --out cat.parquet --words 猫 月亮     (a row for each value)
  toushi export runs/cat --to parquet --tokens         (special tokens and punctuation, too)

Axes, in this order: step, branch, layer, head, word or token, y, x; values are probabilities.
In parquet, `y` and `x` count the cells of the layer's own grid, which the column `grid` names: 16x16.
In an npz, `json.loads(str(data["about"]))` describes the axes of each array."""

    folder: Folder
    """The trace."""
    to: Literal["npz", "parquet", "zarr"]
    """npz for numpy; parquet for pandas, R, DuckDB; zarr, which is a folder, for xarray and dask."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file, or for zarr the folder. If not given, it is beside the trace: runs/cat.npz."""
    words: Words = ()
    """Only these words of the prompt."""
    tokens: bool = False
    """Export tokens instead of words."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        from tqdm import tqdm

        from toushi.probe.trace.export.export_trace import export
        from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

        trace = open_encoder_trace(self.folder) if is_encoder_trace(self.folder) else open_trace(self.folder)
        bar = None

        def tick(done: int, of: int) -> None:
            nonlocal bar
            bar = bar or tqdm(desc="step", unit="step", total=of, leave=False)
            bar.update(done - bar.n)

        options = {"tokens": self.tokens, "overwrite": self.overwrite, "tick": tick}
        try:
            done = export(trace, self.to, self.out, self.words or None, **options)
        finally:
            if bar is not None:
                bar.close()
        if done.left_out:
            names, why = "、".join(done.left_out), next(iter(done.left_out.values()))
            print(f"toushi: warning: not exported, because it is not in the trace: {names}. {why}", file=sys.stderr)
        size = format_bytes(done.bytes)
        print(table([("export", f"{done.path}  ({done.what}, {size})")]))
