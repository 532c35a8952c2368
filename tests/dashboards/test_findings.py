"""The page of findings: every packaged result opens, and its chart shows the table's numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toushi import experiments
from toushi.dashboards import findings_chart as charts
from toushi.experiments.runner.result_folder import read_manifest, read_tables

RESULTS = sorted((Path(experiments.__file__).parent / "results").glob("*/*/manifest.json"))
PAGE = "app_pages/findings_page.py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_chart_has_the_estimates_of_its_table_and_nothing_else(path):
    charted = 0
    for table in read_tables(path.parent, read_manifest(path.parent)).values():
        if (estimates := charts.estimates_of(table)) is None:
            continue
        figure, charted = charts.chart(table, estimates, "zh"), charted + 1
        axis = "y" if "layer" in table else "x"
        shown = [value for line in figure.data if "markers" in line.mode for value in line[axis]]
        np.testing.assert_array_equal(np.sort(shown), np.sort(table[estimates.value]))
    assert charted, "each study has a table with intervals"


def test_the_value_of_a_table_is_the_one_inside_the_interval():
    table = pd.DataFrame(
        dict(layer=[0, 1], accuracy=[0.5, 0.8], separation=[0.1, 0.9], low=[0.4, 0.7], high=[0.6, 0.9])
    )
    found = charts.estimates_of(table)
    assert found is not None and found.value == "accuracy" and found.keys == []
    assert charts.estimates_of(table.drop(columns="low")) is None
    kept = pd.DataFrame(
        dict(thing=["a", "b"], right=[0.5, 0.8], clean=[1.0, 1.0], kept=[0.5, 0.8], low=[0.4, 0.7], high=[0.6, 0.9])
    )
    found = charts.estimates_of(kept)
    assert found is not None and found.value == "kept", "the interval is that of the column before it"


@pytest.mark.parametrize("study", sorted({path.parts[-3] for path in RESULTS}))
def test_every_study_opens(app, study):
    test = app(page=PAGE)
    test.selectbox[0].set_value(study).run()
    assert not test.exception and test.get("plotly_chart")


def test_a_long_table_is_drawn_in_parts(app):
    test = app(page=PAGE)
    test.selectbox[0].set_value("faithfulness").run()
    assert not test.exception
    charts_shown = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    assert charts_shown and all(len(one["data"][0]["y"]) <= charts.MAX_ROWS for one in charts_shown)


def test_the_page_opens_each_study_in_both_languages(app):
    test = app(page=PAGE)
    studies = test.selectbox[0].options
    assert len(studies) == len({path.parts[-3] for path in RESULTS})
    for locale, verdict in (("en-GB", "refuted"), ("zh-CN", "被推翻")):
        test = app(page=PAGE, locale=locale)
        test.selectbox[0].set_value("layer_semantics").run()
        assert not test.exception and any(verdict in markdown.value for markdown in test.markdown)
        assert test.get("plotly_chart")
