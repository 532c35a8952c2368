"""What a run was made with: weights, packages, machine; and the hashes that tell one thing from another."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from probe.errors import ToushiError


def weights(paths: Iterable[Path]) -> dict[str, dict]:
    """Size and hash of each file, by the end of its path."""
    found = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ToushiError(f"it needs the weights {path}, which are not there")
        name = "/".join(path.absolute().parts[-2:])  # not where a link of the hub's cache leads
        name = path.as_posix() if name in found else name
        found[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    return found


def versions() -> dict[str, str]:
    from probe.recording.provenance import versions as of_models

    found = dict(of_models())
    for package in ("pandas", "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    import torch

    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
