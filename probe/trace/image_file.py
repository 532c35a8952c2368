"""image.png of a trace: written with Toushi's mark, read without trusting it."""

import io
from pathlib import Path

import numpy as np

from toushi.probe.trace.safetensors_reader import read_bytes
from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.trace_format import IMAGE

MADE_BY = "Toushi"  # the PNG text `Software` of every picture that Toushi writes
MAX_PIXELS = 2**26


def read_image(folder: Path) -> np.ndarray:
    """The picture of the trace, uint8 [y, x, 3]. Raises DamagedTrace."""
    from PIL import Image

    data = read_bytes(folder, IMAGE)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels cannot be right")
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow's readers raise many types
        raise DamagedTrace(f"{folder / IMAGE} is not a readable picture: {error}.") from None


def picture_bytes(image) -> bytes:
    """The PIL picture as PNG, marked as Toushi's."""
    from PIL.PngImagePlugin import PngInfo

    mark, file = PngInfo(), io.BytesIO()
    mark.add_text("Software", MADE_BY)
    image.save(file, "PNG", pnginfo=mark)
    return file.getvalue()


def save_picture(image, path: Path) -> None:
    """Writes the PIL picture as PNG, marked as Toushi's."""
    path.write_bytes(picture_bytes(image))


def is_toushi_picture(path: Path) -> bool:
    """Whether this is a picture without a trace, as `toushi trace --no-record` writes it."""
    from PIL import Image

    if path.name != IMAGE:
        return False
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.info.get("Software") == MADE_BY
    except (OSError, ValueError, SyntaxError):  # what PIL raises for files that are no pictures
        return False
