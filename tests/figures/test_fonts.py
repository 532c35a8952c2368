import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.font_manager import FontProperties, fontManager
from packaging.version import Version

from tests.reports.ink import signs
from toushi.probe.figures import fonts
from toushi.probe.figures.style import RC, StyledFigure, save, styled


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


def test_common_traditional_characters_can_be_drawn():
    """Level 1 of Big5: what is common in Taiwan and Hong Kong."""
    codes = [
        bytes([first, second]) for first in range(0xA4, 0xC7) for second in (*range(0x40, 0x7F), *range(0xA1, 0xFF))
    ]
    characters = "".join(code.decode("big5", errors="ignore") for code in codes)
    assert len(characters) > 5400 and fonts.drawable(characters) == characters


def test_a_warning_names_what_cannot_be_drawn():
    with pytest.warns(fonts.MissingGlyphs, match=r"lack 한 \(U\+D55C\), 국 \(U\+AD6D\)"):
        assert fonts.drawable("한국 cat 한") == "〓〓 cat 〓"


def test_every_chinese_character_that_an_experiment_or_a_report_says_can_be_drawn():
    house = Path(fonts.__file__).parents[2]
    files = [file for folder in ("experiments", "reports") for file in (house / folder).rglob("*.*")]
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
def drawn_in_style(text: str) -> StyledFigure:
    figure = StyledFigure(figsize=(2, 0.5))
    figure.text(0.1, 0.3, text)
    return figure


def test_the_shipped_file_wins_over_one_of_the_machine():
    fonts.register_fonts()
    fonts.register_fonts()
    for family, file in zip(fonts.FAMILY[1:], fonts.FILES):
        assert fontManager.findfont(FontProperties(family=family)) == str((fonts.FOLDER / file).resolve())


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_chinese_leaves_ink(ending, tmp_path):
    empty, full = (
        save(drawn_in_style(text), tmp_path / f"{len(text)}.{ending}").read_bytes() for text in ("", "猫头鹰𰻝")
    )
    if ending == "png":
        pixels = matplotlib.image.imread(tmp_path / "4.png")
        assert (pixels[..., 0] < 0.5).sum() > 500
    else:
        assert len(full) > len(empty) + 1000 and b"NotoSansSC" in full


def test_an_svg_has_its_text_as_text_and_the_fonts_that_draw_it(tmp_path):
    """Each character is in the font that matplotlib took it from, with ink, and no font holds more than that."""
    text = "猫 cat & <𰻝> 🦉 ½ 𪚥"
    svg = save(drawn_in_style(text), tmp_path / "a.svg").read_text(encoding="utf-8")
    (element,) = [one for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]
    assert element.text == text and "<path" not in svg.partition("text_1")[2]
    rules = re.findall(r"font-family: '([^']+)'; src: url\(data:font/woff;base64,([^)]+)\)", svg)
    assert [family for family, _ in rules] == fonts.FAMILY
    drawn = {}
    for family, data in rules:
        font = TTFont(io.BytesIO(base64.b64decode(data)))
        glyphs = font["glyf"]
        inked = {chr(code) for code, name in font.getBestCmap().items() if glyphs[name].numberOfContours}
        drawn[family] = inked | ({" "} & set(map(chr, font.getBestCmap())))
    assert drawn == {
        "DejaVu Sans": set("cat&<>½ "),
        "Noto Sans SC": set("猫𰻝"),
        "Noto Emoji": {"🦉"},
        "Toushi Rare Han": {"𪚥"},
    }


@pytest.mark.parametrize("how", ["savefig", "file", "save", "chosen format"])
def test_a_pdf_has_truetype_fonts_whatever_saves_it(how, tmp_path):
    """Journals refuse Type 3. The caller's settings ask for them."""
    figure, path = drawn_in_style("猫 cat"), tmp_path / "a.pdf"
    with matplotlib.rc_context({"pdf.fonttype": 3, "savefig.bbox": "tight"}):
        if how == "savefig":
            figure.savefig(path)
        elif how == "file":
            with path.open("wb") as file:
                figure.savefig(file, format="pdf")
        elif how == "save":
            save(figure, path)
        else:
            figure.savefig(tmp_path / "a", format="pdf")
            path = tmp_path / "a"
    data = path.read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data and b"CreationDate" not in data
    assert data == save(drawn_in_style("猫 cat"), tmp_path / "b.pdf").read_bytes()


@pytest.mark.skipif(
    Version(matplotlib.__version__) < Version("3.11"),
    reason="PdfPages of matplotlib 3.10 draws Chinese as Type 3 shapes without text",
)
def test_pages_of_the_callers_own_pdf_have_their_text(tmp_path):
    """PdfPages writes its fonts after the figure is saved, in the caller's settings: text and fonts must agree."""
    with PdfPages(tmp_path / "a.pdf") as pages:
        pages.savefig(drawn_in_style("猫头鹰"))
        drawn_in_style("月亮").savefig(pages, format="pdf")
    found, blank = signs((tmp_path / "a.pdf").read_bytes())
    assert set(found) == set("猫头鹰月亮") and blank == []


def test_licences_lie_beside_the_fonts():
    for name in ("NotoSansSC", "NotoEmoji", "ToushiRareHan"):
        assert "SIL OPEN FONT LICENSE" in (fonts.FOLDER / f"OFL-{name}.txt").read_text()
    assert RC["font.family"] == fonts.FAMILY
