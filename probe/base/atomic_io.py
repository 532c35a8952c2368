"""Files that are there whole or not at all, whatever ends the process or the machine."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

SMALL = 1 << 20  # bytes
NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8"}


def contents(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> list[bytes | np.ndarray]:
    """The content of a safetensors file of contiguous arrays, in parts; nothing is copied."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    names, at = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0  # so that numbers are aligned
    for name in names:
        end = at + arrays[name].nbytes
        header[name] = {"dtype": NAMES[arrays[name].dtype.name], "shape": arrays[name].shape, "data_offsets": (at, end)}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little"), head, *(arrays[name].reshape(-1).view(np.uint8) for name in names)]


def store(path: Path, parts: Sequence[bytes | np.ndarray], sync: bool = True) -> dict[str, Any]:
    """Writes a file, which has its name only when it is whole; gives what is listed of it, {bytes, sha256}.

    The folder's own entry is certain only after `sync_folder`, without `sync` the content only after `sync_file`.
    """
    temporary = path.with_name(path.name + ".tmp")
    size, digest = sum(len(part) for part in parts), hashlib.sha256()
    if size <= SMALL:
        parts = [b"".join(parts)]  # each call to the system hands Python's lock to the sampler and back
    try:
        with open(temporary, "wb", buffering=0) as file:
            for part in parts:
                digest.update(part)
                rest = memoryview(part)
                while len(rest):
                    rest = rest[file.write(rest) :]
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return {"bytes": size, "sha256": digest.hexdigest()}


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


def sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut. Windows has no way to, and does not need one."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
