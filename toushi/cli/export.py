"""`toushi export`: the maps of a trace in one file for other programs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from toushi.cli.language import language_of
from toushi.cli.output_file import check_output_file
from toushi.cli.terminal import table
from toushi.cli.trace import Words
from toushi.cli.trace_listing import Folder
from toushi.probe.base.bilingual_text import Language
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.errors import ToushiError


@dataclass(frozen=True)
class Export:
    ABOUT = """Exports a trace as npz, parquet or zarr for other programs, or as a page for other people.

  toushi export runs/cat --to npz                      (one array for each word and grid)
  toushi export runs/cat --to parquet --out cat.parquet --words 猫 月亮     (a row for each value)
  toushi export runs/cat --to parquet --tokens         (special tokens and punctuation, too)
  toushi export runs/cat --to html                     (the explorer's page of this trace in one file)

The page (html) opens in any browser, without network or server. It takes less than 5 MB: if all heads and steps do
not fit, it holds fewer of them.

In npz, parquet and zarr, the axes are, in this order: step, branch, layer, head, word or token, y, x. Values are
probabilities.
In parquet, `y` and `x` count the cells of the layer's own grid, which the column `grid` names: 16x16.
In an npz, `json.loads(str(data["about"]))` describes the axes of each array."""

    folder: Folder
    """The trace."""
    to: Literal["npz", "parquet", "zarr", "html"]
    """npz for numpy; parquet for pandas, R, DuckDB; zarr, which is a folder, for xarray and dask; html for a browser."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file, or for zarr the folder. If not given, it is beside the trace: runs/cat.npz."""
    words: Words = ()
    """Only these words of the prompt."""
    tokens: bool = False
    """Export tokens instead of words."""
    overwrite: bool = False
    """Replace an existing file."""
    language: Language | None = None
    """Of the page: zh or en. If not given, that of the locale."""

    def run(self) -> None:
        if self.to == "html":
            self._write_page()
        else:
            self._export()

    def _write_page(self) -> None:
        from toushi.dashboards.heat_map.standalone import write_page
        from toushi.probe.trace.open import open_trace

        if self.words or self.tokens:
            raise ToushiError("a page shows all words and tokens that were kept: leave --words and --tokens out")
        file = self.out or self.folder.with_name(f"{self.folder.name}.html")
        check_output_file(file, "--out", overwrite=self.overwrite)
        trace = open_trace(self.folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        maps = write_page(trace, file, language_of(self.language), overwrite=self.overwrite)
        left_out = ["single heads"] * maps.heads_left_out + ["some steps"] * maps.steps_left_out
        if left_out:
            print(f"toushi: note: left out, to stay under 5 MB: {' and '.join(left_out)}", file=sys.stderr)
        print(table([("export", f"{file}  ({format_bytes(file.stat().st_size)})")]))

    def _export(self) -> None:
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
