"""Writes the report of runs and traces: `toushi report runs/a runs/b -o report`.

    report/index.html              everything in one file, in both languages
    report/report.zh.pdf, .en.pdf
    report/figures/RUN/NAME.zh.svg, .pdf, .png, NAME.en.svg, …

The same folders give the same bytes: the report does not contain the date on which it is made.
"""

import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from toushi.experiments.runner.result_folder import NoResult, read_manifest
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import checked_path
from toushi.probe.trace.open import open_collection, open_trace
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_errors import NotAPicture
from toushi.probe.trace.trace_format import FORMAT, MEMBERS, format_of
from toushi.reports.chapter import LANGUAGES, Chapter
from toushi.reports.figure_files import ENDINGS
from toushi.reports.html import page
from toushi.reports.pdf import pdf
from toushi.reports.run_chapter import chapter_of_run
from toushi.reports.trace_chapter import chapter_of_trace


def report(
    folders: Sequence[Path], out: Path, *, figures: Collection[str] = (), words: Sequence[str] = ()
) -> list[Path]:
    """The files of the report, which it writes into `out`.

    With `figures`, only the files of these figures are written, and no page. `words` are the words of
    traces that figures show; by default all. Raises ToushiError for a folder that is neither a result nor a trace, and
    for figures and words that are not there.
    """
    sources = [source for folder in folders for source in open_sources(folder)]
    if words and not any(isinstance(source, Trace) for source in sources):
        raise ToushiError("--words selects words of a trace, but none of the folders is a trace; remove --words")
    chapters: list[Chapter] = []
    for source in sources:
        folder = source.folder if isinstance(source, Trace) else source
        key = unique_key(folder, {chapter.key for chapter in chapters})
        if isinstance(source, Trace):
            chapters.append(chapter_of_trace(source, key, out, figures, words))
        else:
            chapters.append(chapter_of_run(source, key, out, figures))
    pictures = [picture for chapter in chapters for picture in chapter.pictures]
    stems = dict.fromkeys(picture.stem.translate(language) for picture in pictures for language in LANGUAGES)
    files = [out / f"{stem}{ending}" for stem in stems for ending in ENDINGS]
    if figures:
        there = list(dict.fromkeys(name for chapter in chapters for name in chapter.all_pictures))
        if missing := [name for name in figures if name not in there]:
            raise ToushiError(f"there is no figure {missing[0]!r}; there are: {', '.join(there) or 'none'}")
        return files
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "index.html", page(chapters, out))
    for language in LANGUAGES:
        write_atomic(out / f"report.{language}.pdf", pdf(chapters, out, language))
    return [out / "index.html", *(out / f"report.{language}.pdf" for language in LANGUAGES), *files]


def open_sources(folder: Path) -> list[Path | Trace]:
    """The folder of a run, or the traces in it. Raises ToushiError, in one line, for anything else."""
    if (checked_path(folder) / MEMBERS).is_file():
        return [*open_collection(folder)]
    if format_of(folder) == FORMAT:
        try:
            return [open_trace(folder)]
        except NotAPicture:
            raise ToushiError(
                f"{folder} is a trace of a text encoder, and a report shows traces of pictures; "
                f"toushi info {shlex.quote(str(folder))} lists what it holds"
            ) from None
    try:
        read_manifest(folder)
    except NoResult as error:
        raise ToushiError(
            f"{error} (a report is made from the folders that toushi run and toushi trace write)"
        ) from None
    return [folder]


def unique_key(folder: Path, used: Collection[str]) -> str:
    """The folder's name as an anchor and a file name, with a number if it is used."""
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "run"
    key, number = name, 1
    while key in used or key in LANGUAGES:
        number += 1
        key = f"{name}-{number}"
    return key
