"""The summary of a trace as text: each word's share of the attention, and its place in the picture."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toushi.cli.terminal import limit_length, printable, table
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.trace.output_dir import reason
from toushi.probe.trace.trace_errors import WriteFailed
from toushi.probe.trace.trace_format import CONCEPTS

if TYPE_CHECKING:
    from xarray import DataArray

    from toushi.probe.text.alignment import Word
    from toushi.probe.trace.picture_trace import Trace


def summarize_trace(folder: Path, words: Sequence[str] | None = None) -> str:
    """The summary of the trace as text. Draws words.png into the folder, and concepts.png if it has concepts."""
    from toushi.probe.figures.style import save
    from toushi.probe.figures.words_figure import words_figure, words_to_draw
    from toushi.probe.trace.open import open_trace

    trace = open_trace(folder)
    manifest = trace.manifest
    has_maps = "cond" in trace.branches and any(site.kind == "cross" for site in trace.sites.values())
    tables, figures = [], {"words": folder / "words.png"} if has_maps else {}
    figures |= {CONCEPTS: folder / "concepts.png"} if CONCEPTS in trace.branches else {}
    figure = folder
    try:
        for name, figure in figures.items():
            branch, chosen = ("cond", words) if name == "words" else (CONCEPTS, None)
            asked = words_to_draw(trace, chosen, branch)
            maps = [trace.heat_map(word, branch=branch) for word in asked]
            save(words_figure(trace, asked, branch=branch, maps=maps), figure)
            tables += [summarize_words(trace, asked, maps, branch), ""]
    except OSError as error:
        figure.unlink(missing_ok=True)
        why = f"{reason(error)}. The trace is finished and can be read (toushi info {shlex.quote(str(folder))})"
        raise WriteFailed(f"Cannot draw {figure}: {why}; free some disk space before the next run.") from None
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    count = manifest.steps.count
    run = ", ".join(
        f"{name} {value}" if name else str(value)
        for name, value in (
            ("", manifest.name_of_model),
            ("", manifest.sampler),
            ("steps", count if len(trace.steps) == count else f"{len(trace.steps)} of {count}"),
            ("seed", manifest.seed),
            ("guidance", manifest.guidance),
            ("noised to", manifest.strength),
            ("real guidance", manifest.true_guidance),
            ("", "x".join(map(str, manifest.size or []))),
        )
        if value not in (None, "")
    )
    blocked = manifest.safety == "blocked"
    picture = f"{folder / 'image.png'}{'  (blocked by the safety checker of the pipeline)' if blocked else ''}"
    files = [("picture", picture)]
    none = {"words": "none: no attention of the picture to the prompt was recorded"}
    files += [(name, str(figure)) for name, figure in (figures or none).items()]
    files.append(("trace", f"{folder}  ({format_bytes(size)}; open it with: toushi view {shlex.quote(str(folder))})"))
    files.append(("kept", describe_keep(trace)))
    edits = len(manifest.edits or [])
    if edits:
        run += f", {edits} edit{'s' * (edits > 1)} (each map is the attention before the edit at its site)"
    prompt = "(prompt not known)" if trace.prompt is None else trace.prompt or "(empty prompt)"
    shares = [*tables, summarize_others(trace), ""] if has_maps else []
    return "\n".join([limit_length(printable(prompt)), run, "", *shares, table(files)])


def describe_keep(trace: "Trace") -> str:
    """What the trace keeps of the heads, as text."""
    names = {
        "heads": "every head at every step",
        "mean": "the mean over heads at every step",
        "sum": "the sum over steps",
    }
    kept = trace.manifest.kept
    automatic = kept is not None and kept.keep_reason is not None
    return names[trace.keep] + (" (chosen by size; --keep chooses otherwise)" if automatic else "")


def summarize_words(trace: "Trace", words: Sequence["Word"], maps: Sequence["DataArray"], branch: str = "cond") -> str:
    """A row for each word or concept: its share of the attention, and the place of its map in the picture.

    The centre is that of the part above the map's mean; (0, 0) is the top left corner, (1, 1) the bottom right one.
    """
    from toushi.probe.analysis.maps import above_mean, centre_of_mass, entropy, mass, peak
    from toushi.probe.figures.style import percent
    from toushi.probe.figures.words_figure import UNKNOWN_MARK, UNKNOWN_WORDS
    from toushi.probe.text.alignment import word_labels

    unknown = set(trace.unknown_words(branch))
    rows = [("concept" if branch == CONCEPTS else "word", "share", "place", "centre y, x", "peak y, x")]
    for word, heat_map, name in zip(words, maps, word_labels(words, trace.words(branch))):
        heat = heat_map.values
        (y, x), top = centre_of_mass(above_mean(heat)), peak(heat)
        place = name_place(float(y), float(x), float(entropy(heat)))
        name += UNKNOWN_MARK * (word in unknown)
        rows.append((name, percent(float(mass(heat))), place, f"{y:.2f}, {x:.2f}", f"{top[0]:.2f}, {top[1]:.2f}"))
    if not words:
        return "no word of the prompt was recorded"
    note = f"\n{UNKNOWN_MARK} {UNKNOWN_WORDS.en}" if unknown & set(words) else ""
    return table(rows, right=(1,)) + note


def summarize_others(trace: "Trace") -> str:
    """The shares of attention that belong to no word: special tokens, punctuation, pads, and no text at all."""
    from toushi.probe.figures.style import percent

    shares = trace.mass("cond", sites=trace.heat_map_rule()[0])
    words, besides = trace.words(), {}
    for token, share in zip(trace.places(), shares.values.tolist()):
        if token.is_text and token.span is None:
            name = "text of unknown place"
        elif token.span is not None and token.is_text:
            start, end = token.span
            name = None if any(word.start < end and start < word.end for word in words) else "punctuation"
        else:
            name = token.text or token.kind if token.kind == "special" else token.kind
        if name is not None:
            besides[name] = besides.get(name, 0.0) + share
    parts = [f"{name} {percent(share)}" for name, share in besides.items()]
    parts += [f"no text {percent(shares.attrs['rest'])}"] if shares.attrs["rest"] > 1e-4 else []
    return "besides   " + (", ".join(parts) or "nothing that was recorded")


def name_place(y: float, x: float, entropy: float) -> str:
    """left, right, top, bottom, middle or their combination; everywhere if the map is nearly flat."""
    if math.isnan(y) or math.isnan(x) or entropy > 0.995:
        return "everywhere"
    vertical = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
    horizontal = "left" if x < 0.42 else "right" if x > 0.58 else ""
    return " ".join(part for part in (vertical, horizontal) if part) or "middle"
