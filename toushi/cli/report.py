"""`toushi report`: pages from results of studies and from traces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from toushi.cli.output_file import check_can_create_in
from toushi.cli.terminal import table
from toushi.probe.base.errors import ToushiError


@dataclass(frozen=True)
class Report:
    ABOUT = """Makes a report of results and traces: one HTML page, a PDF in each language, figures for a paper.

  toushi report runs/layer_semantics runs/disambiguation -o report
  toushi report runs/cat --words 猫 月亮                    (a trace: only these words)
  toushi report runs/cat --words 月亮 --figures words       (only the heat map of 月亮, as SVG, PDF and PNG)
  toushi report runs/layer_semantics --figures accuracy     (only the files of this figure, no page)

The page opens without a network. The same folders give the same bytes again."""

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    """Folders of `toushi run` and `toushi trace`."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = Path("report")
    """Folder of the report."""
    figures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Write only the files of these figures. Those of a trace: words, layers, timeline, tokens."""
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD ...")] = ()
    """Of a trace: the words in its figures. If not given, all words; the figure `layers` shows one word, that with the
    most concentrated map."""

    def run(self) -> None:
        if not self.folders:
            raise ToushiError(
                "give the folder of a result or of a trace, for example: toushi report runs/layer_semantics"
            )
        check_can_create_in(self.out, "-o")
        from toushi.reports.build_report import report

        files = report(self.folders, self.out, figures=self.figures, words=self.words)
        if self.figures:
            print("\n".join(map(str, files)))
            return
        rows = [("page" if file.suffix == ".html" else "paper", str(file)) for file in files[:3]]
        print(table([*rows, ("figures", f"{self.out / 'figures'}  ({len(files) - 3} files)")]))
