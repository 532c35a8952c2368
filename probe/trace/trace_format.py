"""The names of a trace on disk: its files, its tensors, its constants. docs/trace-format.md describes them."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeGuard

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.safe_read import read_regular_file
from toushi.probe.text.alignment import Token

FORMAT, COLLECTION = "toushi-trace", "toushi-collection"
VERSION = 2  # the newest that can be read
FIRST_VERSION = (
    1  # written where a reader of version 1 reads the trace right: no `pad_columns`, no unknown token or image
)
MANIFEST, STEPS, TEXTS, MEMBERS = "manifest.json", "steps.jsonl", "texts.jsonl", "collection.json"
ENCODER: Final = "encoder.safetensors"
IMAGE: Final = "image.png"
PADS = -1  # column of the place that holds the sum over all pads, or over a picture
SUMS = {"pad": "(pads)", "image": "(image)"}  # text of that place, by the kind of what is summed
LONGEST = 65_536  # of an axis that the manifest leaves open
CONCEPTS = "concepts"  # the branch of texts outside the prompt: nobody's keys, so their maps sum to nothing
NEGATIVE = ("uncond", "image")  # branches that have the negative prompt; `image` has a source picture, too
KEEPS = ("heads", "mean", "sum")


def step_file(step: int, keep: str) -> str:
    return f"{'sum' if keep == 'sum' else 'step'}_{step:04d}.safetensors"


def texts_file(number: int) -> str:
    return f"texts_{number:04d}.safetensors"


# --- columns --------------------------------------------------------------------------------------------


def stored_columns(tokens: Sequence[Token]) -> tuple[list[int], list[int]]:
    """The columns that are stored one by one, and the pad columns, whose sum is stored. Both in order.

    Columns of a source picture, if there are any, are summed in place of pads. A recorder writes the maps of the first.
    If there are pad columns, it writes the sum over them as the last place of the token axis. The branch in the manifest
    gets `"pad_columns": pads or None`, and `columns` as without pads.
    """
    columns = {token.column: token.kind for token in tokens if token.column is not None}
    summed = "image" if "image" in columns.values() else "pad"
    pads = sorted(column for column, kind in columns.items() if kind == summed)
    return sorted(set(columns) - set(pads)), pads


# --- tensors of a picture -------------------------------------------------------------------------------


def map_key(site: str, branch: str) -> str:
    return f"{site}/{branch}"


def rest_key(site: str, branch: str) -> str:
    return f"{site}/{branch}/rest"


def state_key(index: int, branch: str) -> str:
    return f"state/{index}/{branch}"


def encoder_attention_key(layer: int, branch: str) -> str:
    return f"attention/{layer}/{branch}"


def numbered_keys(keys: Iterable[str], kind: str, branch: str) -> dict[int, str]:
    """Number -> key, in order, of the keys `{kind}/{number}/{branch}`; `kind` is "state" or "attention"."""
    matches = (re.fullmatch(rf"{kind}/([0-9]{{1,6}})/{branch}", key) for key in keys)
    return dict(sorted((int(match[1]), match[0]) for match in matches if match))


def is_encoder_key(key: str, branches: Iterable[str]) -> bool:
    match = re.fullmatch(r"(?:state|attention)/[0-9]{1,6}/(\w+)", key)
    return match is not None and match[1] in branches


# --- tensors of texts -----------------------------------------------------------------------------------


def text_state_key(text: int, layer: int) -> str:
    return f"text/{text}/{layer}"


def text_attention_key(text: int, layer: int) -> str:
    return f"text/{text}/{layer}/attention"


def text_final_key(text: int) -> str:
    return f"text/{text}/final"


# --- shapes ---------------------------------------------------------------------------------------------


def fits(shape: Iterable[int], allowed: list[tuple[int, ...]]) -> bool:
    """Whether the shape is one of the allowed ones, where -1 stands for any length from 1 to LONGEST."""
    shape = tuple(shape)
    return any(
        len(shape) == len(sizes) and all(n == m or (m == -1 and 1 <= n <= LONGEST) for n, m in zip(shape, sizes))
        for sizes in allowed
    )


# --- folders --------------------------------------------------------------------------------------------


def is_trace_file(name: str) -> bool:
    """Whether a file of this name belongs to a trace, finished or not. A folder with any other file is never emptied."""
    pattern = (
        r"(manifest\.json|(steps|texts)\.jsonl|collection\.json|(image|words)\.png|"
        r"(encoder|(step|sum|texts)_[0-9]{4,})\.safetensors)"
    )
    return re.fullmatch(pattern + r"(\.tmp)?", name) is not None


def is_member(name: object) -> TypeGuard[str]:
    """Whether this is the name of a folder in a collection: 000, 001, …"""
    return isinstance(name, str) and re.fullmatch(r"[0-9]{3,6}", name) is not None


def format_of(folder: Path) -> object:
    """The format that the manifest in the folder names. None if there is no manifest, or it cannot be read."""
    try:
        manifest = json.loads(read_regular_file(folder / MANIFEST))
    except (ToushiError, ValueError, RecursionError):
        return None
    return manifest.get("format") if isinstance(manifest, dict) else None
