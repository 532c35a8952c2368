"""`toushi words`, `sites`, `info` and `verify`: what a prompt becomes, what a model has, what a trace holds."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.model_options import Loads
from toushi.cli.terminal import limit_length, table, terminal_width
from toushi.cli.token_alignment import lanes
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.probe.trace.encoder_trace import EncoderTrace
    from toushi.probe.trace.manifest import Lora, Site
    from toushi.probe.trace.picture_trace import Trace

Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True)
class Words:
    ABOUT = """Shows a prompt as characters, tokens and words, side by side.

  toushi words "河边的银行在左边，树在右边"

Tokens are what the model reads; words are what heat maps can be asked for. ×4 marks a character made of four tokens."""

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
    """The prompt."""
    model: str = "mini-unet"
    """Whose tokenizer."""

    def run(self) -> None:
        from toushi.probe.text.alignment import listed, segment

        tokenizer = tokenizer_of(self.model)
        encoding = tokenizer.encode(self.prompt)
        words = segment(self.prompt)
        print(lanes(self.prompt, encoding.tokens, words, terminal_width()))
        rows = [("position", "id", "token", "characters", "word")]
        for token in encoding.tokens:
            of = [w.text for w in words if token.span and w.start < token.span[1] and token.span[0] < w.end]
            span = f"{token.span[0]}–{token.span[1]}" if token.span else ""
            rows.append((str(token.position), str(token.id), token.text, span, " + ".join(of)))
        print(f"\n{table(rows, right=(0, 1))}\n")
        counts = (f"{len(self.prompt)} characters", f"{len(encoding.ids)} tokens of at most {tokenizer.length}")
        print(", ".join([*counts, f"{len(words)} words"]))
        if encoding.lost:
            lost = listed(encoding.lost)
            print(f"toushi: warning: the prompt is too long; the model does not read: {lost}", file=sys.stderr)


@dataclass(frozen=True)
class Sites(Loads):
    ABOUT = """Lists the places in a model where attention can be recorded.

  toushi sites --model mini-unet
  toushi trace "猫" --sites 'unet.up.*'       (names and globs work wherever sites are asked for)"""

    model: str = "mini-unet"
    """A shipped model, a folder with one, or a diffusers pipeline (folder or hub id)."""
    size: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Pixels; grids depend on it. The model's own size if not given."""

    def run(self) -> None:
        from toushi.cli.trace import checked_size
        from toushi.probe.pipelines.generate import generate
        from toushi.probe.pipelines.load import load_model, model_folder

        size, home = checked_size(self.size), model_folder(self.model)
        if home is not None and (home / "model_index.json").is_file():
            print(site_table(of_configs(home, size)))
            return
        from toushi.probe.recording.record import record
        from toushi.probe.trace.open import open_trace

        model = load_model(self.model, self.chosen())
        with tempfile.TemporaryDirectory() as folder:  # one step tells grids and heads, whatever the model is
            with record(model, Path(folder) / "run", sites=["*"], keep="mean", overwrite=True) as recording:
                generate(model, "猫", steps=1, guidance=1.0, size=size)
            sites = open_trace(recording.traces[0]).sites
        print(site_table(sites))


def of_configs(folder: Path, size: tuple[int, int] | None) -> "dict[str, Site]":
    """The sites of a pipeline by its configs alone, as a manifest tells them: its weights may be larger than memory."""
    from toushi.cli.doctor import own_size
    from toushi.probe.pipelines.checkpoint_info import read_pipeline_info
    from toushi.probe.pipelines.generate import check_size
    from toushi.probe.pipelines.registry import family_of
    from toushi.probe.pipelines.size_estimate import downsampling, head_count
    from toushi.probe.trace.manifest import Site

    found = read_pipeline_info(folder)
    if found.pipeline is None:
        lacking = "; ".join(f"{name} {why}" for name, why in found.unknown.items())
        raise ToushiError(f"{folder} cannot be built from its configs: {lacking}; toushi doctor {folder} says more")
    family = family_of(found.pipeline)
    check_size(found.pipeline, size)
    factor, own = family.cell_pixels(found.pipeline), own_size(family, found.pipeline)
    cells = [-(-pixels // factor) for pixels in size or (own, own)]

    def told(name: str, site) -> Site:
        if site.kind == "encoder":
            return Site(kind=site.kind, grid=None, heads=None)
        coarser = downsampling(family, found.pipeline, name)
        rows, columns = (-(-n // coarser) for n in cells)
        return Site(kind=site.kind, grid=(rows, columns), heads=head_count(site.module))

    return {name: told(name, site) for name, site in family.sites(found.pipeline).items()}


@dataclass(frozen=True)
class Info:
    ABOUT = """Tells what is in a trace, or in a folder of traces.

  toushi info runs/cat"""

    folder: Folder
    """The trace."""

    def run(self) -> None:
        from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

        found = traces_in(self.folder)
        if found != [self.folder]:
            print(table([("trace", "steps", "prompt"), *map(folder_row, found)]))
            return
        if is_encoder_trace(self.folder):
            print(of_texts(open_encoder_trace(self.folder)))
            return
        trace = open_trace(self.folder)
        manifest = trace.manifest
        size = sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())
        facts = [
            ("prompt", "(not known)" if trace.prompt is None else trace.prompt or "(empty)"),
            ("negative", manifest.negative_prompt),
            ("words", "  ".join(word.text for word in trace.words()) if "cond" in trace.branches else None),
            ("model", " ".join(filter(None, [manifest.name_of_model, manifest.model and manifest.model.revision]))),
            ("steps", progress(trace)),
            ("size", "x".join(map(str, manifest.size or [])) or None),
            *(
                (name, getattr(manifest, name))
                for name in ("seed", "sampler", "guidance", "device", "dtype", "kernel", "threads")
            ),
            ("real guidance", manifest.true_guidance),
            ("branches", ", ".join(f"{name} ({len(trace.tokens(name))} tokens)" for name in trace.branches)),
            ("kept", trace.keep),
            *(("not recorded", f"{site}: {why}") for site, why in (manifest.not_recorded or {}).items()),
            ("LoRA", ", ".join(lora_line(lora) for lora in manifest.loras or []) or None),
            ("safety checker", manifest.safety),
            ("edits", json.dumps(manifest.edits, ensure_ascii=False) if manifest.edits else None),
            ("versions", ", ".join(f"{k} {v}" for k, v in (manifest.versions or {}).items()) or None),
            ("commit", manifest.git),
            ("on disk", format_bytes(size)),
        ]
        print(table([(name, str(value)) for name, value in facts if value not in (None, "")]))
        print(f"\n{site_table(trace.sites)}")


@dataclass(frozen=True)
class Verify:
    ABOUT = """Checks a trace: format, checksums, sums to 1, completeness.

  toushi verify runs/cat

The exit code is 1 if something is wrong."""

    folder: Folder
    """The trace, or a folder of traces."""

    def run(self) -> int:
        bad = 0
        found = traces_in(self.folder)
        for folder in found:
            try:
                problems, done = verified(folder)
            except ToushiError as error:
                if len(found) == 1:
                    raise
                problems, done = [str(error)], ""  # the others are looked at all the same
            bad += bool(problems)
            for problem in problems or [f"in order, {done}"]:
                print(f"{folder}: {problem}")
        return 1 if bad else 0


def folder_row(folder: Path) -> tuple[str, str, str]:
    """A trace among others: folder, how far it came, prompt or texts."""
    from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

    try:
        if is_encoder_trace(folder):
            texts = open_encoder_trace(folder)
            return str(folder), texts_progress(texts), limit_length(" / ".join(texts.texts))
        trace = open_trace(folder)
    except ToushiError as error:
        return str(folder), "damaged", str(error)
    return str(folder), progress(trace), limit_length(trace.prompt or "(not known)")


def verified(folder: Path) -> tuple[list[str], str]:
    """What is wrong with a trace of either kind, and how far it came."""
    from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

    if is_encoder_trace(folder):
        texts = open_encoder_trace(folder)
        return texts.verify(), texts_progress(texts)
    trace = open_trace(folder)
    return trace.verify(), progress(trace)


def traces_in(folder: Path) -> list[Path]:
    """The folder itself if it is a trace, or holds none; of a collection, or of traces recorded one by one, all of them,
    those whose manifest cannot be read among them."""
    from toushi.probe.trace.open import open_collection
    from toushi.probe.trace.trace_format import FORMAT, MANIFEST, MEMBERS, format_of

    if (folder / MEMBERS).exists():
        return [trace.folder for trace in open_collection(folder)]
    if (folder / MANIFEST).exists():
        return [folder]
    below = sorted(one.parent for one in folder.glob(f"*/{MANIFEST}") if format_of(one.parent) in (FORMAT, None))
    return below or [folder]


def of_texts(trace: "EncoderTrace") -> str:
    """What a trace of kind encoder holds."""
    manifest = trace.manifest
    heads = f" of {manifest.heads} heads" if manifest.heads else ", attention not kept"
    size = sum(path.stat().st_size for path in trace.folder.iterdir() if path.is_file())
    facts = [
        ("encoder", manifest.name_of_model),
        ("texts", texts_progress(trace)),
        ("layers", f"{trace.layers}{heads}, {manifest.width} wide"),
        ("versions", ", ".join(f"{k} {v}" for k, v in (manifest.versions or {}).items()) or None),
        ("commit", manifest.git),
        ("on disk", format_bytes(size)),
    ]
    rows = [("text", "tokens", "")] + [(str(i), str(len(trace.tokens(i))), text) for i, text in enumerate(trace.texts)]
    few = rows if len(rows) <= 21 else [*rows[:20], ("…", "", f"{len(rows) - 20} more")]
    facts = table([(name, str(value)) for name, value in facts if value is not None])
    return f"{facts}\n\n{table(few, right=(0, 1))}"


def lora_line(lora: "Lora") -> str:
    return f"{lora.file or lora.name} x {lora.scale}{'' if lora.on else ' (off)'}"


def texts_progress(trace: "EncoderTrace") -> str:
    return f"{len(trace)} of {trace.manifest.count}" + ("" if trace.complete else ", the run did not finish")


def progress(trace: "Trace") -> str:
    steps = trace.manifest.steps
    wanted = steps.count if steps.recorded is None else len(steps.recorded)
    return f"{len(trace.steps)} of {wanted}" + ("" if trace.complete else ", the run did not finish")


def site_table(sites: "dict[str, Site]") -> str:
    says = {"cross": "image to text", "self": "image to image", "encoder": "text to text"}
    rows = [("site", "attention", "grid", "heads")]
    for name, site in sites.items():
        grid = "x".join(map(str, site.grid or [])) or "–"
        rows.append((name, says[site.kind], grid, str(site.heads or "–")))
    return table(rows, right=(2, 3))


def tokenizer_of(model: str):
    """The tokenizer of a model, without loading the model or torch where it lies in a folder as `save` writes it."""
    import importlib.util

    from toushi.probe.text.bpe import Tokenizer

    models = importlib.util.find_spec("toushi.probe.models")
    homes = [Path(place) / "weights" / model for place in (models.submodule_search_locations or [])] if models else []
    for home in (*homes, Path(model)):
        if (home / "tokenizer.json").is_file():
            return Tokenizer.load(home / "tokenizer.json")
    from toushi.probe.pipelines.load import load, model_folder

    home = model_folder(model)  # None: on the hub, where none of ours is
    ours = home is not None and not (home / "model_index.json").is_file()
    tokenizer = getattr(load(model), "tokenizer", None) if ours else None
    if not isinstance(tokenizer, Tokenizer):
        raise ToushiError(
            f"expected one of our own models, whose tokenizer can be shown by itself, but {model} came; the tokens of "
            f"another encoder are shown by: toushi layers PROMPT --encoder {model}"
        )
    return tokenizer
