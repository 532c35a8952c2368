"""`toushi figure` and `toushi env`."""

import re

import pytest
from packaging.requirements import Requirement
from PIL import Image

from toushi import main
from toushi.probe.trace.open import open_trace


@pytest.mark.parametrize(
    "kind, words, ending",
    [("words", ["猫", "月亮"], "pdf"), ("layers", ["是#2"], "png"), ("timeline", [], "svg"), ("tokens", [], "pdf")],
)
def test_a_figure_has_the_width_that_was_asked_for(cat, tmp_path, capsys, kind, words, ending):
    file = tmp_path / f"figure.{ending}"
    asked = ["--kind", kind, *(["--words", *words] if words else []), "--width", "84mm", "-o", str(file)]
    assert main(["figure", str(cat), *asked]) == 0
    said, inches = capsys.readouterr().out, 84 / 25.4
    caption = said.strip().splitlines()[-1]
    assert f"{inches:.2f} x " in said and len(caption) > 20 and ("是#2" in caption) == (kind == "layers")
    if ending == "png":
        assert Image.open(file).width == pytest.approx(inches * 200, abs=1)
    else:
        pattern = rb"/MediaBox \[ 0 0 ([\d.]+)" if ending == "pdf" else rb'<svg[^>]*? width="([\d.]+)pt"'
        found = re.search(pattern, file.read_bytes())
        assert found is not None and float(found[1]) == pytest.approx(inches * 72, abs=0.1)
    assert main(["figure", str(cat), *asked]) == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["-o", "a.jpg"], ".pdf, .svg, .png"),
        (["-o", "a.pdf", "--width", "wide"], "3.3in"),
        (["-o", "a.pdf", "--kind", "layers", "--words", "猫", "月亮"], "one word"),
        (["-o", "a.pdf", "--words", "狗"], "狗"),
        (["-o", "a.pdf", "--kind", "pie"], "pie"),
    ],
)
def test_mistakes_in_a_figure_get_one_line(cat, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", str(cat), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_env_pins_the_packages_of_the_manifest(cat, tmp_path, capsys):
    versions = open_trace(cat).manifest.versions
    assert versions is not None and main(["env", str(cat)]) == 0
    said = capsys.readouterr().out
    lines = [Requirement(line.partition("#")[0]) for line in said.splitlines() if not line.startswith("#")]
    pins = {line.name: str(line.specifier) for line in lines}
    assert pins["torch"] == f"=={versions['torch'].partition('+')[0]}" and pins["numpy"] == f"=={versions['numpy']}"
    assert "rjieba" in pins and not {"python", "toushi"} & set(pins)
    assert f"# Python {versions['python']}\n" in said
    file = tmp_path / "requirements.txt"
    assert main(["env", str(cat), "-o", str(file)]) == 0 and file.read_text(encoding="utf-8") == said
    assert main(["env", str(cat), "-o", str(file)]) == 2 and main(["env", str(tmp_path / "none")]) == 2
