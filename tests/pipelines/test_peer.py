"""Our maps against those of attention-map-diffusers 1.0.0, which reads attention in a way of its own.

It replaces every attention processor by one that keeps queries and keys. Compared are SD, SDXL and SD3, where it is
right; which row of the batch is which branch it does not say, so the test does. For other families its code is not
(read in 1.0.0, attention_capture.py): of Z-Image every item of a batch is taken to be as long as the first, the
padding counts as text, and there is no grid where the image is padded; FLUX.2's tokens are always called Qwen3's.
"""

import numpy as np
import pytest

from tests.pipelines.tiny import NEGATIVE, draw
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

peer = pytest.importorskip(
    "attention_map_diffusers", reason="NOT COMPARED: pip install --no-deps attention-map-diffusers==1.0.0"
)


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"])
def test_the_maps_are_the_peers(pipeline, name, tmp_path):
    how = {"size": (32, 48), "negative": NEGATIVE}
    with record(pipeline, tmp_path / "run", dtype="float32", pads=True):
        draw(pipeline, **how)
    with peer.AttentionCapture(pipeline, timesteps="all", heads="all") as capture:
        draw(pipeline, **how)
    trace, found = open_trace(tmp_path / "run"), {}
    for one in capture.compute().records:
        if one.relation == "image->text":
            found.setdefault(one.layer_id, []).append(one.data)
    assert set(found) == {site for site, about in trace.sites.items() if about.kind == "cross"}
    for site, steps in found.items():
        assert len(steps) == len(trace.steps)
        for step, maps in zip(trace.steps, steps):
            for row, branch in enumerate(("uncond", "cond")):
                ours = trace.files.step(step).read(f"{site}/{branch}")
                theirs = maps[row].transpose(1, 2).numpy()
                assert np.abs(ours.reshape(theirs.shape) - theirs).max() < 1e-4, (site, step, branch)
