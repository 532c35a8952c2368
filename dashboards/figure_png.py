"""A figure on a page: a PNG twice as fine as it is shown, for good screens, that no browser chokes on."""

import base64
import io

INCH = 88  # pixels on the page
MOST = 40e6  # pixels of the PNG


def drawn(figure) -> tuple[str, int]:
    """A data URL of a matplotlib figure, and its width on the page in pixels; Streamlit would scale bytes to that."""
    wide, tall = figure.get_size_inches()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=min(2 * INCH, (MOST / (wide * tall)) ** 0.5))
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", round(INCH * wide)
