"""`toushi report`: pages that need nothing else, in both languages, with every sign on the paper."""

import base64
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.experiments import coins
from tests.experiments.in_process import Here
from tests.figures.tiny_traces import made_trace
from tests.reports.ink import is_wide, signs
from tests.write_file import write_file
from toushi import main
from toushi.experiments.runner import run_study as runner
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import PAGE, save, styled
from toushi.probe.text.alignment import Word
from toushi.probe.trace.encoder_trace import EncoderTraceWriter
from toushi.probe.trace.open import open_trace
from toushi.reports import report_messages as words
from toushi.reports.build_report import report
from toushi.reports.chapter import LANGUAGES, Chapter, Sheet, format_cell
from toushi.reports.html import rows
from toushi.reports.pdf import contents, pdf
from toushi.reports.trace_chapter import trace_command

PROMPT = '左边是猫，<img src="http://x.y/z">右边是鸮 & 月亮'


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A finished run, one with failures, and a trace."""
    house = tmp_path_factory.mktemp("house")
    runner.run_study(coins, coins.Config(), house / "runs" / "coins", executor=Here(), quiet=True)
    runner.run_study(coins, coins.Config(bad=(1,)), house / "runs" / "坏", executor=Here(), quiet=True)
    left = np.zeros((64, 64), bool)
    left[20:44, 4:28] = True
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    about = {"seed": 3, "sampler": "euler", "guidance": 3.0, "edits": [], "argv": ["toushi", "trace", "猫"]}
    made_trace(house / "runs" / "cat", PROMPT, picture, {Word("猫", 3, 4): left}, steps=3, **about)
    return house


@pytest.fixture(scope="module")
def chapters() -> list[Chapter]:
    """Those of `made`."""
    return []


@pytest.fixture(scope="module")
def made(house, chapters):
    """The report of all of them, as the command makes it."""
    out = house / "report"

    def spied(found, out, language):
        chapters[:] = found
        return pdf(found, out, language)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toushi.reports.build_report.pdf", spied)
        assert main(["report", *(str(house / "runs" / name) for name in ("coins", "坏", "cat")), "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def html(made) -> str:
    return (made / "index.html").read_text(encoding="utf-8")


class Seen(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: dict[str | None, str] = {"zh": "", "en": "", None: ""}
        self._language: list[str | None] = [None]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("span", "code", "style", "script"):
            hidden = "code" if tag in ("style", "script") else None
            self._language.append(hidden or dict(attrs).get("lang") or self._language[-1])

    def handle_endtag(self, tag):
        if tag in ("span", "code", "style", "script"):
            self._language.pop()

    def handle_data(self, data):
        self.text.setdefault(self._language[-1], "")
        self.text[self._language[-1]] += f"{data} "


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_made_again_every_file_is_the_same(house, made):
    before = contents_of(made)
    names = {"index.html", "report.zh.pdf", "report.en.pdf", "figures/coins/shares.zh.svg", "figures/cat/words.zh.png"}
    assert names <= set(before) and len(before) == 3 + 2 * 3 + 2 * 4 * 3
    shutil.rmtree(made)
    with matplotlib.rc_context({"font.family": "serif", "savefig.bbox": "tight"}):
        report([house / "runs" / name for name in ("coins", "坏", "cat")], made)
    again = contents_of(made)
    assert [name for name in before if before[name] != again[name]] == []


@pytest.mark.slow
def test_the_command_under_a_figure_makes_its_files_again(house, made, html, capsys):
    commands = re.findall(r'<code class="command">(toushi report .*?)</code>', html)
    assert len(commands) == 5
    before = contents_of(made / "figures")
    for name in ("shares.zh", "tokens.zh"):
        next((made / "figures").rglob(f"{name}.svg")).unlink()
    for command in commands:
        if "shares" in command or "tokens" in command:
            assert main(command.split()[1:]) == 0
    assert contents_of(made / "figures") == before
    assert "shares.zh.svg" in capsys.readouterr().out


def test_the_page_needs_nothing_from_outside(html):
    seen = Seen(html)
    links = [value for _, attrs in seen.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in seen.tags}
    assert all(url.startswith("data:") for url in re.findall(r"url\((.*?)\)", html)) and "@import" not in html
    images = [attrs["src"].partition("base64,")[2] for tag, attrs in seen.tags if tag == "img"]
    for image in images:  # an image could refer to others
        inside = base64.b64decode(image).decode()
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="(.*?)"', inside))
        assert "<script" not in inside
    policy = next(attrs for tag, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]


def test_what_a_prompt_says_is_text(html):
    seen = Seen(html)
    assert PROMPT in seen.text[None] and not [1 for tag, attrs in seen.tags if attrs.get("src", "").startswith("http")]


def test_both_languages_tell_question_verdict_method_and_provenance(html):
    seen = Seen(html)
    study = coins.STUDY
    for language in LANGUAGES:
        text = seen.text[language]
        for said in (study.title, study.question, study.method, words.QUESTION, words.PROVENANCE, words.TOKENS):
            assert getattr(said, language) in text
    assert "平均有" in seen.text["zh"] and "heads on average" in seen.text["en"]
    assert "4 个任务中已完成 3 个" in seen.text["zh"] and "3 of its 4 jobs" in seen.text["en"]
    assert "银元-1" in seen.text["zh"] and "under the table" in seen.text["en"]
    assert "toushi run tests.experiments.coins" in html and "sha256" in html
    alts = [attrs["alt"] for tag, attrs in seen.tags if tag == "img"]
    assert len(alts) == 2 + 2 * 4 and all(alts)


def test_the_font_in_the_page_has_every_character_of_it(html):
    import io

    from fontTools.ttLib import TTFont

    font = TTFont(io.BytesIO(base64.b64decode(re.search(r"font/woff;base64,([^)]*)\)", html)[1])))
    seen = Seen(html)
    assert {c for c in "".join(seen.text.values()) if is_wide(c)} <= set(map(chr, font.getBestCmap()))


# --- the paper ---


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_chinese_sign_of_the_pdf_has_ink(language, made, chapters, tmp_path):
    found, blank = signs((made / f"report.{language}.pdf").read_bytes())
    assert blank == []
    said = contents(chapters, made, tmp_path, language)
    wanted = Counter(filter(is_wide, "".join(texts(said["chapters"]))))
    assert wanted["鸮"] and not {c: n for c, n in wanted.items() if found[c] < n}
    assert "〓" not in wanted


def texts(value):
    if isinstance(value, dict):
        value = [one for key, one in value.items() if key not in ("file", "verdict")]
    if isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, str):
        yield value


def test_every_chinese_label_of_the_figures_has_ink(made):
    labels = Counter()
    for file in (made / "figures").rglob("*.pdf"):
        found, blank = signs(file.read_bytes())
        assert blank == [], file
        labels += found
    assert set("铜钱银元正面的比例左边是猫鸮月亮") <= set(labels)


def test_a_sign_without_ink_is_found(tmp_path):
    @styled
    def drawn() -> Figure:
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, "一猫。")
        figure.text(0.6, 0.5, "狗", color="white")
        return figure

    found, blank = signs(save(drawn(), tmp_path / "a.pdf").read_bytes())
    assert set(found) == set("一猫。狗") and blank == ["狗"]


def test_what_the_report_itself_and_every_experiment_say_can_be_drawn():
    texts = [value for value in vars(words).values() if isinstance(value, Bilingual)]
    texts += [*words.FACTS.values(), *words.VERDICTS.values()]
    for name in runner.study_names():
        study = runner.load_study(name).STUDY
        texts += [study.title, study.question, study.method]
    for text in (text for both in texts for text in (both.en, both.zh)):
        assert drawable(text) == text.replace("\n", " ").replace("\u3000", " "), text


def test_a_character_that_no_font_has_is_told_by_a_sign(tmp_path):
    chapter = Chapter("a", Bilingual.same("한글 \U00020000"), sheets=[])
    assert contents([chapter], tmp_path, tmp_path, "zh")["chapters"][0]["title"] == "〓〓 〓"


# --- what is not as it should be ---


def test_a_run_whose_experiment_is_not_here_still_shows_its_tables(house, tmp_path):
    folder = tmp_path / "coins"
    shutil.copytree(house / "runs" / "coins", folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_file(folder / "manifest.json", json.dumps({**manifest, "experiment": "dice"}))
    report([folder], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "没有实验 dice" in page and "<figure>" not in page and "<caption>coins" in page


def test_a_run_of_several_versions_of_its_code_says_so(house, tmp_path):
    shutil.copytree(house / "runs" / "coins", tmp_path / "coins")
    manifest = json.loads((tmp_path / "coins" / "manifest.json").read_text(encoding="utf-8"))
    manifest["jobs"]["银元-1"]["code_sha256"] = "0" * 64
    write_file(tmp_path / "coins" / "manifest.json", json.dumps(manifest))
    report([tmp_path / "coins"], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "computed with 2 versions of the code" in page and "<figure>" in page


@pytest.mark.slow
def test_a_trace_that_was_broken_off_says_so(tmp_path):
    picture = np.zeros((32, 32, 3), np.uint8)
    trace = made_trace(tmp_path / "run", "猫", picture, {}, steps=2)
    manifest = json.loads((trace.folder / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"complete": False, "steps": {"count": 5, "times": None}, "files": {}}
    write_file(trace.folder / "manifest.json", json.dumps(manifest))
    (trace.folder / "image.png").unlink()
    report([trace.folder], tmp_path / "out")
    assert "共 5 步，记录了 2 步" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_the_layers_of_the_words_that_are_asked_for(house, tmp_path, capsys):
    arguments = ["report", str(house / "runs" / "cat"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--words", "月亮", "猫", "--figures", "layers-3-4"]) == 0
    assert (tmp_path / "out" / "figures" / "cat" / "layers-3-4.zh.pdf").is_file()
    assert len(capsys.readouterr().out.splitlines()) == 2 * 3


def test_every_figure_by_word_has_only_the_words_that_are_asked_for(house):
    from toushi.reports.trace_chapter import figures_by_name, words_to_draw

    trace = open_trace(house / "runs" / "cat")
    figures = figures_by_name(trace, words_to_draw(trace, None, "cond"), ("月亮",))
    assert {"words", "layers", "timeline"} <= set(figures)
    for name in ("words", "timeline"):
        texts = [text.get_text() for text in figures[name][1](language="en").findobj(Text)]
        assert "月亮" in texts and "猫" not in texts


def test_mistakes_are_told_in_one_line(house, tmp_path, capsys):
    runs = house / "runs"

    def edited(name: str, **by_hand) -> Path:
        shutil.copytree(runs / "coins", tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text(encoding="utf-8"))
        write_file(tmp_path / name / "manifest.json", json.dumps({**manifest, **by_hand}))
        return tmp_path / name

    bare = {"format": "toushi-run", "version": 1, "complete": True, "verdict": "refuted"}
    write_file(tmp_path / "broken" / "manifest.json", json.dumps(bare))
    for arguments, said in [
        ([], "give the folder of a result or of a trace"),
        ([str(tmp_path / "nothing")], "there is no folder"),
        ([str(tmp_path)], "is no result of toushi run: it has no manifest.json"),
        ([str(tmp_path / "broken")], "is not whole: experiment: Field required"),
        ([str(edited("odd", verdict="proved"))], "odd/manifest.json gives the verdict 'proved', but"),
        ([str(edited("none", verdict=None))], "gives the verdict None, but expected was supported or refuted or"),
        ([str(edited("list", verdict=["refuted"]))], "is not whole: verdict: Input should be a valid string"),
        ([str(edited("cut", complete=False))], "but expected was None"),
        ([str(edited("jobs", jobs=[]))], "is not whole: jobs: Input should be a valid dictionary"),
        ([str(runs / "coins"), "--figures", "share"], "there is no figure 'share'; there are: shares"),
        ([str(runs / "坏"), "--figures", "shares"], "there are: none"),
        ([str(runs / "coins"), "--words", "猫"], "--words selects words of a trace"),
        ([str(runs / "cat"), "--words", "狗"], "'狗' is not in the prompt"),
        ([str(runs / "coins"), "-o", "/proc/nowhere"], "cannot write to /proc/nowhere"),
    ]:
        where = [] if "-o" in arguments else ["-o", str(tmp_path / "out")]
        assert main(["report", *arguments, *where]) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1, err


def test_a_trace_of_an_encoder_is_told_what_shows_it(tmp_path, capsys):
    about = {"model": None, "count": 0, "layers": 1, "heads": None, "width": 4}
    with EncoderTraceWriter(tmp_path / "texts", about):
        pass
    assert main(["report", str(tmp_path / "texts"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "is a trace of a text encoder" in said and "toushi info" in said and len(said.splitlines()) == 1


def test_long_tables_are_cut_and_say_where_the_rest_is(tmp_path):
    table = pd.DataFrame({"n": range(700), "x": np.linspace(0, 1, 700), "word": "猫"})
    file = tmp_path / "long.csv"
    write_file(file, table.to_csv(index=False))
    body = rows(Sheet("long", table, file))
    assert len(body["rows"]) == 500 and "700 行" in body["note"].zh and str(file) in body["note"].en
    assert base64.b64decode(body["data"]) == file.read_bytes()
    assert [column["number"] for column in body["columns"]] == [True, True, False]
    chapter = Chapter("a", Bilingual.same("a"), sheets=[Sheet("long", table, file)])
    assert len(contents([chapter], tmp_path, tmp_path, "en")["chapters"][0]["sheets"][0]["rows"]) == 15
    assert (format_cell(0.123456), format_cell(float("nan")), format_cell(3), format_cell(True)) == (
        "0.1235",
        "–",
        "3",
        "True",
    )


def test_figures_of_a_trace_fit_a_page(house):
    from toushi.reports.trace_chapter import figures_by_name, words_to_draw

    trace = open_trace(house / "runs" / "cat")
    for name, (_, draw) in figures_by_name(trace, words_to_draw(trace, None, "cond"), ()).items():
        for language in ("zh", "en"):
            figure = draw(language=language)
            assert figure.get_figwidth() <= PAGE, name
            said = [text.get_text() for text in figure.findobj(Text)]
            assert "注意力" in "".join(said) if language == "zh" else not any("注意力" in text for text in said), name


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, "--sampler euler"),
        ({"sampler": "DDIMScheduler"}, "--guidance 3"),
        ({"batch": 4}, ""),
        ({"strength": 0.5}, ""),
    ],
)
def test_a_command_is_given_only_if_it_makes_the_picture_again(house, tmp_path, fields, expected):
    shutil.copytree(house / "runs" / "cat", tmp_path / "cat")
    manifest = json.loads((tmp_path / "cat" / "manifest.json").read_text(encoding="utf-8"))
    (tmp_path / "cat" / "manifest.json").write_text(json.dumps(manifest | fields), encoding="utf-8")
    command = trace_command(open_trace(tmp_path / "cat"))
    assert expected in command and bool(expected) == bool(command) and "DDIM" not in command
