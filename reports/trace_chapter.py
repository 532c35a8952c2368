"""The chapter of a trace: where each word went, over layers and steps, and where the trace comes from."""

import json
import shlex
from collections.abc import Collection, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from toushi.probe.analysis.maps import entropy
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.layers_figure import layers_figure
from toushi.probe.figures.timeline_figure import timeline_figure
from toushi.probe.figures.tokens_figure import tokens_figure
from toushi.probe.figures.words_figure import chosen, words_figure
from toushi.probe.text.alignment import Word
from toushi.probe.trace.manifest import Manifest
from toushi.probe.trace.picture_trace import Trace
from toushi.reports import report_messages as words
from toushi.reports.chapter import LANGUAGES, Chapter
from toushi.reports.figure_files import Picture, picture
from toushi.reports.report_messages import FACTS


def chapter_of_trace(
    trace: Trace, key: str, out: Path, wanted: Collection[str] = (), asked: Sequence[str] = ()
) -> Chapter:
    """The chapter; figures (those `wanted` by name, or all) go to `out/figures/KEY`.

    `asked` are words whose layers are drawn; the one with the most concentrated map if there is none.
    """
    count = trace.manifest.steps.count
    notices = [] if trace.complete else [words.TRACE_UNFINISHED.format(all=count, done=len(trace.steps))]
    pictures: list[Picture] = []
    found: dict[str, Any] = {}
    if not trace.steps:
        notices.append(words.NO_STEP)
    else:
        told = chosen(trace, None, "cond") if "cond" in trace.branches else []
        if not told:
            notices.append(words.NO_WORD)
        found = figures(trace, told, asked)
        for name, (caption, draw) in found.items():
            if wanted and name not in wanted:
                continue
            place = f"figures/{key}"
            command = ["toushi", "report", trace.folder.as_posix(), "--figures", name]
            command += ["--words", *asked] if asked else []
            command += ["-o", out.as_posix()]
            drawn = {language: draw(language=language) for language in LANGUAGES}
            pictures.append(picture(name, drawn, caption, out, place, shlex.join(command)))
    title = trace.prompt if trace.prompt else trace.folder.name
    return Chapter(
        key,
        Bilingual.same(title),
        notices,
        question=words.TRACE,
        pictures=pictures,
        all_pictures=tuple(found),
        command=command_of(trace),
        facts=facts(trace.manifest),
    )


def figures(trace: Trace, told: Sequence[Word], asked: Sequence[str]) -> dict[str, tuple[Bilingual, Any]]:
    """By name: the caption, and what draws it in a language."""
    found: dict[str, tuple[Bilingual, Any]] = {}
    maps = cache(lambda: [trace.heat_map(word) for word in told])
    if told:
        found["words"] = (
            words.WORDS,
            lambda language: words_figure(trace, told, maps=maps(), columns=4, language=language),
        )
        shown: list[tuple[Word, Bilingual]] = []
        if asked:
            shown = [(word, Bilingual(en="", zh="")) for word in chosen(trace, asked, "cond")]
        else:
            evenness = [float(entropy(heat.values)) for heat in maps()]
            shown = [(told[int(np.argmin(np.nan_to_num(evenness, nan=np.inf)))], words.NARROWEST)]
        for word, why in shown:
            caption = words.LAYERS.format(word=word.text)
            caption = Bilingual(en=f"{caption.en} {why.en}".strip(), zh=caption.zh + why.zh)
            name = "layers" if len(shown) == 1 else f"layers-{word.start}-{word.end}"
            found[name] = (caption, partial(layers_figure, trace, word, columns=4))
        if trace.keep != "sum":
            found["timeline"] = (words.TIMELINE, partial(timeline_figure, trace, list(told)))
    if "cond" in trace.branches:
        found["tokens"] = (words.TOKENS, partial(tokens_figure, trace))
    return found


def command_of(trace: Trace) -> str:
    """What draws and records it again; empty where the manifest does not know enough."""
    manifest = trace.manifest
    model, size = manifest.name_of_model, manifest.size
    if model is None or manifest.prompt is None or manifest.seed is None or size is None:
        return ""
    if manifest.sampler is None or manifest.guidance is None:
        return ""
    parts = ["toushi", "trace", manifest.prompt, "--model", model, "--steps", str(manifest.steps.count)]
    parts += ["--seed", str(manifest.seed), "--guidance", f"{manifest.guidance:g}"]
    parts += ["--sampler", manifest.sampler, "--size", "x".join(map(str, size))]
    if manifest.negative_prompt:
        parts += ["--negative", manifest.negative_prompt]
    if manifest.edits:
        parts += ["--edits", trace.folder.as_posix()]
    if trace.keep != "heads":
        parts += ["--keep", trace.keep]
    return shlex.join([*parts, "--out", f"{trace.folder.as_posix()}-again"])


def facts(manifest: Manifest) -> list[tuple[Bilingual, Bilingual]]:
    weights = manifest.model and manifest.model.weights_sha256
    identity = [manifest.name_of_model, weights and f"sha256 {weights}"]
    found = {
        "prompt": manifest.prompt,
        "negative_prompt": manifest.negative_prompt,
        "model": ", ".join(filter(None, identity)),
        "steps": manifest.steps.count,
        "size": "×".join(map(str, manifest.size or [])),
        **{
            name: getattr(manifest, name)
            for name in ("seed", "guidance", "sampler", "device", "dtype", "kernel", "threads")
        },
        "heat_map": manifest.heat_map and manifest.heat_map.rule,
        "keep": manifest.keep,
        "edits": json.dumps(manifest.edits, ensure_ascii=False) if manifest.edits else None,
        "segmenter": _spoken(manifest.segmenter),
        "versions": _spoken(manifest.versions),
        "git": manifest.git,
        "argv": shlex.join(["toushi", *manifest.argv[1:]]) if manifest.argv else None,
    }
    return [(FACTS[name], Bilingual.same(value)) for name, value in found.items() if value not in (None, "")]


def _spoken(values: dict | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())
