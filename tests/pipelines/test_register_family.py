"""A family that Toushi does not ship, in a package installed beside it: the example of docs/families.md, as it stands.

Its pipeline is not diffusers', its denoiser has parameters of its own, its branches are evaluated in separate calls,
and its text lies behind the image in one sequence.
"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines import own_family_run
from tests.write_file import write_file
from toushi import main
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines import family as contract
from toushi.probe.pipelines import registry
from toushi.probe.pipelines.families.mini_unet_family import MINI_UNET
from toushi.probe.pipelines.family import Family
from toushi.probe.trace.open import open_trace

PROMPT, NEGATIVE = own_family_run.PROMPT, own_family_run.NEGATIVE
HERE = Path(__file__).resolve()
PAGE = (HERE.parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
BLOCKS = ["denoiser.blocks.0.attention", "denoiser.blocks.1.attention"]
CELLS = 16 * 16


def example(after: str, language: str = "python") -> str:
    """The first code block of the page behind this text."""
    found = re.search(rf"{re.escape(after)}.*?^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, after
    return found[1]


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """A folder for PYTHONPATH, as pip would leave it once moonpaint is installed."""
    home = tmp_path_factory.mktemp("site-packages")
    write_file(home / "moonpaint" / "__init__.py", "")
    write_file(home / "moonpaint" / "pipeline.py", example("`moonpaint/pipeline.py`"))
    write_file(home / "moonpaint" / "family.py", example("`moonpaint/family.py`"))
    entry_point = example("name the family in your own `pyproject.toml`", "toml").replace('"', "")
    group, line = entry_point.strip().splitlines()
    group = group.replace("project.entry-points.", "")
    write_file(home / "moonpaint-0.1.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: moonpaint\nVersion: 0.1\n")
    write_file(home / "moonpaint-0.1.dist-info" / "entry_points.txt", f"{group}\n{line}\n")
    return home


@pytest.fixture(scope="module")
def python(site_packages):
    """Runs Python beside the package, in a folder."""

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(site_packages), str(HERE.parents[2])])
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def folder(python, tmp_path_factory):
    """Traces and truths that `own_family_run.py` made, and the model's weights."""
    home = tmp_path_factory.mktemp("moon")
    done = python(home, "-m", "tests.pipelines.own_family_run")
    assert done.returncode == 0, done.stderr
    return home


def text_of(probabilities: np.ndarray) -> np.ndarray:
    """From [head, query, key] what the image gave to the text, [head, column, cell]."""
    return probabilities[:, :CELLS, CELLS:].swapaxes(1, 2)


def test_the_picture_is_the_same_bit_for_bit(folder):
    pictures = np.load(folder / "pictures.npz")
    assert np.array_equal(pictures["recorded"], pictures["plain"]) and pictures["plain"].std() > 5
    assert np.array_equal(pictures["after"], pictures["plain"])
    trace = open_trace(folder / "run")
    assert np.array_equal(trace.image(), pictures["plain"]) and trace.complete and not trace.verify()
    assert trace.manifest.family == "moonpaint" and trace.manifest.seed == 0 and trace.steps == [0, 1]
    assert trace.latent(0).shape == (3, 16, 16) and trace.manifest.size == (64, 64)


def test_maps_are_those_of_an_explicit_softmax(folder):
    trace, softmaxes = open_trace(folder / "run"), list(np.load(folder / "softmaxes.npz").values())
    assert len(softmaxes) == 2 * 2 * 2  # steps, branches, blocks
    for step in trace.steps:
        file = trace.files.step(step)
        for branch in ("cond", "uncond"):
            for site in BLOCKS:
                truth = softmaxes.pop(0)
                maps, rest = file.read(f"{site}/{branch}"), file.read(f"{site}/{branch}/rest")
                assert np.abs(maps.reshape(*maps.shape[:2], CELLS) - text_of(truth)).max() < 1e-6
                image = truth[:, :CELLS, :CELLS].sum(-1)
                assert np.abs(rest.reshape(-1, CELLS) - image).max() < 1e-6
                assert np.abs(maps.sum(1) + rest - 1).max() < 1e-6


def test_tokens_carry_the_words(folder):
    trace = open_trace(folder / "run")
    assert trace.branches == ["cond", "uncond"]
    assert [token.text for token in trace.tokens("cond")] == ["<begin>", *PROMPT]
    assert [token.text for token in trace.tokens("uncond")] == ["<begin>", *NEGATIVE]
    start = PROMPT.index("月亮")
    columns = [token.column for token in trace.tokens() if token.span and start <= token.span[0] < start + 2]
    assert columns == [start + 1, start + 2]
    maps = trace.attention(grid="native")
    both = [maps[site].sel(step=[0, 1]).mean("step").mean("head").values[columns].sum(0) for site in BLOCKS]
    assert np.abs(trace.heat_map("月亮").values - np.mean(both, 0)).max() < 1e-6
    assert trace.encoder_states().shape[:2] == (3, len(PROMPT) + 1) and trace.encoder_attention(0).shape[0] == 2


def test_a_word_can_be_edited(folder):
    pictures = np.load(folder / "pictures.npz")
    assert np.array_equal(pictures["by_one"], pictures["plain"])
    plain, edited = (open_trace(folder / name) for name in ("run", "of_a_word"))
    assert not np.array_equal(plain.latent(0), edited.latent(0))
    assert edited.manifest.edits[0]["word"] == "月亮"
    # What is recorded is the attention before the edit, which is the same in the first block of the first step.
    first, other = (t.files.step(0).read(f"{BLOCKS[0]}/cond") for t in (plain, edited))
    assert np.array_equal(first, other)
    states = open_trace(folder / "of_a_state")
    start = PROMPT.index("月亮") + 1
    changed = np.abs(states.encoder_states().values - plain.encoder_states().values).max(-1) > 0
    assert changed[2].nonzero()[0].tolist() == [start, start + 1] and not changed[:2].any()


def test_a_branch_of_its_own_is_recorded(folder):
    """Its text is the prompt's: the argument `smooth` tells them apart."""
    trace = open_trace(folder / "perturbed")
    assert trace.branches == ["cond", "uncond", "perturbed"] and not trace.verify()
    assert trace.tokens("perturbed") == trace.tokens("cond")
    softmaxes = list(np.load(folder / "softmaxes_perturbed.npz").values())
    for step in trace.steps:
        for branch in trace.branches:
            for site in BLOCKS:
                maps = trace.files.step(step).read(f"{site}/{branch}")
                assert np.abs(maps.reshape(*maps.shape[:2], CELLS) - text_of(softmaxes.pop(0))).max() < 1e-6
    assert np.ptp(trace.attention(branch="perturbed", grid="native")[BLOCKS[0]].values, (-2, -1)).max() < 1e-6


@pytest.mark.slow
def test_the_commands_know_an_installed_family(folder, python, tmp_path):
    command = ["-m", "toushi", "trace", PROMPT, "--negative", NEGATIVE, "--model", str(folder), "--steps", "2"]
    done = python(tmp_path, *command, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "月亮" in done.stdout and open_trace(tmp_path / "run").manifest.family == "moonpaint"
    assert np.array_equal(open_trace(tmp_path / "run").image(), np.load(folder / "pictures.npz")["plain"])
    done = python(tmp_path, *command, "--out", "other", "--guidance", "1")
    assert done.returncode == 2 and "guidance 1 turns it off for a MoonPipeline" in done.stderr
    done = python(tmp_path, *command, "--out", "other", "--offload", "group")
    assert done.returncode == 2 and "--offload makes no sense for moonpaint" in done.stderr


def test_its_traces_are_read_without_it(folder, capsys):
    assert main(["info", str(folder / "run")]) == 0
    said = capsys.readouterr().out
    assert BLOCKS[1] in said and "cond (16 tokens), uncond (6 tokens)" in said
    assert main(["verify", str(folder / "run")]) == 0


def test_the_example_of_the_page_runs(python, tmp_path):
    done = python(tmp_path, "-c", example("everything works as for a shipped family"))
    assert done.returncode == 0 and "DataArray" in done.stdout, done.stderr
    assert open_trace(tmp_path / "runs" / "moon").prompt == "左边是猫，右边是月亮"


# --- the registry ---


@pytest.fixture
def registered():
    yield
    registry._registered.pop("another", None)


def another(**fields) -> Family:
    return dataclasses.replace(MINI_UNET, name="another", **fields)


def test_the_latest_registered_family_is_asked_first(registered):
    from toushi import register_family

    model = object()
    first = register_family(another(matches=lambda it: it is model))
    assert registry.family_of(model) is first
    second = register_family(another(matches=lambda it: it is model))
    assert registry.family_of(model) is second and registry.families().count(first) == 0


def test_what_is_no_family_is_refused(registered):
    with pytest.raises(ToushiError, match="expected a Family, but dict came"):
        registry.register_family({})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ToushiError, match="'mini-unet' is the name of a shipped family"):
        registry.register_family(MINI_UNET)


def test_an_installed_family_that_cannot_be_used_is_a_warning(tmp_path, monkeypatch):
    """It stops neither the recording of other models nor the other packages."""
    for name, target in (("broken", "no_such_module:FAMILY"), ("other", "json:loads")):
        home = tmp_path / f"{name}-1.dist-info"
        write_file(home / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        write_file(home / "entry_points.txt", f"[{registry.ENTRY_POINTS}]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._installed_families.cache_clear()
    try:
        with pytest.warns(registry.FamilyNotLoaded) as warned:
            assert registry.user_families() == ()
    finally:
        monkeypatch.undo()
        registry._installed_families.cache_clear()
    told = sorted(str(warning.message) for warning in warned)
    assert "'broken' (no_such_module:FAMILY)" in told[0] and "No module named" in told[0]
    assert "'other' (json:loads)" in told[1] and "expected a Family, but function came" in told[1]


# --- the page ---


def test_the_page_tells_every_field():
    rows = re.findall(r"^\| \**`(\w+)`\** \|", PAGE, re.MULTILINE)
    for field in dataclasses.fields(Family):
        assert field.name in rows, field.name
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert (f"| **`{field.name}`** |" in PAGE) == required, field.name
    for name in (
        "EncodePromptCall",
        "PromptTokens",
        "EncodedPrompt",
        "DenoiserInputs",
        "JointSequence",
        "SchedulerStep",
    ):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{field}`" in row for field in getattr(contract, name)._fields), name


def test_the_page_lists_every_shipped_family():
    for family in registry.SHIPPED_FAMILIES:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {family.name} |"))
        assert all(f"`{name}`" in row for name in (*family.pipeline_classes, *family.cross_attention)), family.name
        assert family.joint == ("one sequence" in row)
