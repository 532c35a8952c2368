"""What the pages for contributors and readers say about this repository is there."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from toushi import open_trace, record
from toushi.hooks.module_hooks import state_hooks
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.models.mini_unet import MiniUNet

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
ENGLISH = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if ".zh" not in page.suffixes)]
PROMPT = "左边是猫，右边是月亮"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_page_has_a_chinese_twin(page):
    """They link to each other and have the same code, headings, and in each row of a table the same code and numbers."""
    twin = page.with_suffix(".zh.md")
    (code, prose), (twin_code, twin_prose) = split_code(page), split_code(twin)
    assert f"({twin.name})" in prose.partition("\n## ")[0] and f"({page.name})" in twin_prose.partition("\n## ")[0]
    if page.parent != ROOT:  # the examples of the Chinese README have Chinese comments
        assert code == twin_code
    assert re.findall("^#+ ", prose, re.MULTILINE) == re.findall("^#+ ", twin_prose, re.MULTILINE)
    for row, twin_row in zip(table_rows(prose), table_rows(twin_prose), strict=True):
        assert names_and_numbers(row) == names_and_numbers(twin_row)


def split_code(page: Path) -> tuple[list[str], str]:
    """The code blocks of a page, and the page without them."""
    block, text = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL), page.read_text(encoding="utf-8")
    return block.findall(text), block.sub("", text)


def table_rows(prose: str) -> list[str]:
    return re.findall(r"^\|.*", prose, re.MULTILINE)


def names_and_numbers(row: str) -> tuple[list[str], list[str]]:
    """The `code` in a row, and the numbers beside it; not those in the targets of links."""
    row = re.sub(r"\]\([^)]*\)", "]", row)
    return sorted(re.findall(r"`[^`]+`", row)), sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"`[^`]+`", "", row)))


def test_the_make_targets_of_the_contributing_page_and_of_the_workflow_exist():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = ROOT / "CONTRIBUTING.md", ROOT / ".github/workflows/test.yml"
    named = {name for page in pages for name in re.findall(r"\bmake ([a-z-]+)\b", page.read_text())}
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    named |= {row["target"] for row in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]}
    assert len(named) > 8 and named <= targets


def test_the_contributing_page_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_citation_has_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_two_countings_of_encoder_layers(tmp_path):
    """The table of the glossary: state k, attention k - 1 of a picture and layer k of texts are layers.{k-1}."""
    model, outputs = MiniUNet.tiny(), {}
    layers = {str(number): layer for number, layer in enumerate(model.encoder.layers)}
    hooks = state_hooks({"embed": model.encoder.embed, **layers}, lambda name, state: outputs.update({name: state}))
    with hooks, record(model, tmp_path / "run"):
        model.sample(PROMPT, steps=1, size=16, guidance=1.0)
    trace, (encoding,) = open_trace(tmp_path / "run"), encode_layers(model, [PROMPT])
    states = trace.encoder_states()
    length = states.sizes["token"]
    assert states.layer.values.tolist() == list(range(len(layers) + 1))
    assert np.array_equal(states.sel(layer=0), outputs["embed"][0, :length])
    for k in range(1, len(layers) + 1):
        assert np.array_equal(states.sel(layer=k), outputs[str(k - 1)][0, :length])
        assert f"encoder.layers.{k - 1}.attention" in trace.sites
        np.testing.assert_allclose(encoding.states.sel(layer=k), states.sel(layer=k), atol=1e-5)
        np.testing.assert_allclose(encoding.attention.sel(layer=k), trace.encoder_attention(k - 1), atol=1e-5)
