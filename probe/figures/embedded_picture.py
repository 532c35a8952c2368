"""Small pictures as text, so that a table can hold them."""

import base64
import io

import numpy as np
from PIL import Image

PREFIX = "data:image/png;base64,"


def embed_picture(picture: Image.Image) -> str:
    """A PNG of at most 64 colours, 3 kB for 64 x 64 pixels."""
    file = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return PREFIX + base64.b64encode(file.getvalue()).decode()


def decode_picture(text: str) -> np.ndarray:
    """uint8 [height, width, 3]"""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.removeprefix(PREFIX)))).convert("RGB"))
