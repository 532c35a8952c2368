"""The card says what was measured, and the default heat map follows from it."""

import pandas as pd
import pytest

from toushi.experiments.training.model_card import heat_map_rule, list_faults


def pointing(layer: float, mean: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        dict(kind="noised", time=time, layer=name, hit=hit)
        for time in (0.5, 0.3)
        for name, hit in (("unet.up.0", layer), ("plain mean", mean))
    ]
    rows.append(dict(kind="drawn", time=None, layer="unet.up.0", hit=1.0))
    best = [dict(kind="noised", best_layer="unet.up.0"), dict(kind="drawn", best_layer="unet.up.1")]
    return pd.DataFrame(rows), pd.DataFrame(best)


def test_one_layer_becomes_the_default_only_if_it_points_better_than_the_mean_of_all():
    assert heat_map_rule(*pointing(layer=0.85, mean=0.94)) is None
    rule = heat_map_rule(*pointing(layer=0.96, mean=0.94))
    assert rule["sites"] == ["unet.up.0"] and "unet.up.0" in rule["rule"]


@pytest.mark.parametrize("right, said", [(0.4, "object: 0.400, the goal is 0.95"), (0.99, "")])
def test_faults_name_what_falls_short(right, said):
    rows = [dict(what=what, language="all", right=right) for what in ("object", "position", "colour", "sense")]
    found = list_faults(pd.DataFrame(rows))
    assert (said in found) and ("goal" in found) is bool(said)
