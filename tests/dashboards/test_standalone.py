"""A trace as one HTML file."""

import pytest

from tests.dashboards import made_trace
from toushi.dashboards.heat_map import standalone
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace.open import open_trace


def test_a_prompt_is_text_on_the_page_and_never_a_tag(tmp_path):
    prompt = "a</title><script>alert(1)</script> & 猫 $title $block"
    made_trace.write(tmp_path / "run", prompt)
    standalone.write_page(open_trace(tmp_path / "run"), tmp_path / "page.html", "en")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "$title $block" in page  # as it was typed


def test_what_does_not_fit_is_left_out(tmp_path, monkeypatch):
    made_trace.write(tmp_path / "run")
    trace = open_trace(tmp_path / "run")
    assert not standalone.write_page(trace, tmp_path / "whole.html", "en").heads_left_out
    monkeypatch.setattr(standalone, "MAPS_BYTES", 100_000)
    maps = standalone.write_page(trace, tmp_path / "small.html", "en")
    assert maps.heads_left_out
    assert (tmp_path / "small.html").stat().st_size < (tmp_path / "whole.html").stat().st_size


def test_a_file_is_replaced_only_on_request(tmp_path):
    made_trace.write(tmp_path / "run")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ToushiError, match="exists"):
        standalone.write_page(open_trace(tmp_path / "run"), tmp_path / "page.html", "en")
    assert (tmp_path / "page.html").read_text() == "mine"
    standalone.write_page(open_trace(tmp_path / "run"), tmp_path / "page.html", "en", overwrite=True)
    assert (tmp_path / "page.html").stat().st_size > 10_000
