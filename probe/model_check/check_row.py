"""One check as one row of JSON: which model, on which machine, which laws held. docs/verified/ collects such rows."""

import datetime
import hashlib
from pathlib import Path

from toushi.probe.base.errors import ToushiError
from toushi.probe.model_check.check_model import CheckedModel
from toushi.probe.pipelines.family import Model
from toushi.probe.trace.trace_json import parse

FORMAT = "toushi-check"
ENDS = 1 << 20  # bytes at either end of a weight file that its digest covers
MANIFEST_FIELDS = ("family", "device", "gpu", "dtype", "kernel", "threads", "loading", "size", "versions", "git")


def check_row(model: Model, checked: CheckedModel) -> dict[str, object]:
    """The row, as JSON. Names of folders are not in it, except for the last one of a model that has no other name."""
    manifest = checked.traces[0].manifest.as_dict()
    source = Path(str(getattr(model, "name_or_path", None) or ""))
    digest = weights_digest(source) if str(source) != "." and source.is_dir() else None
    identity = manifest["model"]
    assert isinstance(identity, dict)
    return {
        "format": FORMAT,
        "version": 1,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "holds": not checked.breaches,
        "difference": checked.difference,
        "model": {**identity, "class": type(model).__name__, "weights_digest": digest},
        **{name: manifest.get(name) for name in MANIFEST_FIELDS},
        "image_sha256": checked.traces[0].manifest.files["image.png"].sha256,
        "seconds": checked.seconds,
        "laws": [law._asdict() for law in checked.laws],
    }


def weights_digest(folder: Path) -> str | None:
    """sha256 of name, size and both ends of each safetensors file: the same for the same weights, and read at once."""
    digest, files = hashlib.sha256(), sorted(folder.rglob("*.safetensors"))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ENDS))
            stream.seek(max(0, size - ENDS))
            digest.update(stream.read(ENDS))
    return digest.hexdigest() if files else None


def read_rows(folder: Path) -> list[dict]:
    """The rows of a folder, by file name. Raises ToushiError for a file that is no row."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        row = parse(file.read_bytes(), str(file))
        if not isinstance(row, dict) or row.get("format") != FORMAT or row.get("version") != 1:
            raise ToushiError(f"{file} is no row of toushi check: expected format {FORMAT!r}, version 1")
        rows.append(row)
    return rows
