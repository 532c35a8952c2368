"""Files that are there whole or not at all, whatever ends the process or the machine."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8"}


def save_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> str:
    """A safetensors file of contiguous arrays; its sha256. Nothing is copied, and the file is not read again."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    names, at = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0  # so that numbers are aligned
    for name in names:
        array = arrays[name]
        end = at + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": array.shape, "data_offsets": (at, end)}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (
            len(head).to_bytes(8, "little"),
            head,
            *(arrays[name].reshape(-1).view(np.uint8) for name in names),
        ):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def store(path: Path, save: Callable[[Path], str | None]) -> dict[str, Any]:
    """`save(temporary path)`, which may return the sha256 of what it wrote; then the file has its name. The folder's
    own entry is certain only after `sync_folder`. Gives {bytes, sha256}."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        digest = save(temporary)
        with open(temporary, "rb+") as file:
            digest = digest or hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return {"bytes": size, "sha256": digest}


def replace(path: Path, data: bytes, sync: bool = True) -> None:
    """The file holds this; without `sync` a power cut may undo it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def save_json(path: Path, value: Mapping[str, Any], sync: bool = True) -> None:
    """A field a line: indenting all of it would take a hundred times as long."""
    fields = (f" {json.dumps(key)}: {json.dumps(field, ensure_ascii=False)}" for key, field in value.items())
    replace(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode(), sync)


def sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut. Windows has no way to, and does not need one."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
