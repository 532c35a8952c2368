"""Opens a trace: `open_trace` of a picture, `open_encoder_trace` of texts, `open_collection` of several pictures."""

import contextlib
import itertools
from pathlib import Path

from toushi.probe.base.path_error import checked_path
from toushi.probe.trace.encoder_trace import EncoderTrace
from toushi.probe.trace.listing import StepLine, TextsLine
from toushi.probe.trace.manifest import check_encoder_manifest, check_manifest, check_version
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.safetensors_reader import JSON_BYTES, StepStore, read_bytes
from toushi.probe.trace.strict_model import validate
from toushi.probe.trace.trace_errors import DamagedTrace, NotAnEncoder, NotAPicture, NoTrace
from toushi.probe.trace.trace_format import (
    COLLECTION,
    MANIFEST,
    MEMBERS,
    STEPS,
    TEXTS,
    is_member,
    step_file,
    texts_file,
)
from toushi.probe.trace.trace_json import Json, parse, short


def open_trace(folder: str | Path) -> Trace:
    """The trace of a picture in the folder, finished or not.

    Raises NoTrace, NotAPicture (for the trace of a text encoder: `open_encoder_trace`), DamagedTrace, NewerTrace.
    """
    folder = Path(folder)
    raw = _read_manifest(folder)
    if _is_encoder(raw):
        raise NotAPicture(
            f"{folder} is a trace of a text encoder; a trace of a picture was expected. In Python, open_encoder_trace "
            f"opens it; toushi info {folder} lists what is in it."
        )
    manifest = check_manifest(raw, str(folder / MANIFEST))
    return Trace(StepStore(folder, manifest, _step_lines(folder, manifest.keep)))


def open_encoder_trace(folder: str | Path) -> EncoderTrace:
    """The trace of a text encoder in the folder, finished or not.

    Raises NoTrace, NotAnEncoder (for the trace of a picture: `open_trace`), DamagedTrace, NewerTrace.
    """
    folder = Path(folder)
    raw = _read_manifest(folder)
    if isinstance(raw, dict) and raw.get("kind") == "picture":
        raise NotAnEncoder(
            f"{folder} is a trace of a picture; a trace of a text encoder was expected. In Python, open_trace opens it."
        )
    manifest = check_encoder_manifest(raw, str(folder / MANIFEST))
    return EncoderTrace(folder, manifest, _text_lines(folder))


def is_encoder_trace(folder: str | Path) -> bool:
    """Whether the folder holds the trace of a text encoder, which `open_encoder_trace` opens.

    Raises NoTrace, DamagedTrace.
    """
    return _is_encoder(_read_manifest(Path(folder)))


def open_collection(folder: str | Path) -> list[Trace]:
    """The traces of a collection: a batch, or several runs, recorded into one folder. Raises NoTrace, DamagedTrace."""
    folder = checked_path(folder)
    if not (folder / MEMBERS).exists():
        hint = " It holds one trace: use open_trace." if (folder / MANIFEST).exists() else ""
        raise NoTrace(f"No collection in {folder}: it has no {MEMBERS}.{hint}")
    return [open_trace(folder / member) for member in _members(folder)]


def _read_manifest(folder: Path) -> Json:
    checked_path(folder)
    if not folder.is_dir():
        what = "it is a file, but a trace is a folder" if folder.is_file() else "there is no such folder"
        raise NoTrace(f"No trace at {folder}: {what}.")
    if not (folder / MANIFEST).exists():
        if (folder / MEMBERS).exists():
            members = _members(folder)
            named = ", ".join(members[:6]) + (", …" if len(members) > 6 else "")
            raise NoTrace(
                f"{folder} is a collection of {len(members)} traces ({named}). Open one of them, "
                f"{folder / members[0]}, or all of them with open_collection."
            )
        raise NoTrace(f"No trace in {folder}: it has no {MANIFEST}.")
    return parse(read_bytes(folder, MANIFEST, JSON_BYTES), str(folder / MANIFEST))


def _is_encoder(raw: Json) -> bool:
    return isinstance(raw, dict) and raw.get("kind") == "encoder"


def _members(folder: Path) -> list[str]:
    where = str(folder / MEMBERS)
    raw = parse(read_bytes(folder, MEMBERS, JSON_BYTES), where)
    if not isinstance(raw, dict) or raw.get("format") != COLLECTION:
        raise DamagedTrace(f'{where} is not a Toushi collection: "format" must be "{COLLECTION}".')
    check_version(raw, where)
    members = raw.get("members")
    names = [name for name in members if is_member(name)] if isinstance(members, list) else []
    if not isinstance(members, list) or not names or len(names) < len(members):
        raise DamagedTrace(f'{where}: members must be a list of folders named "000", "001", …')
    if len(set(names)) < len(names):
        raise DamagedTrace(f"{where}: members must be different folders; some are named twice.")
    for name in names:
        if (folder / name).is_symlink():
            raise DamagedTrace(f"{folder / name} must be a folder; a link can lead out of the collection.")
    return names


# --- lists of what is finished --------------------------------------------------------------------------


def _step_lines(folder: Path, keep: str) -> list[StepLine]:
    """The finished steps in order. A last line that was cut off when the process ended does not count."""
    path = folder / STEPS
    *whole, last = read_bytes(folder, STEPS, JSON_BYTES).split(b"\n", 2**20)
    lines = [_step_line(line, keep, f"{path} line {number}") for number, line in enumerate(whole, 1)]
    if last:
        with contextlib.suppress(DamagedTrace):
            lines.append(_step_line(last, keep, str(path)))
    steps = [line.step for line in lines]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise DamagedTrace(f"{path} must list the steps in order, each once; it lists {steps[:20]}.")
    return lines


def _step_line(data: bytes, keep: str, where: str) -> StepLine:
    """The file's name follows from the step, so no other file can be named."""
    line = validate(StepLine, parse(data, where), where)
    _check_file(line.file, step_file(line.step, keep), where)
    return line


def _text_lines(folder: Path) -> list[TextsLine]:
    """The finished files of texts in order. A last line that was cut off when the process ended does not count."""
    path, lines, count = folder / TEXTS, [], 0
    *whole, _ = read_bytes(folder, TEXTS, 8 * JSON_BYTES).split(b"\n")
    for number, data in enumerate(whole):
        where = f"{path} line {number + 1}"
        line = validate(TextsLine, parse(data, where), where)
        _check_file(line.file, texts_file(number), where)
        if line.first != count:
            raise DamagedTrace(f"{where}: first must be {count}; {line.first} is there.")
        count += len(line.texts)
        lines.append(line)
    return lines


def _check_file(name: str, expected: str, where: str) -> None:
    if name != expected:
        raise DamagedTrace(f'{where}: file must be "{expected}"; {short(name)} is there.')
