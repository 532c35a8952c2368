"""Files that are whole or absent, whatever ends the process or the machine.

A file is written under a temporary name in the same folder, fsynced and renamed. The rename survives a power cut only
after the folder has been fsynced, too.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

import numpy as np

ONE_WRITE_BYTES = 1 << 20  # a file of at most this size is written by one system call, and hashed before
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8"}


class FileDigest(TypedDict):
    bytes: int
    sha256: str


@contextmanager
def atomic_path(path: Path, *, sync: bool = True, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, for the block to write. After the block that file gets the name `path`.

    An exception in the block removes the temporary file, and `path` stays as it was. Without `sync`, a power cut may
    undo the write. With `shared`, other processes may write the same file now, so the temporary name has the process id.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    try:
        yield temporary
        if sync:
            fsync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        fsync_folder(path.parent)


def write_atomic(path: Path, content: str | bytes, *, sync: bool = True, shared: bool = False) -> None:
    """Writes the file (text as UTF-8) through `atomic_path`."""
    with atomic_path(path, sync=sync, shared=shared) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Mapping[str, object], *, sync: bool = True) -> None:
    """Writes a JSON object, one field in a line. Full indentation would take a hundred times as long."""
    fields = (f" {json.dumps(key)}: {json.dumps(field, ensure_ascii=False)}" for key, field in value.items())
    write_atomic(path, "{\n" + ",\n".join(fields) + "\n}\n", sync=sync)


def write_with_digest(path: Path, parts: Sequence[bytes | memoryview], sync: bool = True) -> FileDigest:
    """Size and hash of the file that it writes, for the line that lists it.

    The caller fsyncs the folder (`fsync_folder`), and without `sync` the file (`fsync_file`), before it lists the file.
    """
    size = sum(len(part) for part in parts)
    if size <= ONE_WRITE_BYTES:
        parts = [b"".join(parts)]  # at each system call another thread, the sampler's, may take Python's lock
        digest = _sha256(parts)
        _write(path, parts, sync)
    else:  # hashing takes about as long as writing: both at once
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(_sha256, parts)
            _write(path, parts, sync)
            digest = hashing.result()
    return FileDigest(bytes=size, sha256=digest)


def _sha256(parts: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _write(path: Path, parts: Sequence[bytes | memoryview], sync: bool) -> None:
    with atomic_path(path, sync=False) as temporary, open(temporary, "wb", buffering=0) as file:
        for part in parts:
            rest = memoryview(part)
            while len(rest):
                rest = rest[file.write(rest) :]
        if sync:
            os.fsync(file.fileno())


def safetensors_parts(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The bytes of a safetensors file of these contiguous arrays, in parts. No array is copied."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    names, start = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0  # wide numbers first: all aligned
    for name in names:
        array, end = arrays[name], start + arrays[name].nbytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little"), head, *(arrays[name].reshape(-1).view(np.uint8).data for name in names)]


def fsync_file(path: Path) -> None:
    """Makes the content of a file survive a power cut."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut. Windows has no call for it and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
