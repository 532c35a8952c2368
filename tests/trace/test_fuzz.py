"""Traces that were damaged, or made up to harm: 640 of them, each drawn from its number alone.

Whatever lies in the folder, opening it, reading all of it, verifying it and `toushi info` end soon, with a clean result
or the project's own error; nothing outside the folder is opened, and no answer is far larger than what lies there.
"""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import traceback
import tracemalloc
import zlib
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import pytest

from tests.trace.test_damaged import STEP, use_all, whole  # noqa: F401
from toushi.cli.info import Info
from toushi.cli.verify import Verify
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace import safetensors_reader as stored
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.open import open_collection, open_trace
from toushi.probe.trace.trace_errors import DamagedTrace

COUNT, FAST = 640, 30
SECONDS, MEMORY = 10, 3 * 2**28  # of one case: of the processor; bytes beyond what was there

FILES = [layout.MANIFEST, layout.STEPS, "step_0000.safetensors", STEP, layout.ENCODER, layout.IMAGE]
OUTSIDE = "outside"
PATHS = [
    "../outside",
    "/etc/passwd",
    "..",
    ".",
    "/",
    "",
    "a\0b",
    "\0",
    "step_0001.safetensors/../../outside/manifest.json",
]
PATHS += ["..\\outside", "~", "//etc/passwd", "step_0001.safetensors\0.txt", "con", "step_１.safetensors", "x" * 5000]
NUMBERS = [-1, 0, 1, 2, 3, 7, 65_536, 65_537, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5]
NUMBERS += [1e308, -0.0, True, False]
VALUES = [
    None,
    "",
    "cond",
    "cross",
    "self",
    "encoder",
    "sum",
    "mean",
    "猫",
    "𰻝",
    "*",
    "[",
    "(a+)+$",
    "\x1b[2J",
    [],
    {},
]
VALUES += [[[]], {"": {}}, [None] * 5, *NUMBERS, *PATHS[:9]]
SHAPES = [[], [0], [0, 0, 0, 0], [2**31, 2**31], [2**63, 2], [10**9, 0, 8, 4], [2, 0, 8, 4], [0, 3, 8, 4], [10**9, 0]]
SHAPES += [
    [2**32, 2**32, 2**32],
    [1] * 40,
    [0, 10**12],
    [65_536, 65_536, 0],
    [2**62, 0, 4],
    [-1, 8, 4],
    [8.5, 4],
    ["8", 4],
]
DTYPES = ["F16", "F32", "U8", "F64", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "C64", "F4", "f16", "O", "", None, 7]


# --- ways to do harm; each changes the folder, drawing from `draw` ----------------------------------------


def manifest_of(folder):
    return json.loads((folder / layout.MANIFEST).read_text("utf-8"))


def save_manifest(folder, manifest):
    (folder / layout.MANIFEST).write_text(json.dumps(manifest), "utf-8")


def lines_of(folder):
    return [json.loads(line) for line in (folder / layout.STEPS).read_text("utf-8").splitlines()]


def save_lines(folder, lines):
    (folder / layout.STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def list_anew(folder, name):
    """Size and checksum of a changed file, as listed, so that what reads it comes to its content."""
    raw = (folder / name).read_bytes()
    about = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    if name.startswith("step"):
        lines = lines_of(folder)
        save_lines(folder, [{**line, **about} if line["file"] == name else line for line in lines])
    else:
        manifest = manifest_of(folder)
        manifest["files"][name] = about
        save_manifest(folder, manifest)


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(draw, value):
    """The JSON value with something in it removed, replaced, renamed, repeated or made huge."""
    found = [path for path in places(value) if path]
    if not found:
        return draw.choice(VALUES)
    # Deep paths are many and alike (tokens); the shallow ones decide more.
    path = draw.choice([path for path in found if len(path) <= draw.choice([1, 2, 3, 9])] or found)
    *outer, last = path
    inside = value
    for key in outer:
        inside = inside[key]
    how = draw.randrange(6)
    if how == 0:
        del inside[last]
    elif how == 1 and isinstance(inside, dict):
        inside[draw.choice([*PATHS, "cond", "heads", "format"])] = inside.pop(last)
    elif how == 2 and isinstance(inside, list):
        inside.extend([inside[last]] * draw.choice([1, 3, 1000]))
    elif how == 3:
        inside[last] = {str(draw.choice(VALUES)): draw.choice(VALUES)}
    elif how == 4 and isinstance(inside[last], str):
        inside[last] = draw.choice([inside[last] * 2, inside[last][:-1], inside[last] + "\0", inside[last].upper()])
    else:
        inside[last] = draw.choice(VALUES)
    return value


def harm_manifest(draw, folder):
    manifest = manifest_of(folder)
    for _ in range(draw.randint(1, 4)):
        manifest = changed(draw, manifest) if isinstance(manifest, dict | list) else manifest
    save_manifest(folder, manifest)


def harm_sites(draw, folder):
    """A manifest that keeps to the format and yet asks for the absurd."""
    manifest = manifest_of(folder)
    grid = draw.choice([[65_536, 65_536], [1, 1], [8191, 4], [32, 32], [4, 8], [65_536, 1]])
    site = {"kind": draw.choice(["cross", "self"]), "grid": grid, "heads": draw.choice([None, 1, 2, 65_536])}
    name = draw.choice([*manifest["sites"], "new", "..", "a[!b]*", "\ud7ff"])
    manifest["sites"][name] = site
    manifest["keep"] = draw.choice(["heads", "heads", "mean", "sum"])
    if draw.random() < 0.3:
        manifest["branches"]["cond"]["columns"] = draw.choice([[], [0], [3, 1], list(range(9))])
    if draw.random() < 0.3:
        manifest["heat_map"] = {"sites": draw.choice([["*"], ["**" * 40 + "b"], [".."], [name]]), "rule": "\x1b]0;x\7"}
    if draw.random() < 0.3:
        manifest["steps"] = {"count": draw.choice([0, 1, 10**6]), "times": draw.choice([None, [], [0.5] * 9])}
    save_manifest(folder, manifest)


def harm_steps(draw, folder):
    lines = lines_of(folder)
    how = draw.randrange(5)
    if how == 0:
        lines = draw.choice([lines * 2, lines[::-1], lines[1:], [], lines[:1] * 900])
    elif how == 1:
        lines[1] = draw.choice(VALUES)
    elif how == 2:
        lines[draw.randrange(3)]["file"] = draw.choice(PATHS)
    else:
        line = lines[draw.randrange(3)]
        line[draw.choice(sorted(line))] = draw.choice(VALUES)
    save_lines(folder, lines)
    if draw.random() < 0.3:
        with open(folder / layout.STEPS, "ab") as file:
            file.write(
                draw.choice([b"{", b"\n\n", b"\0" * 99, b"\xff\n", b'{"step": 3', b"[" * 9000 + b"\n", b" " * 9999])
            )


def harm_bytes(draw, folder):
    """Any file: bytes changed, put in, taken out, cut off."""
    name = draw.choice(FILES)
    raw = bytearray((folder / name).read_bytes())
    for _ in range(draw.randint(1, 5)):
        # The first bytes are the header: its length, names, shapes.
        at = draw.randrange(min(len(raw), draw.choice([9, 900, 10**9]))) if raw else 0
        new = draw.choice([draw.randbytes(draw.randint(0, 12)), b"\xff" * 8, b"\0" * 8, b"9" * 6])
        raw[at : at + draw.choice([0, 1, len(new)])] = new
    if draw.random() < 0.5:
        raw = raw[: draw.choice([0, 1, 7, 8, 9, draw.randint(0, len(raw)), len(raw) - 1])]
    (folder / name).write_bytes(raw)
    if name in FILES[2:] and draw.random() < 0.6:
        list_anew(folder, name)


def harm_header(draw, folder):
    """The header of a safetensors file, written anew: shapes, types, offsets, names that no writer would make."""
    name = draw.choice([STEP, STEP, layout.ENCODER])
    raw = (folder / name).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    keys = [key for key in header if key != "__metadata__"]
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(keys)
        about, how = header.get(key, {}), draw.randrange(8)
        if how == 0:
            about["shape"] = draw.choice(SHAPES)
        elif how == 1:
            about["dtype"] = draw.choice(DTYPES)
        elif how == 2:
            about["data_offsets"] = [draw.choice(NUMBERS), draw.choice([*NUMBERS, len(data), len(data) + 1])]
        elif how == 3:
            header[draw.choice([*PATHS, "latent", "preview", "unet.middle.cross_attention/cond", "state/9/cond"])] = (
                about
            )
        elif how == 4:
            header.pop(key, None)
        elif how == 5:
            header["__metadata__"] = draw.choice([{"counts": "[" * 5000}, {"counts": '{"x": 1}'}, {"a": 1}, [], "x"])
        else:  # a shape without data, which the format allows
            shape = draw.choice([shape for shape in SHAPES if 0 in shape])
            kept = [header[k]["data_offsets"] for k in keys if k != key and k in header and "data_offsets" in header[k]]
            end = max((o[1] for o in kept if isinstance(o[1], int) and o[1] <= len(data)), default=0)
            header[key] = {"dtype": draw.choice(["F16", "F32", "U8"]), "shape": shape, "data_offsets": [end, end]}
            if draw.random() < 0.7:
                header, data = packed(header, raw[8 + length :])
    text = json.dumps(header).encode()
    claimed = draw.choice([len(text)] * 6 + [0, len(text) - 1, 2**40, 2**64 - 1])
    (folder / name).write_bytes(struct.pack("<Q", claimed) + text + data)
    list_anew(folder, name)


def packed(header, data):
    """The header with offsets that follow each other without a gap, and the data that belongs to it."""
    result, kept = {}, b""
    for key, about in header.items():
        offsets = about.get("data_offsets") if isinstance(about, dict) else None
        if key == "__metadata__" or not offsets or not all(isinstance(n, int) for n in offsets):
            continue
        part = data[max(0, offsets[0]) : max(0, offsets[1])]
        result[key] = {**about, "data_offsets": [len(kept), len(kept) + len(part)]}
        kept += part
    return result, kept


def harm_empty(draw, folder):
    """A file that is in order as safetensors, whose tensors have absurd shapes and not one byte."""
    name = draw.choice([STEP, STEP, layout.ENCODER])
    manifest = manifest_of(folder)
    shape = draw.choice([shape for shape in SHAPES if 0 in shape])
    keys = ["state/0/cond", "state/1/cond", "attention/0/cond"]
    if name == STEP:
        site = draw.choice([n for n, about in manifest["sites"].items() if about["kind"] == "cross"])
        keys = [f"{site}/cond", "latent", "preview"]
        rows, columns = grid = draw.choice([[8, 4], [65_536, 65_536], [65_536, 1]])
        manifest["sites"][site] |= {"heads": draw.choice([None, None, 65_536, 2]), "grid": grid}
        if draw.random() < 0.7:
            manifest["branches"]["cond"]["columns"] = []
        heads = manifest["sites"][site]["heads"] or draw.choice([0, 2, 10**9, 65_536])
        shape = draw.choice([shape, [heads, len(manifest["branches"]["cond"].get("columns", [1] * 9)), rows, columns]])
        if 0 not in shape:
            shape = [0, *shape[1:]]
        save_manifest(folder, manifest)
    dtype = draw.choice(["F16", "F32", "U8"])
    text = json.dumps({key: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for key in keys}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)
    list_anew(folder, name)


def harm_sums(draw, folder):
    """Checksums and sizes that are wrong or none."""
    digest = ["0" * 64, "F" * 64, "", "0" * 63, "0" * 65, None, 7, "０" * 64, "../" * 21 + "x"]
    about = {"bytes": draw.choice([*NUMBERS, 8, 9]), "sha256": draw.choice(digest)}
    for field in list(about):
        if draw.random() < 0.5:
            del about[field]
    if draw.random() < 0.5:
        lines = lines_of(folder)
        lines[1] |= about
        save_lines(folder, lines)
    else:
        manifest = manifest_of(folder)
        manifest["files"][draw.choice([layout.ENCODER, layout.IMAGE, *PATHS[:3]])] = {**about, "more": 1}
        save_manifest(folder, manifest)


def harm_kind_of_file(draw, folder):
    """In a file's place a link, a folder, a pipe, a socket's name, a hole of a terabyte, nothing."""
    name = draw.choice(FILES)
    path, outside = folder / name, folder.parent / OUTSIDE / name
    path.unlink()
    how = draw.randrange(8)
    if how == 0:
        path.symlink_to(outside)
    elif how == 1:
        path.symlink_to(draw.choice(["/dev/zero", "/etc/passwd", "/proc/self/environ", name, "nowhere", "/"]))
    elif how == 2:
        os.mkfifo(path)
    elif how == 3:
        path.mkdir()
    elif how == 4:
        with open(path, "wb") as file:
            file.truncate(draw.choice([8, 2**30, 2**40]))
        if name in FILES[3:] and draw.random() < 0.5:
            size, manifest = path.stat().st_size, manifest_of(folder) if name != STEP else {}
            if name == STEP:
                save_lines(
                    folder, [{**line, "bytes": size} if line["file"] == name else line for line in lines_of(folder)]
                )
            else:
                manifest["files"][name]["bytes"] = size
                save_manifest(folder, manifest)
    elif how == 5:
        shutil.copy(folder / draw.choice([other for other in FILES if other != name]), path)
    elif how == 6:
        path.symlink_to(Path("..") / folder.name / draw.choice(FILES))


def harm_picture(draw, folder):
    """A PNG that is no picture, or claims to be a huge one."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    width, height = draw.choice(
        [(2**31 - 1, 2**31 - 1), (40_000, 40_000), (0, 0), (9_000, 9_000), (16, 32), (2**26, 1)]
    )
    bits, colour = draw.choice([(8, 2), (1, 0), (16, 6), (8, 3), (7, 9)])
    content = zlib.compress(bytes(draw.choice([0, 100, 10**6])))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    parts += [chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(2**26)))] * (draw.random() < 0.3)
    parts += [chunk(b"IDAT", content), chunk(b"IEND", b"")]
    draw.random() < 0.2 and draw.shuffle(parts)
    other = draw.choice([b"GIF89a" + bytes(99), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\x89PNG\r\n\x1a\n", b""])
    raw = b"\x89PNG\r\n\x1a\n" + b"".join(parts) if draw.random() < 0.8 else other
    (folder / layout.IMAGE).write_bytes(raw)
    list_anew(folder, layout.IMAGE)


def harm_collection(draw, folder):
    """A collection around the trace, whose members are tricks."""
    many = folder.parent / "many"
    many.mkdir()
    members = draw.choice(
        [["000"], ["000", "000"], ["000"] * 2000, ["001"], ["../run"], ["000/../../run"], ["0\0"], [7]]
    )
    members = draw.choice([members, [str(folder)], [""], ["."], [".."], "000", {}, ["０００"], ["000\n"]])
    where = many / "000"
    if draw.random() < 0.5:
        shutil.copytree(folder, where)
    else:
        where.symlink_to(draw.choice([folder, many, folder.parent / OUTSIDE, Path("/")]))
    content = {"format": layout.COLLECTION, "version": draw.choice([1, 1, 1, 3, "1"]), "members": members}
    (many / layout.MEMBERS).write_text(json.dumps(content))
    if draw.random() < 0.1:
        (folder / layout.MANIFEST).unlink()
        shutil.copy(many / layout.MEMBERS, folder / layout.MEMBERS)


HARMS = [harm_manifest, harm_header, harm_bytes, harm_steps, harm_sites, harm_empty, harm_kind_of_file, harm_sums]
HARMS += [harm_manifest, harm_header, harm_picture, harm_collection]


# --- the watch --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened():
    """Every path that Python or safetensors opens while it is `on`."""

    class Opened(list):
        on = False

    paths = Opened()

    def hook(event, arguments):
        if paths.on and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, _, flags = arguments
            if not (flags & os.O_NOFOLLOW and os.path.islink(path)):  # that the kernel refuses
                paths.append(os.fsdecode(path))

    def safe_open(path, **how):
        if paths.on:
            paths.append(os.fspath(path))
        return original(path, **how)

    sys.addaudithook(hook)  # stays until the process ends, and then does nothing
    original, stored.safe_open = stored.safe_open, safe_open
    yield paths
    stored.safe_open = original


@pytest.fixture(scope="module")
def place(whole, tmp_path_factory):  # noqa: F811
    """fresh() -> the folder of a whole trace; beside it another one, which nobody may read."""
    home = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(whole, home / OUTSIDE)

    def fresh():
        for path in home.iterdir():
            if path.name != OUTSIDE:
                shutil.rmtree(path)
        return shutil.copytree(whole, home / "run")

    return fresh


def look_at(folder):
    """What a user does with a folder; ToushiError is an answer."""
    commands = [Info(folder), Verify(folder)]
    many = folder.parent / "many"
    if many.exists():
        commands += [Info(many), Verify(many)]
        use_all(many)
        try:
            open_collection(many)
        except ToushiError as error:
            str(error).encode()
    use_all(folder)
    for one in commands:
        try:
            with redirect_stdout(io.StringIO()) as said:
                one.run()
            said.getvalue().encode()
        except ToushiError as error:
            assert len(str(error)) < 20_000
            str(error).encode()


def is_inside(path, folder):
    """In the trace, or a module that Python imports; the end of a link counts."""
    real = Path(os.path.realpath(path))
    homes = [folder, folder.parent / "many", *map(Path, (sys.prefix, sys.base_prefix))]
    return any(real.is_relative_to(home) for home in homes) or real.suffix in (".py", ".pyc", ".so")


class TooSlow(BaseException):
    """Not to be caught on the way."""


@contextmanager
def at_most(seconds):
    """So much time of the processor; waiting for ever (a pipe) is ended too, on a busy machine later."""
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 20 * seconds)}

    def ring(*_):
        raise TooSlow

    before = {number: signal.signal(number, ring) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run_case(number, fresh, opened):
    draw = random.Random(f"toushi {number}")
    harm = HARMS[number % len(HARMS)]
    folder = fresh()
    harm(draw, folder)
    if draw.random() < 0.15 and harm not in (harm_kind_of_file, harm_collection):
        # What is damaged already cannot always be damaged further.
        with suppress(ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
            draw.choice([harm_steps, harm_header, harm_sums])(draw, folder)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    opened.clear()
    opened.on = True
    try:
        with at_most(SECONDS):
            look_at(folder)
    finally:
        opened.on = False
    memory = tracemalloc.get_traced_memory()[1] - before
    assert memory < MEMORY, f"took {memory / 2**20:.0f} MB"
    strangers = [path for path in opened if not is_inside(path, folder)]
    assert not strangers, f"opened {strangers[:3]}"


def run_cases(numbers, place, opened):
    failures = []
    tracemalloc.start()
    try:
        for number in numbers:
            try:
                run_case(number, place, opened)
            except (Exception, TooSlow) as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {str(error)[:300]} ({Path(at.filename).name}:{at.lineno})"
                failures.append(f"case {number}, {HARMS[number % len(HARMS)].__name__}: {what}")
    finally:
        tracemalloc.stop()
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures)


def test_some_damaged_traces(place, opened):
    run_cases(range(FAST), place, opened)


@pytest.mark.slow
def test_every_damaged_trace(place, opened):
    run_cases(range(COUNT), place, opened)


def test_the_same_number_is_the_same_damage(place):
    def content(number):
        folder = place()
        HARMS[number % len(HARMS)](random.Random(f"toushi {number}"), folder)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.is_symlink()}

    for number in range(0, COUNT, 53):
        first = content(number)
        assert first == content(number)


def test_the_watch_sees_what_lies_outside(place, opened):
    folder = place()
    opened.clear()
    opened.on = True
    open_trace(folder.parent / OUTSIDE).attention("猫")
    opened.on = False
    strangers = {Path(path).name for path in opened if not is_inside(path, folder)}
    assert {layout.MANIFEST, layout.STEPS, STEP} <= strangers


# --- holes that were found ----------------------------------------------------------------------------------


def test_a_folder_in_place_of_a_file(place):
    folder = place()
    for name in (layout.IMAGE, layout.STEPS):
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(DamagedTrace, match="regular file"):
            open_trace(folder).image()


@pytest.mark.parametrize("field", ["model", "versions", "segmenter"])
def test_what_info_shows_has_its_type(place, field):
    folder = place()
    save_manifest(folder, manifest_of(folder) | {field: ["x"]})
    with pytest.raises(DamagedTrace, match=field):
        Info(folder).run()


@pytest.mark.parametrize("shape", [[10**9, 0], [0, 10**12], [2**40, 0]])
def test_an_empty_tensor_cannot_make_large_answers(place, shape):
    folder = place()
    header = json.dumps({"state/0/cond": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (folder / layout.ENCODER).write_bytes(struct.pack("<Q", len(header)) + header)
    list_anew(folder, layout.ENCODER)
    with pytest.raises(DamagedTrace, match="empty"):
        open_trace(folder).encoder_states()


def test_a_map_without_tokens_cannot_make_large_answers(place):
    """Sums over no tokens at all would have the size of the grid and of the heads that are claimed."""
    folder = place()
    manifest = manifest_of(folder)
    site = next(iter(manifest["sites"]))
    manifest["sites"][site] |= {"grid": [65_536, 65_536], "heads": None}
    manifest["branches"]["cond"]["columns"] = []
    save_manifest(folder, manifest)
    for heads in (0, 7, 10**9):
        shape = [heads, 0, 65_536, 65_536]
        header = json.dumps({f"{site}/cond": {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]}}).encode()
        (folder / STEP).write_bytes(struct.pack("<Q", len(header)) + header)
        list_anew(folder, STEP)
        assert any(STEP in problem for problem in open_trace(folder).verify())


def test_members_of_a_collection_are_named_once(place):
    folder = place()
    many = folder.parent / "many"
    shutil.copytree(folder, many / "000")
    content = {"format": layout.COLLECTION, "version": 1, "members": ["000"] * 9}
    (many / layout.MEMBERS).write_text(json.dumps(content))
    with pytest.raises(DamagedTrace, match="twice"):
        open_collection(many)
