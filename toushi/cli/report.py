"""`toushi report`: pages from finished runs and traces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from toushi.cli.terminal import table
from toushi.probe.base.errors import ToushiError


@dataclass(frozen=True)
class Report:
    ABOUT = """Makes pages of finished runs, and of traces: one HTML file, a PDF in each language, figures for a paper.

  toushi report runs/layer_semantics runs/disambiguation -o report
  toushi report runs/cat --words 猫 月亮                    (a trace: its layers drawn for these words)
  toushi report runs/layer_semantics --figures accuracy     (only the files of this figure, no page)

The page opens without a network. The same runs give the same bytes again."""

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    """What `toushi run` and `toushi trace` left."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = Path("report")
    """Where the report goes."""
    figures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Only the files of these figures."""
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD ...")] = ()
    """Of a trace: draw the layers for these words; for that of the most concentrated map if not given."""

    def run(self) -> None:
        if not self.folders:
            raise ToushiError("of what? give the folder of a run, for example: toushi report runs/layer_semantics")
        from toushi.reports.build_report import report

        files = report(self.folders, self.out, figures=self.figures, words=self.words)
        if self.figures:
            print("\n".join(map(str, files)))
            return
        rows = [("page" if file.suffix == ".html" else "paper", str(file)) for file in files[:3]]
        print(table([*rows, ("figures", f"{self.out / 'figures'}  ({len(files) - 3} files)")]))
