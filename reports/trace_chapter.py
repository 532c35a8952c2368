"""The chapter of a trace: the attention of each word, over layers and steps, and where the trace comes from."""

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from toushi.probe.analysis.maps import entropy
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.layers_figure import layers_figure
from toushi.probe.figures.timeline_figure import timeline_figure
from toushi.probe.figures.tokens_figure import tokens_figure
from toushi.probe.figures.words_figure import words_figure, words_to_draw
from toushi.probe.text.alignment import Word, word_labels
from toushi.probe.trace.manifest import Manifest
from toushi.probe.trace.picture_trace import Trace
from toushi.reports import report_messages as messages
from toushi.reports.chapter import LANGUAGES, Chapter, known_facts
from toushi.reports.figure_files import Picture, save_in_both_languages

Draw = Callable[[str], Figure]  # language -> figure


def chapter_of_trace(
    trace: Trace, key: str, out: Path, wanted: Collection[str] = (), words: Sequence[str] = ()
) -> Chapter:
    """The chapter. Its figures, all of them or those that `wanted` names, go to `out/figures/KEY`.

    The figures show these `words`. Without any they show all words, and the layers of the most concentrated one.
    """
    count = trace.manifest.steps.count
    notices = [] if trace.complete else [messages.TRACE_UNFINISHED.format(all=count, done=len(trace.steps))]
    figures: dict[str, tuple[Bilingual, Draw]] = {}
    if not trace.steps:
        notices.append(messages.NO_STEP)
    else:
        recorded = words_to_draw(trace, None, "cond") if "cond" in trace.branches else []
        if not recorded:
            notices.append(messages.NO_WORD)
        figures = figures_by_name(trace, recorded, words)
    pictures: list[Picture] = []
    for name, (caption, draw) in figures.items():
        if wanted and name not in wanted:
            continue
        by_language = {language: draw(language) for language in LANGUAGES}
        pictures.append(save_in_both_languages(name, by_language, caption, trace.folder, key, out, words))
    return Chapter(
        key,
        Bilingual.same(trace.prompt or trace.folder.name),
        notices,
        question=messages.TRACE,
        pictures=pictures,
        all_pictures=tuple(figures),
        command=trace_command(trace),
        facts=trace_facts(trace.manifest),
    )


def figures_by_name(trace: Trace, recorded: Sequence[Word], words: Sequence[str]) -> dict[str, tuple[Bilingual, Draw]]:
    """By name: the caption, and what draws the figure in a language. `recorded` are the words that have maps."""
    figures: dict[str, tuple[Bilingual, Draw]] = {}
    shown = words_to_draw(trace, words, "cond") if words and recorded else recorded
    maps = cache(lambda: [trace.heat_map(word) for word in shown])
    summed = trace.keep == "sum"
    if recorded:
        figures["words"] = (
            messages.WORDS,
            lambda language: words_figure(trace, shown, maps=maps(), columns=4, language=language),
        )
        caption = messages.LAYERS_OF_SUM if summed else messages.LAYERS
        if words:
            asked, why = shown, Bilingual(en="", zh="")
        else:
            evenness = [float(entropy(heat.values)) for heat in maps()]
            asked, why = [recorded[int(np.argmin(np.nan_to_num(evenness, nan=np.inf)))]], messages.NARROWEST
        for word, label in zip(asked, word_labels(asked, trace.words())):
            text = caption.format(word=label)
            name = "layers" if len(asked) == 1 else f"layers-{word.start}-{word.end}"
            figures[name] = (
                Bilingual(en=f"{text.en} {why.en}".strip(), zh=text.zh + why.zh),
                partial(_layers, trace, word),
            )
        if not summed:
            figures["timeline"] = (
                messages.TIMELINE,
                lambda language: timeline_figure(trace, shown, language=language),
            )
    if "cond" in trace.branches:
        figures["tokens"] = (messages.TOKENS, lambda language: tokens_figure(trace, language=language))
    return figures


def _layers(trace: Trace, word: Word, language: str) -> Figure:
    return layers_figure(trace, word, columns=4, language=language)


def trace_command(trace: Trace) -> str:
    """The command that makes and records the picture again; empty where the manifest does not know enough, and for
    what the command cannot do: one picture of a batch, a run that began from an image or used a LoRA."""
    manifest = trace.manifest
    model, size = manifest.name_of_model, manifest.size
    if model is None or manifest.prompt is None or manifest.seed is None or size is None or manifest.guidance is None:
        return ""
    if manifest.strength is not None or manifest.batch not in (None, 1) or manifest.loras:
        return ""
    parts = ["toushi", "trace", manifest.prompt, "--model", model, "--steps", str(manifest.steps.count)]
    parts += ["--seed", str(manifest.seed), "--guidance", f"{manifest.guidance:g}", "--size", "x".join(map(str, size))]
    if manifest.sampler in ("euler", "heun"):  # a pipeline has its own scheduler
        parts += ["--sampler", manifest.sampler]
    if manifest.negative_prompt:
        parts += ["--negative", manifest.negative_prompt]
    if manifest.edits:
        parts += ["--edits", trace.folder.as_posix()]
    if trace.keep != "heads":
        parts += ["--keep", trace.keep]
    return shlex.join([*parts, "--out", f"{trace.folder.as_posix()}-again"])


def trace_facts(manifest: Manifest) -> list[tuple[Bilingual, Bilingual]]:
    """Where the trace comes from: names and values, without those that are not known."""
    weights = manifest.model and manifest.model.weights_sha256
    identity = [manifest.name_of_model, weights and f"sha256 {weights}"]
    values = {
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
        "segmenter": _join(manifest.segmenter),
        "versions": _join(manifest.versions),
        "git": manifest.git,
        "argv": shlex.join(["toushi", *manifest.argv[1:]]) if manifest.argv else None,
    }
    return known_facts(values)


def _join(values: Mapping[str, object] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())
