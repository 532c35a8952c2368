"""Reads what a page in the browser shows, and acts on it."""

import numpy as np
from matplotlib import colormaps

HALF = {"rtol": 2**-10, "atol": 1e-7}  # the maps travel as float16


def opened(page, path="/"):
    page.goto(page.address + path)
    page.wait_for_selector(".toushi[data-ready]")
    page.wait_for_timeout(300)  # what Streamlit sends once after the first run is not the component's doing
    page.sent.clear()
    return page


def drawn(page, stage=0):
    """The values and the pixels of the overlay, as the browser has them after its next frame."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found = (
        page.locator("canvas.heat")
        .nth(stage)
        .evaluate(
            """(canvas) => ({ ...canvas.drawn, values: [...canvas.drawn.values], data: { ...canvas.dataset },
             pixels: [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data] })"""
        )
    )
    return (
        np.array(found["values"]).reshape(found["grid"]),
        np.array(found["pixels"]).reshape(*found["grid"], 4),
        found["range"],
        found["data"],
    )


def coloured(values, low, high):
    return np.round(255 * colormaps["inferno"](np.round((values - low) / (high - low) * 255).astype(int))[..., :3])


def choose(page, **labels):
    page.locator(".chip").get_by_text(labels["word"], exact=True).click()
    page.mouse.move(2, 2)  # away from the chip, which is previewed while it is pointed at
