"""A figure on a page: a PNG with two pixels for each pixel of the page, limited to a size that browsers can show."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCH = 88  # pixels on the page
MAX_PIXELS = 40e6  # of the PNG


def png_data_url(figure: "Figure") -> tuple[str, int]:
    """A data URL of a matplotlib figure, and its width on the page in pixels. Streamlit would scale bytes down to that."""
    wide, tall = figure.get_size_inches()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=min(2 * INCH, (MAX_PIXELS / (wide * tall)) ** 0.5))
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", round(INCH * wide)
