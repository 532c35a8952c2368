"""What to keep: policies, steps, words, branches, sites."""

import numpy as np
import pytest

from tests.recording.tiny_runs import LONG, recorded, same
from toushi.probe.base.errors import ToushiError
from toushi.probe.recording.forecast import OverBudget
from toushi.probe.recording.record import record


def test_the_policies_agree(model, tmp_path):
    traces = {keep: recorded(model, tmp_path / keep, keeping={"keep": keep})[1] for keep in ("heads", "mean", "sum")}
    heads = traces["heads"].attention("猫", grid="native")
    mean = traces["mean"].attention("猫", grid="native")
    summed = traces["sum"].attention("猫", grid="native")
    for site in heads:
        assert np.abs(heads[site].mean("head") - mean[site]).max() < 1e-3
        assert np.abs(mean[site].mean("step") - summed[site][0]).max() < 1e-3
    assert np.abs(traces["heads"].heat_map("猫") - traces["sum"].heat_map("猫")).max() < 1e-3


@pytest.mark.parametrize(
    "steps, expected",
    [(0, [0]), (-1, [4]), ([1, 3], [1, 3]), (slice(None, None, 2), [0, 2, 4]), (range(1, 3), [1, 2]), ("1:3", [1, 2])],
)
def test_some_steps(model, tmp_path, steps, expected):
    _, whole = recorded(model, tmp_path / "whole", steps=5)
    _, trace = recorded(model, tmp_path / "run", steps=5, keeping={"steps": steps})
    assert trace.steps == expected and trace.complete and not trace.verify()
    assert same(trace.attention(), whole.attention(steps=expected))


def test_some_words(model, tmp_path):
    _, whole = recorded(model, tmp_path / "whole")
    _, trace = recorded(model, tmp_path / "run", keeping={"words": ["猫", "夜晚"]})
    assert same(trace.attention("夜晚"), whole.attention("夜晚"))
    assert same(trace.attention(branch="uncond"), whole.attention(branch="uncond"))
    assert trace.attention().sizes["token"] == len(trace.manifest.branches["cond"].columns) < 8
    assert not trace.verify()
    with pytest.raises(ToushiError):
        trace.attention("月亮")


def test_words_may_be_given_alone_or_by_span(model, tmp_path):
    for number, words in enumerate(["猫", (3, 4), [(3, 4)]]):
        _, trace = recorded(model, tmp_path / str(number), keeping={"words": words})
        assert [trace.tokens()[c].text for c in trace.manifest.branches["cond"].columns] == ["猫"]


def test_what_would_keep_nothing_is_refused(model, tmp_path):
    with pytest.raises(ToushiError, match=r"words: no text column stands for '夜晚', since it was cut"), pytest.warns():
        recorded(model, tmp_path / "cut", prompt=LONG + "夜晚", keeping={"words": "夜晚"})
    with pytest.raises(ToushiError, match="steps: '10:20' selects none of the 3 steps"):
        recorded(model, tmp_path / "late", keeping={"steps": slice(10, 20)})


@pytest.mark.parametrize("steps", ["5", "1:2:3:4", "::0", "a:b", 1.5, ["a"]])
def test_steps_that_are_no_indices_are_refused_before_a_folder_is_made(model, tmp_path, steps):
    with pytest.raises(ToushiError, match='steps must be an index, a list of indices, or a slice such as "5:11"'):
        record(model, tmp_path / "run", steps=steps)
    assert not (tmp_path / "run").exists()


def test_the_budget_may_be_text(model, tmp_path):
    with pytest.raises(OverBudget), record(model, tmp_path / "run", keep="heads", budget="1kB"):
        model.sample("猫", steps=1, size=16)
    with pytest.raises(ToushiError, match="budget must be a size on disk such as 20GB or 500MB, but much came"):
        record(model, tmp_path / "run", budget="much")


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_one_branch(model, tmp_path, branch):
    _, whole = recorded(model, tmp_path / "whole")
    _, trace = recorded(model, tmp_path / "run", keeping={"branches": branch})
    assert trace.branches == [branch] and not trace.verify()
    assert same(trace.attention(branch=branch), whole.attention(branch=branch))


def test_some_sites(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", keeping={"sites": ["unet.up.*.cross_attention"]})
    assert list(trace.sites) == ["unet.up.0.cross_attention", "unet.up.1.cross_attention"]
    with pytest.raises(ToushiError):
        trace.encoder_states()


def test_image_self_attention_where_it_is_named(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", keeping={"sites": "unet.middle.*_attention"})
    assert trace.sites["unet.middle.self_attention"].kind == "self"
    found = trace.attention(sites="unet.middle.self_attention", grid="native")["unet.middle.self_attention"]
    assert found.sizes["key"] == 16 and np.abs(found.sum("key") - 1).max() < 1e-3
    assert not trace.verify()


def test_some_layers_of_the_encoder(model, tmp_path):
    _, trace = recorded(
        model, tmp_path / "run", keeping={"sites": ["encoder.layers.3.attention", "unet.middle.cross*"]}
    )
    assert list(trace.encoder_states().layer) == [0, 4] and trace.encoder_attention(3).size
