"""Which traces there are, and which one is open. Pages share these; the state lives in Streamlit's session.

Functions of os.path look at files here: unlike those of pathlib they answer no for a name that the system refuses.
"""

import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import streamlit as st

from toushi.dashboards import messages as text
from toushi.dashboards.heat_map import matrices, payload, planes
from toushi.dashboards.heat_map import trace_pair as pairs
from toushi.dashboards.run_metadata import facts as known
from toushi.probe.base.bilingual_text import language_of_locale
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import PathError, short_path
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_format import IMAGE, MANIFEST, MEMBERS

RUNS = Path("runs")
DEEPEST = 3  # runs/cat, runs/batch/000 and one more
MOST = 200


@dataclass(frozen=True)
class Entry:
    folder: Path
    prompt: str | None  # None when it is not known: the run was given ready-made embeddings
    written: float
    damaged: bool = False  # the manifest cannot be read
    picture: bool = True  # not a trace of a text encoder alone


def language() -> str:
    return st.session_state.get("language") or language_of_locale(st.context.locale)


def say(key: str, **values) -> str:
    return text.say(language(), key, **values)


def title(entry: Entry) -> str:
    if entry.damaged:
        return say("bad_trace")
    return say("unknown_prompt") if entry.prompt is None else entry.prompt or say("empty_prompt")


def escaped(words: str) -> str:
    """A prompt as it was written: no character of it is markup."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:])", r"\\\1", words)


def entries(root: Path | None = None, deepest: int = DEEPEST) -> list[Entry]:
    """The traces of pictures below `root`, by default the gallery's, the newest first."""
    found = [entry(path.parent) for path in _manifests(root or gallery(), deepest)]
    return sorted((one for one in found if one.picture), key=lambda entry: -entry.written)[:MOST]


def _manifests(root: Path, deepest: int) -> Iterator[Path]:
    if not os.path.isdir(root):
        return iter(())
    return itertools.chain.from_iterable(root.glob("*/" * depth + MANIFEST) for depth in range(1, deepest + 1))


def entry(folder: Path) -> Entry:
    manifest, picture = folder / MANIFEST, True
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        picture = told.get("kind") != "encoder"
        prompt = told["prompt"] if picture else None
        damaged = not isinstance(prompt, str | None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        damaged = True
    written = os.path.getmtime(manifest) if os.path.isfile(manifest) else 0.0
    return Entry(folder, None if damaged else prompt, written, damaged, picture)


@st.cache_data(max_entries=MOST, show_spinner=False)
def _thumbnail(path: str, written: float) -> bytes | None:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((256, 256))
            times = max(1, 256 // max(picture.size))  # small pictures keep their pixels when enlarged
            picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(entry: Entry) -> bytes | None:
    """The picture of a trace for the gallery, as PNG; None when there is none that can be read."""
    path = entry.folder / IMAGE
    return _thumbnail(str(path), os.path.getmtime(path)) if os.path.isfile(path) else None


def argument() -> str | None:
    """The folder after `--` in `streamlit run dashboards/app.py -- FOLDER`: a trace, a collection, or many traces."""
    ours = Path(sys.argv[0]).name == "app.py"  # a test that runs this script has arguments of its own
    return sys.argv[1] if ours and len(sys.argv) > 1 else None


def gallery() -> Path:
    """Whose traces are shown and where new ones go: the argument, if it is no trace but holds some; else runs/."""
    folder = Path(argument() or RUNS)
    is_trace = os.path.isfile(folder / MANIFEST) or os.path.isfile(folder / MEMBERS)
    return folder if not is_trace and any(_manifests(folder, DEEPEST)) else RUNS


def given() -> str | None:
    """The trace, or the collection, of the command line."""
    folder = argument()
    return None if folder is None or Path(folder) == gallery() else folder


def chosen() -> str | None:
    """The folder that is open, as text: chosen by hand, else the one given; of a collection its first trace."""
    folder = st.session_state.get("folder") or given()
    if folder and os.path.isfile(Path(folder) / MEMBERS) and not os.path.isfile(Path(folder) / MANIFEST):
        return str(min((entry.folder for entry in entries(Path(folder), 1)), default=folder))
    return folder


def kept_texts() -> str | None:
    """The open folder, if it is the trace of a text encoder, which the page “Layers” shows."""
    folder = chosen()
    return folder if folder and not entry(Path(folder)).picture else None


def choose(folder: str | os.PathLike) -> None:
    st.session_state["folder"] = str(folder)


def stamp(folder: str) -> tuple:
    """Changes whenever the trace does, so that a run still being written is read anew."""
    files = (Path(folder) / name for name in ("manifest.json", "steps.jsonl", "image.png"))
    return tuple(os.stat(file).st_mtime_ns if os.path.isfile(file) else 0 for file in files)


@st.cache_resource(max_entries=8, show_spinner=False)
def _trace(folder: str, version: tuple):
    return open_trace(folder)


@st.cache_resource(max_entries=4, show_spinner=False)
def _planes(folder: str, version: tuple, branch: str):
    return planes.planes(_trace(folder, version), branch)


@st.cache_data(max_entries=4, show_spinner=False)
def picture(folder: str, version: tuple, branch: str, language: str) -> bytes:
    return payload.picture(_trace(folder, version), _planes(folder, version, branch), branch, language)


@st.cache_data(max_entries=4, show_spinner=False)
def pair(folders: tuple[str, str], versions: tuple, branch: str, language: str) -> bytes:
    both = list(zip(folders, versions))
    common = pairs.pair(*(_planes(folder, version, branch) for folder, version in both))
    return payload.pair([_trace(folder, version) for folder, version in both], common, branch, language)


@st.cache_resource(max_entries=4, show_spinner=False)
def _matrices(folder: str, version: tuple, branch: str):
    return matrices.matrices(_trace(folder, version), branch)


@st.cache_data(max_entries=4, show_spinner=False)
def encoder(folder: str, version: tuple, branch: str, language: str) -> bytes:
    return payload.encoder(_trace(folder, version), _matrices(folder, version, branch), branch, language)


def opened():
    """(trace, folder, version) of the open trace; stops the page with a message when there is none."""
    folder = chosen()
    if folder is None:
        st.info(say("nothing_open_hint"), title=say("nothing_open"), icon=":material/folder_open:")
        st.stop()
    if kept_texts():
        st.info(say("texts_open"), icon=":material/layers:")
        st.stop()
    return read(folder)


def read(folder: str):
    """(trace, folder, version); stops the page with a message when it is no trace."""
    version = stamp(folder)
    try:
        return _trace(folder, version), folder, version
    except ToushiError as error:
        refuse(error)


def refuse(error: Exception) -> NoReturn:
    st.error(
        f"{escaped(message(error))}\n\n{say('bad_trace_hint')}", title=say("bad_trace"), icon=":material/broken_image:"
    )
    st.stop()


def message(error: Exception) -> str:
    """What went wrong, in the language of the page where it is about a name of a folder."""
    return error.message.translate(language()) if isinstance(error, PathError) else str(error)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # at least one of them cannot be looked at
        return one == other


def toolbar() -> None:
    """Changes the open trace and the branch on any page."""
    folder = chosen()
    known = entries()
    if folder and os.path.isfile(Path(folder).parent / MEMBERS):
        known = sorted(entries(Path(folder).parent, 1), key=lambda entry: entry.folder) + known
    if folder:
        here = Path(folder)
        known = [entry(here), *(one for one in known if not _same(one.folder, here))]
        folder = str(here)
    labels = {str(one.folder): f"{title(one)} · {short_path(one.folder)}" for one in known}
    names = list(labels)
    picked = st.selectbox(
        say("trace"), names, index=names.index(folder) if folder else None, format_func=labels.__getitem__,
        label_visibility="collapsed", placeholder=say("trace"),
    )  # fmt: skip
    if picked is not None and picked != folder:
        choose(picked)
        st.rerun()
    try:
        branches = list(_trace(folder, stamp(folder)).branches) if folder else []
    except ToushiError:
        return  # the page itself says what is wrong
    if len(branches) > 1:
        st.segmented_control(
            say("branch"), branches, default=branches[0], required=True, key="branch",
            format_func=branch_name, label_visibility="collapsed",
        )  # fmt: skip


def branch_name(branch: str) -> str:
    return say(f"branch_{branch}") if branch in ("cond", "uncond") else branch


def branch(trace) -> str:
    """The branch to look at: the chosen one where this trace has it. Says so when the trace is not complete."""
    if not trace.complete:
        st.warning(say("incomplete", n=len(trace.steps)), icon=":material/incomplete_circle:")
    branches = list(trace.branches)
    if not branches:
        refuse(ToushiError("This trace has no branch: nothing was encoded in it."))
    wanted = st.session_state.get("branch", branches[0])
    return wanted if wanted in branches else branches[0]


def no_encoder(trace) -> None:
    """Says that there is no attention of the text encoder, and why where the manifest knows."""
    unseen = (trace.manifest.not_recorded or {}).items()
    about = [f"{glob}: {why}" for glob, why in unseen if glob == "*" or glob.startswith(("text_encoder", "encoder"))]
    st.info("\n\n".join([say("no_encoder"), *map(escaped, about)]), icon=":material/info:")


def has_encoder(trace, branch: str) -> bool:
    return bool(trace.encoder_layers(branch))


def facts(trace) -> None:
    """How the picture was made, in one line; what it was drawn under in another."""
    line = [fact for name, fact in known(trace, language()).items() if name not in ("revision", "prompt", "edits")]
    st.caption(escaped(" · ".join([*line, str(trace.folder)])))
    if edits := trace.manifest.edits:
        listed = "; ".join(json.dumps(one, ensure_ascii=False) for one in edits)
        st.info(escaped(say("edited", edits=listed)), icon=":material/edit:")


def cut(key: str, words, **values) -> None:
    """Says which words did not fit in."""
    st.warning(escaped(say(key, lost=text.listed(language(), words), **values)), icon=":material/content_cut:")


def heads_left_out(folder: str, version: tuple, branch: str) -> None:
    """Says so where the page of the text had to leave out the single heads to keep its block small."""
    if _matrices(folder, version, branch).heads_left_out:
        st.caption(say("heads_left_out"))


def left_out(folder: str, version: tuple, branch: str) -> None:
    """Says what the picture page had to leave out to keep its block small."""
    shown = _planes(folder, version, branch)
    if shown.heads_left_out:
        st.caption(say("heads_left_out"))
    if shown.steps_left_out:
        st.caption(say("steps_left_out", n=len(shown.steps), all=len(_trace(folder, version).steps)))
