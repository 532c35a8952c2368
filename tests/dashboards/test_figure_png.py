"""A figure on a page: twice as fine as it is shown, and never too large."""

import base64
import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from toushi.dashboards import figure_png


def png(url: str) -> Image.Image:
    kind, data = url.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_figure_is_twice_as_fine_as_it_is_shown():
    url, width = figure_png.png_data_url(Figure(figsize=(2, 1)))
    assert width == 2 * figure_png.INCH and png(url).size == (4 * figure_png.INCH, 2 * figure_png.INCH)


def test_a_large_figure_has_no_more_pixels_than_a_browser_takes(monkeypatch):
    monkeypatch.setattr(figure_png, "MAX_PIXELS", 20_000)
    url, width = figure_png.png_data_url(Figure(figsize=(8, 4)))
    assert width == 8 * figure_png.INCH and png(url).size == pytest.approx((200, 100), abs=1)
