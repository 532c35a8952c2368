"""What a run was made with: weights, code, packages, machine; and the hashes that tell one thing from another."""

import ast
import hashlib
import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from toushi.probe.base.errors import ToushiError


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


def sources(module: ModuleType) -> dict[str, Path]:
    """The code that an experiment is made of, module by module: its own, and what it and these import of this project
    and of its own package, at the top or within a function."""
    file = Path(str(module.__file__))
    own = file.parents[module.__name__.count(".") + (file.name == "__init__.py")]
    homes = {"toushi": Path(str(util.find_spec("toushi").origin)).parents[1]}
    homes.setdefault(module.__name__.partition(".")[0], own)
    found: dict[str, Path] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        home = homes.get(name.partition(".")[0])
        if home is None or name in found:
            continue
        base = home.joinpath(*name.split("."))
        files = [one for one in (base / "__init__.py", base.with_name(f"{base.name}.py")) if one.is_file()]
        if not files:  # no module, but a name within one
            continue
        file = found[name] = files[0]
        above = name.rpartition(".")[0]
        package = name if file.name == "__init__.py" else above
        waiting.append(above)
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                whence = util.resolve_name("." * node.level + (node.module or ""), package)
                waiting += [whence, *(f"{whence}.{one.name}" for one in node.names)]
    return found


def code_hash(module: ModuleType) -> str:
    return digest({name: file_hash(file) for name, file in sources(module).items()})


def versions() -> dict[str, str]:
    from toushi.probe.recording.provenance import versions as of_models

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
