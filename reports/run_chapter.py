"""The chapter of a study's result: the figures are drawn from its tables, nothing is computed."""

import json
import shlex
from collections.abc import Collection
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import JsonValue

from toushi.experiments.runner.result_folder import JOBS, MANIFEST, TABLES, read_manifest, read_tables
from toushi.experiments.runner.result_manifest import ResultManifest
from toushi.experiments.runner.run_study import load_study
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError
from toushi.reports import report_messages as messages
from toushi.reports.chapter import LANGUAGES, Chapter, Sheet, known_facts
from toushi.reports.figure_files import save_in_both_languages


def chapter_of_run(folder: Path, key: str, out: Path, wanted: Collection[str] = ()) -> Chapter:
    """The chapter. Its figures, all of them or those that `wanted` names, go to `out/figures/KEY`."""
    manifest = read_manifest(folder)
    expected = [*messages.VERDICTS] if manifest.complete else [None]
    if manifest.verdict not in expected:
        raise ToushiError(
            f"{folder / MANIFEST} gives the verdict {manifest.verdict!r}, but expected was "
            f"{' or '.join(map(str, expected))}; the result's own command writes it anew"
        )
    notices = _notices(folder, manifest)
    tables = read_tables(folder, manifest)
    figures, pictures = {}, []
    if manifest.complete:
        figures = _draw_figures(folder, manifest, tables)
        if figures is None:
            notices.append(messages.NO_MODULE.format(name=manifest.experiment))
        for name, pair in (figures or {}).items():
            if not wanted or name in wanted:
                captions = {of: str(pair[of].get_label()) or name.replace("_", " ") for of in LANGUAGES}
                pictures.append(save_in_both_languages(name, pair, Bilingual(**captions), folder, key, out))
    return Chapter(
        key,
        manifest.study.title,
        notices,
        question=manifest.study.question,
        method=manifest.study.method,
        verdict=manifest.verdict,
        sentence=manifest.sentence,
        pictures=pictures,
        all_pictures=tuple(figures or ()),
        sheets=[Sheet(name, table, folder / TABLES / f"{name}.csv") for name, table in tables.items()],
        command=f"{manifest.command} --out {shlex.quote(folder.as_posix())}",
        facts=_facts(manifest),
    )


def _notices(folder: Path, manifest: ResultManifest) -> list[Bilingual]:
    """Warnings about an unfinished study, failed jobs, or several versions of the code."""
    versions = len({record.code_sha256 for record in manifest.jobs.values()})
    mixed = [messages.MIXED.format(count=versions)] if versions > 1 else []
    if manifest.complete:
        return mixed
    done = len(list((folder / JOBS).glob("*.csv")))
    notices = [messages.UNFINISHED.format(all=manifest.jobs_in_all, done=done), *mixed]
    if manifest.failed:
        listed = "; ".join(f"{name} ({why})" for name, why in manifest.failed.items())
        notices.append(messages.FAILED.format(jobs=listed))
    return notices


def _draw_figures(folder: Path, manifest: ResultManifest, tables: dict) -> dict[str, dict[str, Figure]] | None:
    """The figures by name and language; None if the study is not installed here."""
    try:
        module = load_study(manifest.experiment)
    except ToushiError:
        return None
    try:
        by_language = {language: module.figures(dict(tables), language) for language in LANGUAGES}
        return {name: {of: by_language[of][name] for of in LANGUAGES} for name in by_language[LANGUAGES[0]]}
    except Exception as error:
        raise ToushiError(f"the figures of {folder} cannot be drawn: {type(error).__name__}: {error}") from error


def _facts(manifest: ResultManifest) -> list[tuple[Bilingual, Bilingual]]:
    """Where the result comes from: names and values, without those that are not known."""
    seconds = sum(record.seconds for record in manifest.jobs.values())
    hardware = manifest.hardware
    machine = ", ".join([hardware.processor, hardware.system, *hardware.gpus])
    cores = Bilingual(en=f"{machine}, {hardware.cores} cores", zh=f"{machine}，{hardware.cores} 核")
    values = {
        "config": _format_values(manifest.config),
        "config_sha256": manifest.config_sha256,
        "seeds": _format_values(manifest.seeds),
        "weights": "; ".join(f"{name} sha256 {about.sha256}" for name, about in manifest.weights.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "git": manifest.git,
        "code_sha256": manifest.code_sha256,
        "hardware": cores,
        "threads": manifest.threads,
        "argv": shlex.join(["toushi", *manifest.argv[1:]]),
        "jobs": f"{len(manifest.jobs)} / {manifest.jobs_in_all}",
        "time": Bilingual(en=f"{seconds:.0f} s", zh=f"{seconds:.0f} 秒"),
        "concluded": manifest.concluded and manifest.concluded.finished,
        "tables": "; ".join(f"{name} sha256 {about.sha256}" for name, about in manifest.tables.items()),
        "may_differ": manifest.may_differ,
    }
    return known_facts(values)


def _format_values(values: dict[str, JsonValue]) -> str:
    return ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
