"""The typed manifest: what was written comes back, and what does not fit is named in one line."""

import copy
import json
from pathlib import Path

import jsonschema
import pydantic
import pytest
from packaging.version import Version

from tests.trace.runs import Run
from toushi.probe.trace.manifest import EncoderManifest, Manifest, check_encoder_manifest, check_manifest
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.print_manifest_schema import manifest_schema
from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.trace_json import as_json

ROOT = Path(__file__).parents[2]
SITE = "unet.down.0.cross_attention"
ENCODER = {"format": "toushi-trace", "version": 1, "kind": "encoder", "complete": True} | {
    "count": 0,
    "layers": 3,
    "heads": None,
    "width": 8,
}


@pytest.fixture
def raw() -> dict:
    head = {"format": "toushi-trace", "version": 1, "kind": "picture", "complete": False, "files": {}}
    return as_json(head | Run().manifest(), "a manifest")


def changed(raw, path: str, value) -> dict:
    """The manifest with another value at a path like branches.cond.tokens.3.span; the value … removes what is there."""
    *outer, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inside = result = copy.deepcopy(raw)
    for part in outer:
        inside = inside[part]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return result


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("prompt", ..., "prompt must be there; nothing is there."),
        ("prompt", 3, "prompt must be text; 3 is there."),
        ("negative_prompt", ["a\nb"], r"negative_prompt must be text; ['a\nb'] is there."),
        ("complete", "yes", "complete must be true or false; 'yes' is there."),
        ("keep", "all", "keep must be 'heads', 'mean' or 'sum'; 'all' is there."),
        ("branches", [], "branches must be an object; [] is there."),
        ("branches", {"Cond": {}}, "branches.Cond must be text that matches ^[a-z_]{1,32}$; 'Cond' is there."),
        ("branches/cond/tokens", ..., "branches.cond.tokens must be there; nothing is there."),
        ("branches/cond/tokens/1/kind", "bos", "branches.cond.tokens[1].kind must be 'text', 'unknown', 'template', "),
        ("branches/cond/tokens/1/span", [0, 99], "branches.cond.tokens[1].span must be within the 12 characters"),
        ("branches/cond/tokens/1/span", [0, "1"], "branches.cond.tokens[1].span[1] must be a whole number; '1' is"),
        ("branches/cond/tokens/1/span", [0], "branches.cond.tokens[1].span[1] must be there; nothing is there."),
        ("branches/cond/tokens/1/column", 0, "branches.cond.tokens[1].column must be a column that no other token"),
        ("branches/cond/tokens/1/column", True, "branches.cond.tokens[1].column must be a whole number; True is"),
        ("branches/cond/tokens/1/encoders", "clip", "branches.cond.tokens[1].encoders must be a list; 'clip' is"),
        ("branches/cond/words/1/end", 4, "branches.cond.words[1] must be a {text, start, end} of the text; {'text'"),
        ("branches/cond/columns", [1, 1], "branches.cond.columns must be a list of different columns of the tokens"),
        ("branches/cond/columns", [10**6], "branches.cond.columns must be a list of different columns of the tokens"),
        ("sites/a b", {}, "sites['a b'] must be text that matches"),
        (f"sites/{SITE}/grid", None, f"sites['{SITE}'].grid must be [rows, columns]; None is there."),
        (f"sites/{SITE}/grid", [8, 0], f"sites['{SITE}'].grid[1] must be at least 1; 0 is there."),
        (f"sites/{SITE}/grid", [8, 4, 4], f"sites['{SITE}'].grid must be at most 2 entries; [8, 4, 4] is there."),
        (f"sites/{SITE}/heads", 10**9, f"sites['{SITE}'].heads must be at most 65536; 1000000000 is there."),
        ("steps/count", -1, "steps.count must be at least 0; -1 is there."),
        ("steps/times", [0.5, "x"], "steps.times[1] must be a number; 'x' is there."),
        ("steps/times", [0.5, float("inf")], "steps.times[1] must be a finite number; inf is there."),
        ("steps/recorded", [0, 3], "steps.recorded must be a list of steps below 3, or null; [0, 3] is there."),
        ("model", ["x"], "model must be an object; ['x'] is there."),
        ("versions", {"torch": 2}, "versions.torch must be text; 2 is there."),
        ("seed", 1.5, "seed must be a whole number; 1.5 is there."),
        ("guidance", "3", "guidance must be a number; '3' is there."),
        ("size", [64], "size[1] must be there; nothing is there."),
        ("heat_map", {"sites": [], "rule": "x"}, "heat_map.sites must be at least 1 entries; [] is there."),
        ("files", {"../x": {}}, "files['../x'] must be 'encoder.safetensors' or 'image.png'; '../x' is there."),
        ("files", {"image.png": {"bytes": 1, "sha256": "F" * 64}}, "files['image.png'].sha256 must be text that"),
        ("loras", [7], "loras[0] must be an object; 7 is there."),
        ("kind", "video", 'kind must be "picture" or "encoder"'),
        ("version", "1", "version must be a whole number from 1; '1' is there."),
        ("format", "zip", 'format must be "toushi-trace"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(raw, path, value, said):
    with pytest.raises(DamagedTrace) as caught:
        check_manifest(changed(raw, path, value), "run/manifest.json")
    message = str(caught.value)
    assert message.startswith(f"run/manifest.json: {said}") and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("layers", -1, "layers must be at least 0"), ("heads", 0, "heads must be at least 1"), ("width", ..., "width must be there")],
)  # fmt: skip
def test_a_trace_of_texts_is_checked_too(field, value, said):
    check_encoder_manifest(ENCODER, "x")
    with pytest.raises(DamagedTrace, match=f"x: {said}"):
        check_encoder_manifest(changed(ENCODER, field, value), "x")


@pytest.mark.parametrize("field", ["sites", "branches", "versions", "not_recorded"])
def test_an_object_of_very_many_entries_is_refused_before_they_are_looked_at(raw, field):
    raw[field] = dict.fromkeys((f"x{i}" for i in range(200_000)), 7)
    with pytest.raises(DamagedTrace, match=f"{field} must be an object of at most"):
        check_manifest(raw, "x")


def test_fields_that_nobody_knows_are_kept(raw, tmp_path):
    raw |= {"note": {"by": "猫"}, "sites": {name: site | {"colour": "red"} for name, site in raw["sites"].items()}}
    manifest = check_manifest(raw, "x")
    assert manifest.model_extra == {"note": {"by": "猫"}} and manifest.note == {"by": "猫"}
    assert manifest.sites[SITE].colour == "red"
    assert manifest.as_dict() == raw  # and what was left out stays out
    Run().write(tmp_path / "run", note=["夜", None, 0.5])
    assert open_trace(tmp_path / "run").manifest.note == ["夜", None, 0.5]


def test_numbers_come_back_as_they_were(raw):
    raw |= {"guidance": 3, "strength": 0.5}
    manifest = check_manifest(raw, "x")
    assert isinstance(manifest.guidance, int) and manifest.as_dict()["guidance"] == 3 and manifest.strength == 0.5


# --- the published schema -------------------------------------------------------------------------------


@pytest.mark.skipif(
    Version(pydantic.VERSION) < Version("2.14"), reason="older pydantic words the same schema otherwise"
)
def test_the_published_schema_is_current():
    published = (ROOT / "docs" / "trace-manifest.schema.json").read_text(encoding="utf-8")
    assert published == manifest_schema(), "make schema writes it anew"


def test_the_schema_takes_what_the_models_take(raw):
    validator = jsonschema.Draft202012Validator(json.loads(manifest_schema()))
    for manifest in (raw, ENCODER, check_manifest(raw, "x").as_dict()):
        validator.validate(manifest)
    for path, value in [("keep", "all"), ("prompt", ...), (f"sites/{SITE}/grid", [8]), ("steps/count", -1)]:
        assert not validator.is_valid(changed(raw, path, value))


@pytest.mark.parametrize("model", [Manifest, EncoderManifest])
def test_every_field_is_described_in_the_docs(model):
    told = (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
    assert [name for name in model.model_fields if f"`{name}`" not in told] == []
