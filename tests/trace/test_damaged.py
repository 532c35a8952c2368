"""Whatever lies in the folder: only the project's own error, no hang, nothing read outside the folder."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace.runs import Run
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.xarray_backend import ToushiBackend

STEP = "step_0001.safetensors"
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([-1, 0, 2**31, 10**30, 1e308, "", "../x", "/etc/passwd", "\ud800", "cond", "cross", "\0"]),
        st.floats(),
        st.text(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from PIL import Image

    from toushi.probe.trace.writer import TraceWriter

    run, folder = Run(rest=True), tmp_path_factory.mktemp("whole") / "run"
    with TraceWriter(folder, run.manifest()) as writer:
        for step in range(run.steps):
            writer.write_step(step, run.tensors(step))
        length = len(run.manifest()["branches"]["cond"]["tokens"])
        writer.write_encoder({layout.state_key(i, "cond"): np.zeros((length, 3), np.float32) for i in range(3)})
        writer.write_image(Image.new("RGB", (16, 32)))
    return folder


@pytest.fixture(scope="module")
def copied(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copied") / "run"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(whole, folder)

    return fresh


def use_all(folder):
    """Everything that a reader can do; each part may raise our own error and nothing else."""
    try:
        for node in xr.open_datatree(folder, engine=ToushiBackend).leaves:
            node.dataset.load()
    except ToushiError as error:
        str(error).encode()
    try:
        trace = open_trace(folder)
    except ToushiError:
        return
    asks = (
        lambda: trace.heat_map("猫"),
        lambda: trace.attention(steps=slice(0, 2)),
        lambda: trace.attention("月亮", branch="uncond", grid="native"),
        trace.mass,
        trace.image,
        trace.encoder_states,
        lambda: trace.encoder_attention(0),
        lambda: [(trace.preview(step), trace.latent(step)) for step in trace.steps],
        lambda: (trace.tokens(), trace.words(), trace.times, trace.sites, trace.complete),
        trace.verify,
    )
    for ask in asks:
        try:
            ask()
        except ToushiError as error:
            str(error).encode()


fuzz = settings(max_examples=60, deadline=5000, suppress_health_check=list(HealthCheck))


def paths(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


@fuzz
@given(st.data())
def test_damaged_manifest(copied, data):
    folder = copied()
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    changed = copy.deepcopy(manifest)
    for _ in range(data.draw(st.integers(1, 3))):
        *outer, last = data.draw(st.sampled_from([path for path in paths(changed) if path]))
        inside = changed
        for key in outer:
            inside = inside[key]
        if data.draw(st.booleans()):
            del inside[last]
        else:
            inside[last] = data.draw(anything)
    (folder / layout.MANIFEST).write_text(json.dumps(changed))
    use_all(folder)


@fuzz
@given(st.data())
def test_damaged_list_of_steps(copied, data):
    folder = copied()
    lines = [json.loads(line) for line in (folder / layout.STEPS).read_text().splitlines()]
    line = data.draw(st.sampled_from(lines))
    line[data.draw(st.sampled_from(sorted(line)))] = data.draw(anything)
    (folder / layout.STEPS).write_text("".join(json.dumps(one) + "\n" for one in lines))
    use_all(folder)


@fuzz
@given(st.data())
def test_damaged_bytes(copied, data):
    """Bytes changed, cut or added in any file, with the listed size put right half of the time."""
    folder = copied()
    name = data.draw(st.sampled_from([layout.MANIFEST, layout.STEPS, STEP, layout.ENCODER, layout.IMAGE]))
    raw = bytearray((folder / name).read_bytes())
    # The first bytes are the header: length, names, shapes.
    at = data.draw(st.one_of(st.integers(0, min(len(raw), 900) - 1), st.integers(0, len(raw) - 1)))
    end = at + data.draw(st.integers(0, 12))
    raw[at:end] = data.draw(st.one_of(st.binary(max_size=12), st.just(b"\xff" * 8)))
    raw = raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    (folder / name).write_bytes(raw)
    if data.draw(st.booleans()):
        relist(folder, name, len(raw))
    use_all(folder)


def relist(folder, name, size):
    if name == STEP:
        lines = [json.loads(line) for line in (folder / layout.STEPS).read_text().splitlines()]
        lines[1]["bytes"] = size
        (folder / layout.STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif name in (layout.ENCODER, layout.IMAGE):
        manifest = json.loads((folder / layout.MANIFEST).read_text())
        manifest["files"][name]["bytes"] = size
        (folder / layout.MANIFEST).write_text(json.dumps(manifest))


# --- tricks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "step_0000.safetensors/../../x", "step_1.safetensors", "sum_0001.safetensors", ""]
)
def test_a_step_cannot_name_another_file(copied, name):
    folder = copied()
    lines = [json.loads(line) for line in (folder / layout.STEPS).read_text().splitlines()]
    lines[1]["file"] = name
    (folder / layout.STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DamagedTrace, match=r"step_0001\.safetensors"):
        open_trace(folder)


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.STEPS, STEP, layout.ENCODER, layout.IMAGE])
def test_links_and_pipes_are_refused(copied, tmp_path, name):
    """A link leads out of the folder; a pipe would make the reader wait for ever."""

    def refused(folder):
        with pytest.raises(DamagedTrace, match=r"regular|link"):
            trace = open_trace(folder)
            trace.attention("猫"), trace.encoder_states(), trace.image()
        use_all(folder)

    folder = copied()
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    refused(folder)
    folder = copied()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder)


@pytest.mark.parametrize("grid", [[10**9, 10**9], [65_536, 65_536], [8191, 4], [0, 4], [-8, 4], [8.0, 4], ["8", 4]])
def test_absurd_grids(copied, grid):
    folder = copied()
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    manifest["sites"]["unet.down.0.cross_attention"]["grid"] = grid
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedTrace):
        open_trace(folder).attention("猫")
    use_all(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"NaN", b"9" * 5000, b'"\\ud800"']
)
@pytest.mark.parametrize("name", [layout.MANIFEST, layout.STEPS])
def test_no_json(copied, name, content):
    folder = copied()
    (folder / name).write_bytes(content + b"\n")
    with pytest.raises(DamagedTrace):
        open_trace(folder)


def test_a_huge_manifest_is_not_read(copied):
    folder = copied()
    with open(folder / layout.MANIFEST, "ab") as file:
        file.truncate(2**40)  # a hole: takes no space
    with pytest.raises(DamagedTrace, match="cannot be right"):
        open_trace(folder)
