"""Opens what lies in a folder: `open_trace` a picture, `open_encoder_trace` texts, `open_collection` several pictures."""

from pathlib import Path
from typing import Any

from toushi.probe.trace.encoder_trace import EncoderTrace
from toushi.probe.trace.manifest import check_manifest, check_version
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.safetensors_reader import JSON_BYTES, StepStore, read_bytes, read_lines
from toushi.probe.trace.trace_errors import DamagedTrace, NotAnEncoder, NotAPicture, NoTrace
from toushi.probe.trace.trace_format import COLLECTION, MANIFEST, MEMBERS, is_member
from toushi.probe.trace.trace_json import parse


def open_trace(folder: str | Path) -> Trace:
    """The trace of a picture in the folder, finished or not.

    Raises NoTrace, NotAPicture (for the trace of a text encoder: `open_encoder_trace`), DamagedTrace, NewerTrace.
    """
    folder = Path(folder)
    raw = _read_manifest(folder)
    if _is_encoder(raw):
        raise NotAPicture(
            f"{folder} is a trace of a text encoder, where a trace of a picture was expected: toushi info {folder} says "
            "what is in it, and open_encoder_trace gives it to Python."
        )
    manifest = check_manifest(raw, str(folder / MANIFEST))
    return Trace(StepStore(folder, manifest, read_lines(folder, manifest["keep"])))


def open_encoder_trace(folder: str | Path) -> EncoderTrace:
    """The trace of a text encoder in the folder, finished or not.

    Raises NoTrace, NotAnEncoder (for the trace of a picture: `open_trace`), DamagedTrace, NewerTrace.
    """
    folder = Path(folder)
    raw = _read_manifest(folder)
    if isinstance(raw, dict) and raw.get("kind") == "picture":
        raise NotAnEncoder(
            f"{folder} is a trace of a picture, where a trace of a text encoder was expected: open_trace gives it to Python."
        )
    return EncoderTrace(folder, raw)


def is_encoder_trace(folder: str | Path) -> bool:
    """Whether the folder holds the trace of a text encoder, which `open_encoder_trace` opens.

    Raises NoTrace, DamagedTrace.
    """
    return _is_encoder(_read_manifest(Path(folder)))


def open_collection(folder: str | Path) -> list[Trace]:
    """The traces of a folder that several runs, or a batch, were recorded into."""
    folder = Path(folder)
    if not (folder / MEMBERS).exists():
        hint = " It holds one trace: use open_trace." if (folder / MANIFEST).exists() else ""
        raise NoTrace(f"No collection in {folder}: it has no {MEMBERS}.{hint}")
    return [open_trace(folder / member) for member in _members(folder)]


def _read_manifest(folder: Path) -> Any:
    if not folder.is_dir():
        raise NoTrace(f"No trace at {folder}: there is no such folder.")
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


def _is_encoder(raw: Any) -> bool:
    return isinstance(raw, dict) and raw.get("kind") == "encoder"


def _members(folder: Path) -> list[str]:
    where = str(folder / MEMBERS)
    raw = parse(read_bytes(folder, MEMBERS, JSON_BYTES), where)
    if not isinstance(raw, dict) or raw.get("format") != COLLECTION:
        raise DamagedTrace(f'{where} is not a Toushi collection: "format" must be "{COLLECTION}".')
    check_version(raw, where)
    members = raw.get("members")
    if not isinstance(members, list) or not members or not all(map(is_member, members)):
        raise DamagedTrace(f'{where}: members must be a list of folders named "000", "001", …')
    if len(set(members)) < len(members):
        raise DamagedTrace(f"{where}: members must be different folders; some are named twice.")
    for member in members:
        if (folder / member).is_symlink():
            raise DamagedTrace(f"{folder / member} must be a folder; a link can lead out of the collection.")
    return members
