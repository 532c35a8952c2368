"""A model whose card names a better average than the plain mean: its traces use it, and say so."""

import numpy as np

from tests.trace.runs import Run
from toushi.probe.analysis.maps import PLAIN_MEAN
from toushi.probe.models.mini_unet import MiniUNet, MiniUNetConfig
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

RULE = {"sites": ["unet.middle.*"], "rule": "the middle alone"}


def test_the_rule_is_the_default(tmp_path):
    trace = open_trace(Run().write(tmp_path / "run", heat_map=RULE))
    by_rule = trace.heat_map("猫")
    assert by_rule.attrs["rule"] == "the middle alone"
    np.testing.assert_array_equal(by_rule, trace.heat_map("猫", sites="unet.middle.*"))
    assert trace.heat_map("猫", sites="unet.*").attrs["rule"] == PLAIN_MEAN
    assert trace.heat_map("猫", sites="unet.*").shape != by_rule.shape


def test_a_trace_without_the_sites_of_the_rule_has_the_plain_mean(tmp_path):
    rule = {"sites": ["unet.up.0.*", "unet.middle.*"], "rule": "two layers"}
    trace = open_trace(Run().write(tmp_path / "run", heat_map=rule))
    assert trace.heat_map("猫").attrs["rule"] == PLAIN_MEAN


def test_the_rule_goes_with_the_weights_into_the_trace(tmp_path):
    model = MiniUNet.tiny()
    assert MiniUNetConfig().heat_map is None
    model.config = MiniUNetConfig(model.config.text, model.config.unet, model.config.vae, heat_map=RULE)
    model.save(tmp_path / "model")
    with record(MiniUNet.from_folder(tmp_path / "model"), tmp_path / "run") as recording:
        recording.model.sample("猫", steps=1)
    assert open_trace(tmp_path / "run").heat_map("猫").attrs["rule"] == "the middle alone"
