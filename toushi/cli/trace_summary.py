"""What a trace says, in words: where each word of the prompt went."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from toushi.cli.terminal import limit_length, printable, table
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.trace.output_dir import reason
from toushi.probe.trace.trace_errors import WriteFailed


def summarize_trace(folder: Path, words: Sequence[str] | None = None) -> str:
    """Draws words.png into the folder, and the report of the trace as text."""
    from toushi.probe.figures.style import save
    from toushi.probe.figures.words_figure import chosen, words_figure
    from toushi.probe.trace.open import open_trace

    trace = open_trace(folder)
    manifest = trace.manifest
    looked = any(site.kind == "cross" for site in trace.sites.values())
    asked = chosen(trace, words, "cond") if looked else []
    maps = [trace.heat_map(word) for word in asked]
    figure = folder / "words.png"
    try:
        if looked:
            save(words_figure(trace, asked, maps=maps), figure)
    except OSError as error:
        figure.unlink(missing_ok=True)
        why = f"{reason(error)}. The trace is finished and can be read (toushi info {shlex.quote(str(folder))})"
        raise WriteFailed(f"Cannot draw {figure}: {why}; free some space before the next run.") from None
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    run = ", ".join(
        f"{name} {value}" if name else str(value)
        for name, value in (
            ("", manifest.name_of_model),
            ("", manifest.sampler),
            ("steps", len(trace.steps)),
            ("seed", manifest.seed),
            ("guidance", manifest.guidance),
            ("real guidance", manifest.true_guidance),
            ("", "x".join(map(str, manifest.size or []))),
        )
        if value not in (None, "")
    )
    blocked = manifest.safety == "blocked"
    picture = f"{folder / 'image.png'}{'  (blocked by the safety checker of the pipeline)' if blocked else ''}"
    files = [("picture", picture)]
    files.append(("words", str(figure) if looked else "none: no attention of the picture to the text was recorded"))
    files.append(
        ("trace", f"{folder}  ({format_bytes(size)}; look at it with: toushi view {shlex.quote(str(folder))})")
    )
    files.append(("kept", kept(trace)))
    edits = len(manifest.edits or [])
    if edits:
        run += f", {edits} edit{'s' * (edits > 1)} (a map shows where was looked before its own edit)"
    if not looked:
        return f"{limit_length(printable(trace.prompt or '(no prompt)'))}\n{run}\n\n{table(files)}"
    return "\n".join(
        [
            limit_length(printable("(prompt not known)" if trace.prompt is None else trace.prompt or "(empty prompt)")),
            run,
            "",
            where_words_went(trace, asked, maps),
            "",
            others(trace),
            "",
            table(files),
        ]
    )


def kept(trace) -> str:
    """What the trace holds of the heads, in a few words."""
    what = {
        "heads": "every head at every step",
        "mean": "the mean over heads at every step",
        "sum": "the sum over steps",
    }
    asked = trace.manifest.kept
    automatic = asked is not None and asked.keep_reason is not None
    return what[trace.keep] + (" (chosen by size; --keep chooses otherwise)" if automatic else "")


def where_words_went(trace, words, maps) -> str:
    """A row for each word: its share of the attention, and where in the picture it stands out.

    The centre is that of the part above the map's mean; (0, 0) is the top left corner, (1, 1) the bottom right one.
    """
    from toushi.probe.analysis.maps import above_mean, centre_of_mass, entropy, mass, peak
    from toushi.probe.figures.style import percent
    from toushi.probe.text.alignment import word_labels

    rows = [("word", "share", "looked at", "centre y, x", "peak y, x")]
    for heat, name in zip((one.values for one in maps), word_labels(words, trace.words())):
        (y, x), top = centre_of_mass(above_mean(heat)), peak(heat)
        place = in_words(float(y), float(x), float(entropy(heat)))
        rows.append((name, percent(float(mass(heat))), place, f"{y:.2f}, {x:.2f}", f"{top[0]:.2f}, {top[1]:.2f}"))
    return table(rows, right=(1,)) if words else "no word of the prompt was recorded"


def others(trace) -> str:
    """What the attention did besides: special tokens, the text between the words, and no text at all."""
    from toushi.probe.figures.style import percent

    shares = trace.mass("cond", sites=trace.heat_map_rule()[0])
    words, besides = trace.words(), {}
    for token, share in zip(trace.places(), shares.values.tolist()):
        if token.kind == "text" and token.span is None:
            name = "text of unknown place"
        elif token.span is not None and token.kind == "text":
            start, end = token.span
            name = None if any(word.start < end and start < word.end for word in words) else "punctuation"
        else:
            name = token.text or token.kind if token.kind == "special" else token.kind
        if name is not None:
            besides[name] = besides.get(name, 0.0) + share
    parts = [f"{name} {percent(share)}" for name, share in besides.items()]
    parts += [f"no text {percent(shares.attrs['rest'])}"] if shares.attrs["rest"] > 1e-4 else []
    return "besides   " + (", ".join(parts) or "nothing that was recorded")


def in_words(y: float, x: float, evenness: float) -> str:
    """A place for people: left, right, top, bottom, middle, or everywhere when the map is nearly flat."""
    if math.isnan(y) or math.isnan(x) or evenness > 0.995:
        return "everywhere"
    vertical = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
    horizontal = "left" if x < 0.42 else "right" if x > 0.58 else ""
    return " ".join(part for part in (vertical, horizontal) if part) or "middle"
