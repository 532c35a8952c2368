"""Caches of diffusers reuse what attention gave at an earlier step: those steps have no maps, and nothing counts them."""

import warnings

import diffusers
import pytest

from tests.pipelines.tiny import draw, made
from toushi.dashboards.heat_map.payload import picture_block, unpack_header
from toushi.dashboards.heat_map.word_maps import read_word_maps
from toushi.probe.recording.record import record
from toushi.probe.recording.unrecordable import StepsNotComputed
from toushi.probe.trace.export.export_trace import export
from toushi.probe.trace.open import open_trace

BROADCAST = diffusers.PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(0, 1000),
    spatial_attention_block_identifiers=["transformer_blocks"],
    current_timestep_callback=lambda: 500,
)
FIRST_BLOCK = diffusers.FirstBlockCacheConfig(threshold=10.0)


@pytest.mark.parametrize(
    ("cache", "steps", "counts", "said"),
    [(BROADCAST, [0, 2], {2}, "2 of 4 .* 5 of 5"), (FIRST_BLOCK, [0, 1, 2, 3], {4, 1}, "3 of 4 .* 4 of 5")],
)
def test_steps_that_a_cache_skips_are_said_and_not_counted(cache, steps, counts, said, tmp_path):
    for keep in ("mean", "sum"):
        pipeline = made("flux")
        pipeline.transformer.enable_cache(cache)
        with pytest.warns(StepsNotComputed, match=said), record(pipeline, tmp_path / keep, keep=keep, dtype="float32"):
            draw(pipeline, "a red cat", guidance=False, steps=4)
    mean, summed = (open_trace(tmp_path / keep) for keep in ("mean", "sum"))
    assert mean.heat_map("cat").attrs["steps"] == steps
    for trace in (mean, summed):
        sites = [name for name, site in trace.sites.items() if site.kind == "cross"]
        assert {trace.step_count(site) for site in sites} == counts
        missing = trace.manifest.not_computed
        assert {site: 4 - len(missing.get(site, ())) for site in sites} == {s: trace.step_count(s) for s in sites}
        layers = unpack_header(picture_block(trace, read_word_maps(trace, "cond"), "cond", "en"))["layers"]
        assert [layer["averaged"] for layer in layers] == [max(counts), *map(trace.step_count, sites)]
    assert set(export(summed, "npz").about["summed"]["cond"].values()) == counts
    assert abs(mean.heat_map("cat") - summed.heat_map("cat")).max() < 1e-6


def test_a_run_without_a_cache_is_silent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", StepsNotComputed)
        pipeline = made("stable-diffusion")
        with record(pipeline, tmp_path / "run", keep="mean"):
            draw(pipeline, "a red cat")
    assert open_trace(tmp_path / "run").manifest.not_computed is None
