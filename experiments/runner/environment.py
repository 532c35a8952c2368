"""What a result was computed with: weights, code, packages, machine; and the hashes that identify them."""

import ast
import hashlib
import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

from toushi.experiments.runner.result_manifest import FileHash, Hardware
from toushi.probe.base.errors import ToushiError


def hash_weights(paths: Iterable[Path]) -> dict[str, FileHash]:
    """Size and hash of each file, by the last two parts of its path."""
    hashes: dict[str, FileHash] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ToushiError(f"the study needs the weights {path}, but there is no such file")
        name = "/".join(path.absolute().parts[-2:])  # not where a link of the hub's cache leads
        name = path.as_posix() if name in hashes else name
        hashes[name] = FileHash(bytes=path.stat().st_size, sha256=hash_file(path))
    return hashes


def source_files(module: ModuleType) -> dict[str, Path]:
    """The code of a study, module by module: its own, and what it and these import of this project and of its own
    package, at the top or within a function."""
    file = Path(str(module.__file__))
    own = file.parents[module.__name__.count(".") + (file.name == "__init__.py")]
    package_spec = util.find_spec("toushi")
    assert package_spec is not None, "this module is part of the package toushi"
    roots = {"toushi": Path(str(package_spec.origin)).parents[1]}
    roots.setdefault(module.__name__.partition(".")[0], own)
    sources: dict[str, Path] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        root = roots.get(name.partition(".")[0])
        if root is None or name in sources:
            continue
        base = root.joinpath(*name.split("."))
        files = [path for path in (base / "__init__.py", base.with_name(f"{base.name}.py")) if path.is_file()]
        if not files:  # no module, but a name within one
            continue
        file = sources[name] = files[0]
        parent = name.rpartition(".")[0]
        package = name if file.name == "__init__.py" else parent
        waiting.append(parent)
        waiting += imported_names(file.read_bytes(), package)
    return sources


@cache
def imported_names(code: bytes, package: str) -> list[str]:
    """The modules that the code of a module in this package imports, and the names from them, at any depth."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = util.resolve_name("." * node.level + (node.module or ""), package)
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return names


def hash_code(module: ModuleType) -> str:
    return hash_json({name: hash_file(file) for name, file in source_files(module).items()})


def package_versions() -> dict[str, str]:
    from toushi.probe.recording.provenance import versions

    found = dict(versions())
    for package in ("pandas", "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_hardware() -> Hardware:
    import torch

    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=processor,
        cores=os.cpu_count(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    )


def hash_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
