"""The traces of the gallery, and the open one. All pages use this module; its state is in Streamlit's session.

It uses functions of os.path because, unlike those of pathlib, they return False for a name that the system refuses.
"""

import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from toushi.dashboards import messages as text
from toushi.dashboards import permissions
from toushi.dashboards import sampling_worker as worker
from toushi.dashboards.heat_map import matrices, payload, word_maps
from toushi.dashboards.heat_map import trace_pair as pairs
from toushi.dashboards.run_metadata import run_facts
from toushi.probe.base.bilingual_text import language_of_locale
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import PathError, short_path
from toushi.probe.trace.integrity import changed_files
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.output_dir import prepare_output_dir
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_format import CONCEPTS, IMAGE, MANIFEST, MEMBERS

RUNS = Path("runs")
MAX_DEPTH = 3  # runs/cat, runs/batch/000 and one more
MAX_ENTRIES = 200
MAX_LISTED = 5  # changed files in a warning
ERRORS = ("NoTrace", "DamagedTrace", "NewerTrace", "NotRecorded", "OSError")  # with a sentence in Chinese
MAX_CHECKED = 2**30  # bytes whose checksums are checked when a trace is opened: about a second
GUIDED = ("cond", "uncond")


@dataclass(frozen=True)
class Entry:
    folder: Path
    prompt: str | None  # None if it is unknown: the run was given prompt embeddings
    written: float
    damaged: bool = False  # the manifest cannot be read
    picture: bool = True  # not a trace of a text encoder alone


def language() -> str:
    return st.session_state.get("language") or language_of_locale(st.context.locale)


def say(key: str, **values: object) -> str:
    return text.say(language(), key, **values)


def title(entry: Entry) -> str:
    if entry.damaged:
        return say("bad_trace")
    return say("unknown_prompt") if entry.prompt is None else entry.prompt or say("empty_prompt")


def escape_markdown(words: str) -> str:
    """The text with every character of Markdown escaped."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:])", r"\\\1", words)


def entries(root: Path | None = None, deepest: int = MAX_DEPTH) -> list[Entry]:
    """The traces of pictures below `root` (default: the gallery), newest first."""
    found = [entry(path.parent) for path in _manifests(root or gallery(), deepest)]
    return sorted((one for one in found if one.picture), key=lambda entry: -entry.written)[:MAX_ENTRIES]


def _manifests(root: Path, deepest: int) -> Iterator[Path]:
    if not os.path.isdir(root):
        return iter(())
    return itertools.chain.from_iterable(root.glob("*/" * depth + MANIFEST) for depth in range(1, deepest + 1))


def entry(folder: Path) -> Entry:
    manifest, picture = folder / MANIFEST, True
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        picture = values.get("kind") != "encoder"
        prompt = values["prompt"] if picture else None
        damaged = not isinstance(prompt, str | None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        damaged = True
    written = os.path.getmtime(manifest) if os.path.isfile(manifest) else 0.0
    return Entry(folder, None if damaged else prompt, written, damaged, picture)


@st.cache_data(max_entries=MAX_ENTRIES, show_spinner=False)
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


def delete(entry: Entry) -> None:
    """Deletes the trace. Raises WriteFailed, or PathError, if its folder holds anything else."""
    prepare_output_dir(entry.folder, overwrite=True).rmdir()


def can_be_deleted(entry: Entry) -> bool:
    """Not a trace that is being written, and not a member of a collection, which lists it."""
    if permissions.is_read_only():
        return False
    is_written = any(_same(job.folder, entry.folder) for job in worker.running())
    return not (is_written or os.path.isfile(entry.folder.parent / MEMBERS))


def thumbnail(entry: Entry) -> bytes | None:
    """The picture of a trace for the gallery, as PNG; None if it cannot be read."""
    path = entry.folder / IMAGE
    return _thumbnail(str(path), os.path.getmtime(path)) if os.path.isfile(path) else None


def argument() -> str | None:
    """FOLDER of `streamlit run dashboards/app.py -- FOLDER`: a trace, a collection, or a folder of traces."""
    return next(
        (one for one in permissions.arguments() if one not in (permissions.SHARED, permissions.READ_ONLY)), None
    )


def gallery() -> Path:
    """The folder whose traces are listed and where new ones are written: the argument if it holds traces; else runs/."""
    folder = Path(argument() or RUNS)
    is_trace = os.path.isfile(folder / MANIFEST) or os.path.isfile(folder / MEMBERS)
    return folder if not is_trace and any(_manifests(folder, MAX_DEPTH)) else RUNS


def given_trace() -> str | None:
    """The trace or collection of the command line."""
    folder = argument()
    return None if folder is None or Path(folder) == gallery() else folder


def current_folder() -> str | None:
    """The open folder: the one that was chosen, else that of the command line; of a collection its first trace."""
    folder = st.session_state.get("folder") or given_trace()
    if folder and os.path.isfile(Path(folder) / MEMBERS) and not os.path.isfile(Path(folder) / MANIFEST):
        return str(min((entry.folder for entry in entries(Path(folder), 1)), default=folder))
    return folder


def text_trace_folder() -> str | None:
    """The open folder if it is a trace of a text encoder, which the page “Layers” shows."""
    folder = current_folder()
    return folder if folder and not entry(Path(folder)).picture else None


def open_folder(folder: str | os.PathLike) -> None:
    st.session_state["folder"] = str(folder)


def trace_version(folder: str) -> tuple:
    """A value that changes with the trace, so that a trace is read again while it is being written."""
    files = (Path(folder) / name for name in ("manifest.json", "steps.jsonl", "image.png"))
    return tuple(os.stat(file).st_mtime_ns if os.path.isfile(file) else 0 for file in files)


@st.cache_resource(max_entries=8, show_spinner=False)
def _trace(folder: str, version: tuple) -> Trace:
    return open_trace(folder)


@st.cache_data(max_entries=8, show_spinner=False)
def _changed_files(folder: str, written: tuple) -> list[str] | None:
    """One sentence for each file that is not what was recorded; None if the trace is too large to look."""
    trace = _trace(folder, trace_version(folder))
    size = sum(entry.bytes for entry in [*trace.manifest.files.values(), *trace.files.lines.values()])
    return changed_files(trace.files) if size <= MAX_CHECKED else None


def check_files(folder: str) -> list[str] | None:
    """`_changed_files`, looked for again whenever a file of the folder was written."""
    with os.scandir(folder) as files:
        return _changed_files(folder, tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files)))


@st.cache_resource(max_entries=4, show_spinner=False)
def word_maps_of(folder: str, version: tuple, branch: str) -> word_maps.WordMaps:
    return word_maps.read_word_maps(_trace(folder, version), branch)


@st.cache_data(max_entries=4, show_spinner=False)
def picture_block(folder: str, version: tuple, branch: str, language: str, actions: tuple[str, ...] = ()) -> bytes:
    maps = word_maps_of(folder, version, branch)
    return payload.picture_block(_trace(folder, version), maps, branch, language, actions=actions)


@st.cache_data(max_entries=4, show_spinner=False)
def pair_block(folders: tuple[str, str], versions: tuple, branch: str, language: str) -> bytes:
    both = list(zip(folders, versions))
    common = pairs.align_traces(*(word_maps_of(folder, version, branch) for folder, version in both))
    return payload.pair_block((_trace(*both[0]), _trace(*both[1])), common, branch, language)


@st.cache_data(max_entries=4, show_spinner=False)
def branches_block(folder: str, version: tuple, language: str) -> bytes:
    both = (word_maps_of(folder, version, branch) for branch in GUIDED)
    return payload.branches_block(_trace(folder, version), pairs.align_branches(*both), language)


@st.cache_resource(max_entries=4, show_spinner=False)
def _matrices(folder: str, version: tuple, branch: str) -> matrices.Matrices:
    return matrices.read_matrices(_trace(folder, version), branch)


@st.cache_data(max_entries=4, show_spinner=False)
def encoder_block(folder: str, version: tuple, branch: str, language: str) -> bytes:
    return payload.encoder_block(_trace(folder, version), _matrices(folder, version, branch), branch, language)


def read_open_trace() -> tuple[Trace, str, tuple]:
    """(trace, folder, version) of the open trace. Without one, shows a message and stops the page."""
    folder = current_folder()
    if folder is None:
        st.info(say("nothing_open_hint"), title=say("nothing_open"), icon=":material/folder_open:")
        st.stop()
    if text_trace_folder():
        st.info(say("texts_open"), icon=":material/layers:")
        st.stop()
    return read_trace(folder)


def read_trace(folder: str) -> tuple[Trace, str, tuple]:
    """(trace, folder, version), and a warning if its files were changed. If it is no trace, shows a message and stops
    the page."""
    version = trace_version(folder)
    try:
        trace = _trace(folder, version)
        changed = check_files(folder)
    except (ToushiError, OSError) as error:
        stop_with_error(error)
    if changed:
        listed = "\n".join(f"- {escape_markdown(one)}" for one in changed[:MAX_LISTED])
        st.warning(f"{say('changed_files', n=len(changed))}\n\n{listed}", icon=":material/gpp_bad:")
    return trace, folder, version


def stop_with_error(error: Exception) -> NoReturn:
    st.error(
        f"{escape_markdown(translate_error(error))}\n\n{say('bad_trace_hint')}",
        title=say("bad_trace"),
        icon=":material/broken_image:",
    )
    st.stop()


def translate_error(error: Exception) -> str:
    """The text of the error in the language of the page: all of it for folder names, else a sentence on its kind."""
    if isinstance(error, PathError):
        return error.message.translate(language())
    return explain_error([base.__name__ for base in type(error).__mro__], str(error))


def explain_error(kinds: Iterable[str], message: str) -> str:
    """The message of an error, behind a sentence on the first of its classes that has one."""
    kind = next((name for name in ERRORS if name in kinds), None)
    return message if kind is None else f"{say(f'error_{kind}')} {message}"


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # at least one of them cannot be read
        return path == other


def toolbar(*, difference: bool = False) -> DeltaGenerator:
    """Shows the menus for the open trace and the branch; with `difference` also cond − uncond. Comes back with their row."""
    row = st.container(horizontal=True, vertical_alignment="center")
    with row:
        _menus(difference)
    return row


def _menus(difference: bool) -> None:
    folder = current_folder()
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
        open_folder(picked)
        st.rerun()
    try:
        branches = list(_trace(folder, trace_version(folder)).branches) if folder else []
    except (ToushiError, OSError):
        return  # the page shows the error
    if difference and set(GUIDED) <= set(branches):
        branches.append("difference")
    if len(branches) > 1:
        if st.session_state.get("branch") not in branches:
            st.session_state["branch"] = branches[0]
        st.segmented_control(
            say("branch"), branches, required=True, key="branch", format_func=branch_name, label_visibility="collapsed"
        )


def branch_name(branch: str) -> str:
    return say(f"branch_{branch}") if branch in (*GUIDED, "image", CONCEPTS, "difference") else branch


def chosen_branch(trace: Trace) -> str:
    """The chosen branch if the trace has it, else its first one. Shows a warning if the trace is not complete."""
    if not trace.complete:
        st.warning(say("incomplete", n=len(trace.steps)), icon=":material/incomplete_circle:")
    branches = list(trace.branches)
    if not branches:
        stop_with_error(ToushiError("This trace has no branch: no prompt was encoded."))
    wanted = st.session_state.get("branch", branches[0])
    return wanted if wanted in branches else branches[0]


def shows_difference(trace: Trace) -> bool:
    """Whether cond − uncond is chosen."""
    return set(GUIDED) <= set(trace.branches) and st.session_state.get("branch") == "difference"


def explain_branch(trace: Trace) -> None:
    """Shows what uncond is, where it or the difference is shown."""
    if set(GUIDED) <= set(trace.branches) and st.session_state.get("branch") in ("uncond", "difference"):
        st.caption(escape_markdown(say("branch_how")))


def show_no_encoder(trace: Trace) -> None:
    """Shows that there is no attention of the text encoder, and the reason if the manifest has it."""
    unseen = (trace.manifest.not_recorded or {}).items()
    about = [f"{glob}: {why}" for glob, why in unseen if glob == "*" or glob.startswith(("text_encoder", "encoder"))]
    st.info("\n\n".join([say("no_encoder"), *map(escape_markdown, about)]), icon=":material/info:")


def has_encoder(trace: Trace, branch: str) -> bool:
    return bool(trace.encoder_layers(branch))


def show_facts(trace: Trace) -> None:
    """Shows how the picture was made, in one line, and its edits in another."""
    line = [fact for name, fact in run_facts(trace, language()).items() if name not in ("revision", "prompt", "edits")]
    changed = check_files(str(trace.folder))
    if changed is not None:
        line.append(say("files_changed") if changed else say("files_intact"))
    about_guidance = None if trace.manifest.guidance is None else say("guidance_help")
    st.caption(escape_markdown(" · ".join([*line, str(trace.folder)])), help=about_guidance)
    if edits := trace.manifest.edits:
        listed = "; ".join(json.dumps(one, ensure_ascii=False) for one in edits)
        st.info(escape_markdown(say("edited", edits=listed)), icon=":material/edit:")


def warn_cut(key: str, words: Iterable[str], **values: object) -> None:
    """Shows which words were cut from a text."""
    st.warning(
        escape_markdown(say(key, lost=text.join_words(language(), words), **values)), icon=":material/content_cut:"
    )


def show_omitted_heads(folder: str, version: tuple, branch: str) -> None:
    """Shows that the single heads of the text encoder were omitted, if they were."""
    if _matrices(folder, version, branch).heads_left_out:
        st.caption(say("heads_left_out"))


def show_omissions(folder: str, version: tuple, branch: str) -> None:
    """Shows which heads and steps were omitted to keep the block small."""
    shown = word_maps_of(folder, version, branch)
    if shown.heads_left_out:
        st.caption(say("heads_left_out"))
    if shown.steps_left_out:
        st.caption(say("steps_left_out", n=len(shown.steps), all=len(_trace(folder, version).steps)))
