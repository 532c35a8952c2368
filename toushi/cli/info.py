"""`toushi info`: describes a trace, or lists a folder of traces."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toushi.cli.site_table import site_table
from toushi.cli.terminal import limit_length, table
from toushi.cli.trace_listing import Folder, find_traces, step_progress, text_progress
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.probe.trace.encoder_trace import EncoderTrace
    from toushi.probe.trace.manifest import Lora, Manifest


@dataclass(frozen=True)
class Info:
    ABOUT = """Describes a trace, or lists the traces of a folder.

  toushi info runs/cat"""

    folder: Folder
    """The trace, or a folder of traces."""

    def run(self) -> None:
        from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

        found = find_traces(self.folder)
        if found != [self.folder]:
            print(table([("trace", "steps", "prompt"), *map(folder_row, found)]))
            return
        if is_encoder_trace(self.folder):
            print(describe_texts(open_encoder_trace(self.folder)))
            return
        trace = open_trace(self.folder)
        manifest = trace.manifest
        size = sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())
        facts = [
            ("prompt", prompt_line(trace.prompt)),
            ("negative", manifest.negative_prompt),
            ("words", "  ".join(word.text for word in trace.words()) if "cond" in trace.branches else None),
            ("model", " ".join(filter(None, [manifest.name_of_model, manifest.model and manifest.model.revision]))),
            ("steps", step_progress(trace)),
            ("size", "x".join(map(str, manifest.size or [])) or None),
            *(
                (name, getattr(manifest, name))
                for name in ("seed", "sampler", "guidance", "device", "dtype", "autocast", "kernel", "threads")
            ),
            ("", "(the generator was used before: generator_state)" if manifest.generator_state else None),
            ("real guidance", manifest.true_guidance),
            ("strength", manifest.strength),
            (
                "picture",
                f"{(manifest.batch_index or 0) + 1} of {batch}" if (batch := manifest.batch or 1) > 1 else None,
            ),
            ("arguments", argument_line(manifest.arguments or {})),
            *component_rows(manifest),
            ("branches", ", ".join(f"{name} ({len(trace.tokens(name))} tokens)" for name in trace.branches)),
            ("kept", trace.keep),
            ("not computed", f"{len(skipped)} sites at some steps" if (skipped := manifest.not_computed) else None),
            *(("not recorded", f"{site}: {why}") for site, why in (manifest.not_recorded or {}).items()),
            ("LoRA", ", ".join(lora_line(lora) for lora in manifest.loras or []) or None),
            ("safety checker", manifest.safety),
            ("parent", manifest.parent and manifest.parent.name),
            ("edits", json.dumps(manifest.edits, ensure_ascii=False) if manifest.edits else None),
            ("", "(maps at an edited site show the attention before the edit)" if manifest.edits else None),
            ("versions", ", ".join(f"{k} {v}" for k, v in (manifest.versions or {}).items()) or None),
            ("commit", manifest.git),
            ("on disk", format_bytes(size)),
        ]
        print(table([(name, str(value)) for name, value in facts if value not in (None, "")]))
        print(f"\n{site_table(trace.sites)}")


def folder_row(folder: Path) -> tuple[str, str, str]:
    """A row for a list of traces: folder, finished steps or texts, prompt or texts."""
    from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

    try:
        if is_encoder_trace(folder):
            texts = open_encoder_trace(folder)
            return str(folder), text_progress(texts), limit_length(" / ".join(texts.texts))
        trace = open_trace(folder)
    except ToushiError as error:
        return str(folder), "damaged", str(error)
    return str(folder), step_progress(trace), limit_length(prompt_line(trace.prompt))


def describe_texts(trace: "EncoderTrace") -> str:
    """The description of a trace of texts."""
    manifest = trace.manifest
    heads = f" of {manifest.heads} heads" if manifest.heads else ", attention not kept"
    size = sum(path.stat().st_size for path in trace.folder.iterdir() if path.is_file())
    facts = [
        ("encoder", manifest.name_of_model),
        ("texts", text_progress(trace)),
        ("layers", f"{trace.layers}{heads}, {manifest.width} wide"),
        ("versions", ", ".join(f"{k} {v}" for k, v in (manifest.versions or {}).items()) or None),
        ("commit", manifest.git),
        ("on disk", format_bytes(size)),
    ]
    rows = [("text", "tokens", "")] + [(str(i), str(len(trace.tokens(i))), text) for i, text in enumerate(trace.texts)]
    shown = rows if len(rows) <= 21 else [*rows[:20], ("…", "", f"{len(rows) - 20} more")]
    facts = table([(name, str(value)) for name, value in facts if value is not None])
    return f"{facts}\n\n{table(shown, right=(0, 1))}"


def prompt_line(prompt: str | None) -> str:
    return "(not known)" if prompt is None else prompt or "(empty)"


def lora_line(lora: "Lora") -> str:
    return f"{lora.file or lora.name} x {lora.scale}{' (fused)' if lora.fused else '' if lora.on else ' (off)'}"


def argument_line(arguments: Mapping[str, object]) -> str:
    """The arguments of the sampling call, each in a few characters. Prompts and seed have rows of their own."""
    others = ("prompt", "negative_prompt", "negative", "generator", "seed", "callback", "callback_on_step_end")
    names = [name for name in arguments if name not in others]
    return ", ".join(f"{name}={limit_length(brief_value(arguments[name]), 60)}" for name in names)


def brief_value(value: object) -> str:
    """A value of the manifest as text. Of a tensor or a picture the type and the first characters of the checksum."""
    if isinstance(value, dict) and "type" in value:
        return " ".join(
            str(value[key])[:most] for key, most in (("type", 40), ("name", 40), ("sha256", 12)) if key in value
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def component_rows(manifest: "Manifest") -> list[tuple[str, str]]:
    """A row for each module of the model, and one for the scheduler: class and what it computes with."""
    rows = []
    for name, part in (manifest.components or {}).items():
        sample = part.weights_sample_sha256
        facts = [part.type, part.dtype, sample and f"weights {sample[:12]}", "compiled" if part.compiled else None]
        if part.settings is None and name == "scheduler":
            config = {
                key: value for key, value in (part.config or {}).items() if value is not None and value is not False
            }
            facts += [f"{key} {brief_value(value)}" for key, value in config.items()]
        if part.settings is not None or name == "scheduler":
            rows.append((name, ", ".join(filter(None, facts))))
    return rows
