"""The results of studies: those that come with Toushi, and those of `toushi run` in the gallery's folder."""

import os
from pathlib import Path
from typing import Literal

import streamlit as st

from toushi import experiments
from toushi.dashboards import findings_chart as charts
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import say
from toushi.experiments.runner.result_folder import MANIFEST, read_manifest, read_tables
from toushi.experiments.runner.result_manifest import ResultManifest
from toushi.probe.base.errors import ToushiError

PACKAGED = Path(experiments.__file__).parent / "results"
Colour = Literal["green", "red", "orange", "blue"]
COLOURS: dict[str, Colour] = {"supported": "green", "refuted": "red", "undecided": "orange", "measured": "blue"}
NO_CAPTION = ("prompt", "picture", "layer")
MAX_PICTURES = 26  # of one prompt: as many as an encoder has layers


@st.cache_data(show_spinner=False)
def read_result(folder: str, version: float) -> ResultManifest | None:
    """The manifest of a finished result; None for any other folder. `version` makes a changed one be read anew."""
    try:
        manifest = read_manifest(Path(folder))
    except ToushiError:
        return None
    return manifest if manifest.complete else None


def results(root: Path) -> dict[Path, ResultManifest]:
    """The finished results at most two folders below `root`."""
    paths = [path for depth in (1, 2) for path in sorted(root.glob("*/" * depth + MANIFEST))]
    manifests = {path.parent: read_result(str(path.parent), os.path.getmtime(path)) for path in paths}
    return {folder: manifest for folder, manifest in manifests.items() if manifest is not None}


def choose(manifests: dict[Path, ResultManifest]) -> Path:
    """The study and then the model of it that was chosen."""
    language = library.language()
    titles = {manifest.experiment: manifest.study.title.translate(language) for manifest in manifests.values()}
    study = st.selectbox(say("findings_study"), list(titles), format_func=titles.__getitem__)
    folders = [folder for folder, manifest in manifests.items() if manifest.experiment == study]
    folders.sort(key=lambda folder: folder.name != "mini-unet")  # the model of the explorer first
    chosen = st.pills(say("findings_of"), folders, default=folders[0], format_func=lambda folder: folder.name,
                      required=True, key=f"findings_of_{study}")  # fmt: skip
    return chosen or folders[0]


def show_table(name: str, table, manifest: ResultManifest) -> None:
    """The table's estimates as a chart, with a choice for each key whose values it does not show together, and the table."""
    language, estimates = library.language(), charts.estimates_of(table)
    if estimates is not None:
        together = charts.shown_key(table, estimates)
        for key in estimates.keys:
            values = list(table[key].dropna().unique())
            if key == together or len(values) < 2:
                continue
            chosen = st.pills(
                charts.column_name(key, language), values, default=values[0], required=True,
                format_func=lambda value: charts.value_name(value, language), key=f"findings_{name}_{key}",
            )  # fmt: skip
            table = table.loc[table[key] == chosen]
        if len(table):
            st.plotly_chart(charts.chart(table, estimates, language), key=f"findings_chart_{name}")
        if estimates.baselines:
            st.caption(say("findings_dotted", names=", ".join(estimates.baselines)))
    with st.expander(say("findings_rows", name=name, n=len(table))):
        st.dataframe(table, hide_index=True)


def show_pictures(table) -> None:
    """Pictures that a study kept, of one prompt at a time, in the order of their layers or models."""
    prompt = st.selectbox(say("prompt"), list(table["prompt"].unique()), key="findings_prompt")
    rows = table.loc[table["prompt"] == prompt].head(MAX_PICTURES)
    with st.container(horizontal=True):
        for _, row in rows.iterrows():
            names = [charts.value_name(row[key], library.language()) for key in row.index if key not in NO_CAPTION]
            layer = [say("findings_layer", n=row["layer"])] if "layer" in row else []
            st.image(row["picture"], caption=" · ".join([*layer, *names]), width=96)


def show(folder: Path, manifest: ResultManifest) -> None:
    language, study = library.language(), manifest.study
    verdict = manifest.verdict or "undecided"
    st.markdown(f"### {library.escape_markdown(study.title.translate(language))}")
    st.badge(say(f"verdict_{verdict}"), color=COLOURS[verdict])
    st.markdown(f"**{say('findings_question')}** {library.escape_markdown(study.question.translate(language))}")
    if manifest.sentence is not None:
        st.markdown(f"**{say('findings_answer')}** {library.escape_markdown(manifest.sentence.translate(language))}")
    with st.expander(say("findings_method")):
        st.markdown(library.escape_markdown(study.method.translate(language)))
        st.code(manifest.command, language="sh")
    tables = read_tables(folder, manifest)
    shown = {name: table for name, table in tables.items() if "picture" not in table}
    if pictures := [table for table in tables.values() if "picture" in table]:
        show_pictures(pictures[0])
    first = sorted(shown, key=lambda name: ("layer" not in shown[name], charts.estimates_of(shown[name]) is None))
    for tab, name in zip(st.tabs(first), first):
        with tab:
            show_table(name, shown[name], manifest)


st.caption(say("findings_how"))
manifests = results(PACKAGED) | results(library.gallery())
folder = choose(manifests)
show(folder, manifests[folder])
