"""What can be taken away of a trace: figures, tables, a moving picture, the files, one page, the command that made it.

It does not use Streamlit. Each function makes its file when it is asked for.
"""

import csv
import io
import shlex
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np

from toushi.dashboards.heat_map.film_frames import expected_frames, final_image, seen_frames
from toushi.dashboards.heat_map.standalone import page
from toushi.dashboards.heat_map.word_maps import WordMaps
from toushi.probe.analysis.maps import resample
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace.manifest import FileName
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_format import MANIFEST, STEPS

COLUMN_WIDTH = 3.3  # inches of one column of a paper
GIF_SIDE, GIF_STEP, GIF_LAST = 256, 120, 1500  # pixels; milliseconds of a step and of the last one


def words_figure(trace: Trace, branch: str, language: str, kind: str) -> bytes:
    """The figure of all words at the width of a column, as png, svg or pdf."""
    from toushi.probe.figures import words_figure as figures

    buffer = io.BytesIO()
    figure = figures.words_figure(trace, branch=branch, width=COLUMN_WIDTH, columns=3, language=language)
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def shares_csv(trace: Trace, maps: WordMaps) -> bytes:
    """A row for each step, layer and word: the share of the attention, mean over heads. An empty step is the mean."""
    times = dict(zip(trace.steps, trace.times))
    lines = io.StringIO()
    table = csv.writer(lines)
    table.writerow(["step", "time", "layer", "word", "kind", "share"])
    for layer in maps.layers:
        for slot, step in enumerate([None, *maps.steps]):
            for unit, share in zip(maps.units, layer.shares[slot, 0]):
                name = f"{unit.label}#{unit.occurrence}" if unit.occurrence else unit.label
                site = {"": "heat_map", "*": "mean"}.get(layer.name, layer.name)
                time = "" if step is None else times[step]
                table.writerow(["" if step is None else step, time, site, name, unit.kind, f"{share:.6g}"])
    return ("\ufeff" + lines.getvalue()).encode()  # spreadsheets recognise UTF-8 by the mark


def steps_gif(trace: Trace) -> bytes:
    """What the model saw, and beside it what it expected, step by step. The last frame is the finished picture."""
    from PIL import Image

    steps = [] if trace.keep == "sum" else trace.steps
    films = [film for film in (seen_frames(trace, steps), expected_frames(trace, steps)) if film is not None]
    if not films:
        raise ToushiError("This trace has neither previews nor latents of its steps.")
    image = final_image(trace)
    rows = [[film[i] for film in films] for i in range(len(steps))] + ([] if image is None else [[image] * len(films)])
    frames = [Image.fromarray(np.concatenate([_enlarged(one) for one in row], axis=1)) for row in rows]
    durations = [GIF_STEP] * (len(frames) - 1) + [GIF_LAST]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _enlarged(frame: np.ndarray) -> np.ndarray:
    """The picture with a longer side of about GIF_SIDE, its pixels kept sharp when it grows."""
    longest = max(frame.shape[:2])
    if longest <= GIF_SIDE:
        return frame.repeat(GIF_SIDE // longest, 0).repeat(GIF_SIDE // longest, 1)
    size = [round(n * GIF_SIDE / longest) for n in frame.shape[:2]]
    small = resample(np.moveaxis(frame, -1, 0).astype(np.float32), size)
    return np.moveaxis(small, 0, -1).round().astype(np.uint8)


def trace_zip(trace: Trace) -> bytes:
    """The files of the trace in one folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: the maps hardly shrink
        for file in trace_files(trace):
            archive.write(file, f"{trace.folder.resolve().name}/{file.name}")
    return buffer.getvalue()


def trace_files(trace: Trace) -> list[Path]:
    """The files that belong to the trace and are there."""
    lines = [line.file for line in trace.files.lines.values()]
    names = [MANIFEST, STEPS, *get_args(FileName), *dict.fromkeys(lines)]
    return [trace.folder / name for name in names if (trace.folder / name).is_file()]


def trace_page(trace: Trace, branch: str, language: str) -> bytes:
    return page(trace, language, branch)[0].encode()


def command(trace: Trace) -> str:
    """The command that makes the trace again; for pictures of other programs the lines of Python that read it."""
    manifest = trace.manifest
    if manifest.prompt is None or manifest.name_of_model is None or manifest.source_image_sha256:
        return f"from toushi import open_trace\ntrace = open_trace({str(trace.folder)!r})"
    options = {
        "model": manifest.name_of_model,
        "negative": manifest.negative_prompt or None,
        "steps": manifest.steps.count,
        "guidance": manifest.guidance,
        "seed": manifest.seed,
        "sampler": manifest.sampler if manifest.sampler in ("euler", "heun") else None,
        "size": manifest.size and f"{manifest.size[0]}x{manifest.size[1]}",
        "edits": trace.folder if manifest.edits else None,
        "out": f"{trace.folder.name}-again",
    }
    loras = [f"{lora.file}:{lora.scale}" for lora in manifest.loras or [] if lora.file and lora.on is not False]
    words = [manifest.prompt, *(part for k, v in options.items() if v is not None for part in (f"--{k}", str(v)))]
    return shlex.join(["toushi", "trace", *words, *(["--lora", *loras] if loras else [])])
