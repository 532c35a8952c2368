from pathlib import Path

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager

from toushi.probe.figures import fonts
from toushi.probe.figures.style import RC, save, styled


def gb2312() -> list[str]:
    found = []
    for first in range(0xA1, 0xF8):
        for second in range(0xA1, 0xFF):
            try:
                found.append(bytes([first, second]).decode("gb2312"))
            except UnicodeDecodeError:
                continue
    return found


def test_every_character_of_gb2312_can_be_drawn():
    characters = gb2312()
    assert len(characters) == 7445
    assert fonts.drawable("".join(characters)) == "".join(characters).replace("\u3000", " ")


def test_every_chinese_character_that_an_experiment_or_a_report_says_can_be_drawn():
    house = Path(fonts.__file__).parents[2]
    files = [file for folder in ("experiments", "reports", "probe/world") for file in (house / folder).rglob("*.*")]
    files = [file for file in files if file.suffix in (".py", ".tsv", ".yaml", ".md", ".html", ".typ")]
    said = {c for file in files for c in file.read_text(encoding="utf-8") if c >= "\u2e80"}
    assert {"猫", "蹚", "啰"} <= said
    assert not {c for c in said - {"\u3000"} if fonts.drawable(c) != c}


@pytest.mark.parametrize("text", ["龘𰻝喆", "鹡鸰鲀鸮鹮堃", "“你好”——《红楼梦》……", "café — ½ ×", "🦉🐱👍", "龍馬"])
def test_what_the_fonts_have_stays_as_it_is(text):
    assert fonts.drawable(text) == text


@pytest.mark.parametrize(
    "text, drawn",
    [
        ("a\u0e01b", "a〓b"),
        ("\U00020000", "〓"),
        ("👨\u200d👩\u200d👧", "👨👩👧"),
        ("❤\ufe0f", "❤"),
        ("a\tb\u3000c\nd", "a b c d"),
        ("\x00\u202e猫", "猫"),
        ("", ""),
        ("1\ufe0f\u20e3", "1"),
        ("猫\u0301", "猫"),
        ("e\u0301x\u0323", "éx\u0323"),
    ],
)
def test_the_rest_has_a_sign(text, drawn):
    assert fonts.drawable(text) == drawn


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@settings(deadline=None)
def test_nothing_is_ever_missing(text):
    drawn_in_style(fonts.drawable(text)).draw_without_rendering()  # "Glyph missing" would be an error


@styled
def drawn_in_style(text: str) -> Figure:
    figure = Figure(figsize=(2, 0.5))
    figure.text(0.1, 0.3, text)
    return figure


def test_the_shipped_file_wins_over_one_of_the_machine():
    fonts.register()
    fonts.register()
    for family, file in zip(fonts.FAMILY[1:], fonts.FILES):
        assert fontManager.findfont(FontProperties(family=family)) == str((fonts.FOLDER / file).resolve())


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_chinese_leaves_ink(ending, tmp_path):
    empty, full = (
        save(drawn_in_style(text), tmp_path / f"{len(text)}.{ending}").read_bytes() for text in ("", "猫头鹰𰻝")
    )
    if ending == "png":
        pixels = matplotlib.image.imread(tmp_path / "4.png")
        assert (pixels[..., 0] < 0.5).sum() > 500
    else:
        assert len(full) > len(empty) + 1000
        assert ending == "svg" or b"NotoSansSC" in full


def test_licences_lie_beside_the_fonts():
    for name in ("NotoSansSC", "NotoEmoji"):
        assert "SIL OPEN FONT LICENSE" in (fonts.FOLDER / f"OFL-{name}.txt").read_text()
    assert RC["font.family"] == fonts.FAMILY
