"""`toushi compare`: how two traces differ, in pictures, maps and settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.language import language_of
from toushi.cli.output_file import check_figure_file
from toushi.cli.terminal import limit_length, table
from toushi.cli.trace import Words
from toushi.cli.trace_summary import name_place
from toushi.probe.base.bilingual_text import Language

if TYPE_CHECKING:
    from toushi.experiments.scene_world.recogniser import Detection
    from toushi.probe.trace.comparison import Comparison
    from toushi.probe.trace.picture_trace import Trace

MOST_FACTS = 20  # rows of the table of facts that differ


@dataclass(frozen=True)
class Compare:
    ABOUT = """Compares two traces: their pictures, the heat maps of their common words, their settings.

  toushi compare runs/cat runs/edited
  toushi compare runs/cat runs/edited --words 月亮 --out difference.png

A pixel counts as changed if one of its channels differs by more than 16 of 255. Each word has two maps, one in each
trace. correlation: that of the two maps over their cells, -1 to 1. total variation: 0 if both maps have the same
shape, 1 if they do not overlap.

For pictures of mini-unet or its twins, 64x64 pixels, a recogniser also names the objects in each picture, with colour
and place, and what changed."""

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """The first trace."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """The second trace."""
    words: Words = ()
    """Only these words. If not given, all common words."""
    branch: str = "cond"
    """The branch whose maps are compared."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also draw a figure: a .png, .pdf or .svg."""
    language: Language | None = None
    """Language of the figure. If not given, that of the system."""

    def run(self) -> None:
        if self.out is not None:
            check_figure_file(self.out, "--out")
        from toushi.probe.trace.comparison import compare

        comparison = compare(self.a, self.b, words=self.words or None, branch=self.branch)
        print(describe_comparison(comparison))
        if self.out is not None:
            from toushi.probe.figures.comparison_figure import comparison_figure
            from toushi.probe.figures.style import save

            save(comparison_figure(comparison, language_of(self.language)), self.out)
            print(f"\n{table([('figure', str(self.out))])}")


def describe_comparison(comparison: "Comparison") -> str:
    """The comparison as text: pictures, notes, facts that differ, a row for each word."""
    rows = [("A", str(comparison.a.folder)), ("B", str(comparison.b.folder))]
    if comparison.mean_difference is not None and comparison.changed_pixels is not None:
        rows.append(("mean difference", f"{comparison.mean_difference:.1f} of 255"))
        rows.append(("changed pixels", f"{100 * comparison.changed_pixels:.1f} %"))
    parts = [table([*rows, *(("note", note) for note in comparison.notes)])]
    if changes := describe_objects(comparison.a, comparison.b):
        parts.append(changes)
    facts = [(str(name), *map(describe_fact, row)) for name, *row in comparison.facts.itertuples()]
    if len(facts) > MOST_FACTS:
        facts[MOST_FACTS:] = [(f"and {len(facts) - MOST_FACTS} more", "in Python: compare(A, B).facts", "")]
    parts.append(table([("differs", "A", "B"), *facts]) if facts else "no setting differs")
    if len(comparison.words):
        heads = ("word", "share A", "share B", "correlation", "total variation")
        words = [
            (str(word), f"{100 * a:.2f} %", f"{100 * b:.2f} %", f"{correlation:.3f}", f"{distance:.3f}")
            for word, a, b, correlation, distance in comparison.words.itertuples()
        ]
        parts.append(table([heads, *words], right=(1, 2, 3, 4)))
    return "\n\n".join(parts)


def describe_objects(a: "Trace", b: "Trace") -> str:
    """The objects of both pictures, a row each, and what changed. Empty unless both are of the scene world."""
    if any(trace.manifest.family != "mini-unet" for trace in (a, b)):
        return ""
    from toushi.experiments.scene_world.recogniser import recognise
    from toushi.experiments.scene_world.recognition_changes import pair_objects
    from toushi.experiments.scene_world.scenes import SIDE

    pictures = [trace.image() for trace in (a, b)]
    pictures = [picture for picture in pictures if picture is not None and picture.shape == (SIDE, SIDE, 3)]
    if len(pictures) < 2:
        return ""
    one, other = (recognise(picture) for picture in pictures)
    rows = [("recognised", "A", "B", "change")]
    for pair in pair_objects(one, other):
        kind = next(thing.kind for thing in pair if thing is not None)
        rows.append((kind, describe_object(pair.a, SIDE), describe_object(pair.b, SIDE), pair.change))
    for name in ("place", "time", "style"):
        was, now = getattr(one, name), getattr(other, name)
        rows.append((name, was, now, "same" if was == now else "changed"))
    return table(rows)


def describe_object(thing: "Detection | None", side: int) -> str:
    """Colour and place of an object in a picture of `side` pixels; – if it is not there."""
    if thing is None:
        return "–"
    return f"{thing.colour or 'own colour'}, {name_place(thing.y / side, thing.x / side, 0)}"


def describe_fact(value: object) -> str:
    """The value as it stands in the manifest; – if it is not there."""
    if value is None:
        return "–"
    return limit_length(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 60)
