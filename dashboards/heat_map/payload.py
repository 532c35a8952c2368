"""The block of bytes for the browser: a JSON header and raw arrays. `unpack` in base.js reads it."""

import hashlib
import io
import json
import math
from collections.abc import Sequence

import numpy as np

from toushi.dashboards import messages as text
from toushi.dashboards.heat_map.film_frames import expected_frames, final_image, seen_frames
from toushi.dashboards.heat_map.matrices import Matrices
from toushi.dashboards.heat_map.trace_pair import Pair
from toushi.dashboards.heat_map.word_maps import Layer, WordMaps
from toushi.dashboards.run_metadata import differences
from toushi.probe.analysis.maps import PLAIN_MEAN
from toushi.probe.text.alignment import Word
from toushi.probe.text.prompt_units import Unit
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import why_no_map

# Ten hues that are visible on light and dark ground, for words in reading order, then lighter and darker ones with
# other dashes of the curves; greys for other units.
HUES = ("#2563eb", "#d9480f", "#12803c", "#9333ea", "#b8860b", "#0891b2", "#be185d", "#65781a", "#7c5a3c", "#4f46e5")
SHADES = (
    (255, 0.0, ""),
    (255, 0.4, "7 3"),
    (0, 0.4, "2 3"),
    (255, 0.65, "9 3 2 3"),
    (0, 0.6, "4 6"),
)  # ground, part, dashes
GREYS = {"text": "#8f98a8", "template": "#565f6e", "special": "#6b7587", "pad": "#b5bcc8", "image": "#8b7fa8"}


def pack(header: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """The uint32 length of the header, the header (its `arrays` has their places), the arrays, each 4-byte aligned."""
    placed, offset = {}, 0
    for name, array in arrays.items():
        placed[name] = {"dtype": str(array.dtype), "count": array.size, "offset": offset}
        offset += -(-array.nbytes // 4) * 4
    # The offsets count from the start of the block, so the header's own length must settle first: it is padded.
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    header = {**header, "digest": digest.hexdigest()[:16]}
    reserved = -(-len(json.dumps({**header, "arrays": placed}).encode()) // 4) * 4 + 16 * len(placed)
    for place in placed.values():
        place["offset"] += 4 + reserved
    body = json.dumps({**header, "arrays": placed}).encode().ljust(reserved)
    chunks = [reserved.to_bytes(4, "little"), body]
    for array in arrays.values():
        chunks.append(np.ascontiguousarray(array).tobytes().ljust(-(-array.nbytes // 4) * 4, b"\0"))
    return b"".join(chunks)


def unpack_header(block: bytes) -> dict:
    return json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])


def colours(name: str = "inferno") -> np.ndarray:
    """uint8 [256, 3], the colour map of the heat maps, or another."""
    from matplotlib import colormaps

    return (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def picture_block(
    trace: Trace,
    maps: WordMaps,
    branch: str,
    language: str,
    *,
    actions: Sequence[str] = (),
    lesson: dict[str, object] | None = None,
) -> bytes:
    """The block for `component.heat_map`. `actions` are the names of the buttons for a word. A `lesson` has selectors of
    parts to `hide` and the state at the `start`."""
    image = final_image(trace)
    arrays = {"colours": colours()}
    if image is not None:
        arrays["image"] = np.frombuffer(_png(image), np.uint8)
    frames = {"seen": seen_frames(trace, maps.steps), "expected": expected_frames(trace, maps.steps)}
    frames = {name: film for name, film in frames.items() if film is not None}
    arrays |= frames
    for i, layer in enumerate(maps.layers):
        arrays[f"maps{i}"], arrays[f"shares{i}"] = layer.maps, layer.shares
    times = dict(zip(trace.steps, trace.times))
    size = image.shape[1::-1] if image is not None else maps.layers[0].grid[::-1]
    _, rule = trace.heat_map_rule()
    ordered = by_contrast(maps.units, maps.layers[0].maps[0, 0])
    counts = {layer.name: trace.step_count(layer.name, branch) for layer in maps.layers if layer.name in trace.sites}
    header = {
        "id": f"{trace.folder}#{branch}" + (f"#{json.dumps(lesson)}" if lesson else ""),
        "folder": str(trace.folder),
        "text": text.component_messages(language),
        "alt": text.say(language, "picture_alt", prompt=trace.prompt or ""),
        "prompt": _one_line(trace.manifest.prompt_of(branch)),
        "actions": list(actions),
        "lost": [{"span": list(word.span), "title": _why_lost(trace, branch, word, language)} for word in maps.lost],
        "size": [int(n) for n in size],
        "films": {name: list(film.shape[1:3]) for name, film in frames.items()},
        "units": [_unit(unit, n, language) for n, unit in enumerate(maps.units)],
        "first": (ordered * 2)[:2],
        "steps": list(maps.steps),
        "total": trace.manifest.steps.count,
        "times": [None if math.isnan(times[step]) else times[step] for step in maps.steps],
        "layers": [
            {
                **_layer(layer, language, None if rule == PLAIN_MEAN else rule),
                "averaged": counts.get(layer.name, max(counts.values())),  # steps: where a cache skips some, fewer
            }
            for layer in maps.layers
        ],
        "lesson": lesson,
    }
    return pack(header, arrays)


def _why_lost(trace: Trace, branch: str, word: Word, language: str) -> str:
    return text.say(language, f"lost_{why_no_map(trace.manifest, branch, word.span).replace(' ', '_')}")


def _one_line(prompt: str | None) -> str | None:
    """Concepts stand one a line; on the page one behind the other."""
    return prompt and prompt.replace("\n", " ")


def by_contrast(units: Sequence[Unit], maps: np.ndarray) -> list[int]:
    """The indices of the words in maps [unit, y, x], the largest contrast first: not 的 or 是."""
    words = [i for i, unit in enumerate(units) if unit.kind == "word"] or [0]
    return sorted(words, key=lambda i: -_contrast(maps[i]))


def _contrast(maps: np.ndarray) -> float:
    maps = maps.astype(np.float32)
    return float(maps.max() - maps.mean())


def pair_block(traces: tuple[Trace, Trace], common: Pair, branch: str, language: str) -> bytes:
    """The block for `component.pair_map`: two traces on the axes of `align_traces`, and B − A."""
    return _pair_block(traces, common, branch, language, differences(*traces, language), ["A", "B"], 1)


def branches_block(trace: Trace, common: Pair, language: str) -> bytes:
    """The same of cond and uncond of one trace, on the axes of `align_branches`, and cond − uncond."""
    prompts = [trace.manifest.prompt_of(branch) or text.say(language, "empty_prompt") for branch in ("cond", "uncond")]
    return _pair_block((trace, trace), common, "cond", language, prompts, ["cond", "uncond"], -1)


def _pair_block(
    traces: tuple[Trace, Trace],
    common: Pair,
    branch: str,
    language: str,
    captions: list[str],
    names: list[str],
    sign: int,
) -> bytes:
    """`sign`: 1 for the second minus the first, -1 for the first minus the second."""
    arrays, sides = {"colours": colours(), "signed": colours("RdBu_r")}, []
    for side, trace in enumerate(traces):
        image = final_image(trace)
        if image is not None:
            arrays[f"image{side}"] = np.frombuffer(_png(image), np.uint8)
        frames = expected_frames(trace, [steps[side] for steps in common.steps])
        if frames is not None:
            arrays[f"expected{side}"] = frames
        sides.append({
            "alt": text.say(language, "picture_alt", prompt=trace.prompt or ""),
            "size": [int(n) for n in (image.shape[1::-1] if image is not None else common.layers[0].grid[::-1])],
            "films": {} if frames is None else {"expected": list(frames.shape[1:3])},
            "caption": captions[side],
            "folder": str(trace.folder),
            "total": trace.manifest.steps.count,
        })  # fmt: skip
    for i, layer in enumerate(common.layers):
        arrays[f"maps{i}"], arrays[f"shares{i}"] = layer.maps, layer.shares
    spans = {unit.span for unit in common.units}
    header = {
        "id": "#".join([*(str(trace.folder) for trace in traces), branch, *names]),
        "folder": str(traces[0].folder),
        "names": names,
        "sign": sign,
        "text": text.component_messages(language),
        "prompt": traces[0].manifest.prompt_of(branch),
        "lost": [
            {"span": list(word.span), "title": text.say(language, "lost_pair")}
            for word in traces[0].words(branch)
            if word.span not in spans
        ],
        "sides": sides,
        "units": [_unit(unit, n, language) for n, unit in enumerate(common.units)],
        "first": by_contrast(common.units, common.layers[0].maps[0, 0])[0],
        "steps": [list(steps) for steps in common.steps],
        "layers": [_layer(layer, language, None) for layer in common.layers],
    }
    return pack(header, arrays)


def _unit(unit: Unit, number: int, language: str) -> dict:
    word = unit.kind == "word"
    name = unit.label or text.say(language, f"kind_{unit.kind}")
    name += "*" * bool(unit.unknown)
    return {
        "label": f"{name}#{unit.occurrence}" if unit.occurrence else name,
        "text": name,
        "title": _word_title(unit, language) if word else text.say(language, f"kind_{unit.kind}_help"),
        "kind": unit.kind,
        "span": unit.span,
        "occurrence": unit.occurrence,
        **(_look(number) if word else {"colour": GREYS.get(unit.kind, "#888888"), "dashes": ""}),
    }


def _word_title(unit: Unit, language: str) -> str:
    return text.say(language, "unknown_word", words="、".join(unit.unknown)) if unit.unknown else unit.label


def _look(number: int) -> dict[str, str]:
    """Colour and dashes of a word: fifty different ones, then again."""
    turn, hue = divmod(number, len(HUES))
    ground, part, dashes = SHADES[turn % len(SHADES)]
    levels = bytes.fromhex(HUES[hue][1:])
    mixed = bytes(round(level + part * (ground - level)) for level in levels)
    return {"colour": f"#{mixed.hex()}", "dashes": dashes}


def _layer(layer: Layer, language: str, rule: str | None) -> dict:
    rows, columns = layer.grid
    cells = text.say(language, "grid", y=rows, x=columns)
    label, title = {
        "": (text.say(language, "card_layers"), rule) if rule else (text.say(language, "all_layers"),) * 2,
        "*": (text.say(language, "all_layers"),) * 2,
    }.get(layer.name, (layer.label, layer.name))
    title = f"{title} · {cells}"
    return {"name": layer.name, "label": label, "title": title, "grid": [rows, columns], "heads": layer.heads}


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encoder_block(
    trace: Trace, matrices: Matrices, branch: str, language: str, lesson: dict[str, object] | None = None
) -> bytes:
    """The block for `component.text_map`: tokens, words and, if the trace has it, the encoder's attention.

    A `lesson` has selectors of parts to `hide`, and says whether the `bytes` of each character are shown.
    """
    tokens = matrices.tokens
    layers, arrays = [], {"colours": colours()}
    for i, (number, heads) in enumerate(matrices.layers.items()):
        name = text.say(language, "layer_n", n=number + 1)
        layers.append({"label": str(number + 1), "title": name, "heads": len(heads) - 1})
        arrays[f"attention{i}"] = heads
    seen_text = False
    rows = []
    for token in tokens:
        seen_text = seen_text or token.span is not None
        span = list(token.span) if token.span else None
        rows.append({"id": token.id, "text": token.text, "span": span, "kind": token.kind, "before": not seen_text})
    if not seen_text and rows:  # an empty prompt: <bos> stands before the text that is not there
        rows[1:] = [{**row, "before": False} for row in rows[1:]]
    header = {
        "id": f"{trace.folder}#{branch}#text" + (f"#{json.dumps(lesson)}" if lesson else ""),
        "text": text.component_messages(language),
        "prompt": trace.manifest.prompt_of(branch),
        "tokens": rows,
        "words": [{"text": word.text, "span": [word.start, word.end]} for word in trace.words(branch)],
        "layers": layers,
        "lesson": lesson,
    }
    return pack(header, arrays)
