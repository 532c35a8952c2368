"""`toushi trace`: draws a prompt and records its attention."""

import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from toushi.cli.edits_file import apply_edits, read_edits
from toushi.cli.figure_process import figure_process
from toushi.cli.model_options import Loads, checked_device
from toushi.cli.output_file import check_can_create_in
from toushi.cli.terminal import progress
from toushi.cli.trace_summary import summarize_trace
from toushi.probe.base.byte_sizes import parse_bytes
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require
from toushi.probe.base.step_slice import parse_slice
from toushi.probe.pipelines.load_options import MAX_THREADS, LoadOptions
from toushi.probe.trace.image_file import save_picture
from toushi.probe.trace.output_dir import check_output_dir, prepare_output_dir

if TYPE_CHECKING:
    from PIL.Image import Image

    from toushi.probe.pipelines.family import Model

Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD ...")]
Globs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="GLOB ...")]


@dataclass(frozen=True)
class Trace(Loads):
    ABOUT = """Generates a picture and records which words each region of the picture attended to.

  toushi trace "左边是猫，右边是月亮，夜晚" --steps 20 --seed 0 --out runs/cat
  toushi trace "a red cat" --negative "blue" --guidance 4 --sampler heun --size 64x96
  toushi trace --prompts prompts.txt --out runs/many     (one prompt a line, one trace each)
  toushi trace "河边的银行" --words 银行 --keep mean       (a small trace of one word)
  toushi trace "河边的银行" --words 银行 --record-steps 5:11 --branches cond    (and of six steps)
  toushi trace "左边是猫，右边是月亮" --edits edits.json   (what if nothing attends to 猫?)
  toushi trace "左边是猫" --image cat.png --at 0.5          (a picture that you have, noised half-way)
  toushi trace "左边是猫" --image cat.png --invert          (the run that draws this picture)
  toushi trace --resume runs/cat                          (finishes an interrupted run)
  toushi trace "a cat" --model FOLDER --dtype bf16 --offload group    (a model larger than the GPU)
  toushi trace "a cat" --model FOLDER --lora style.safetensors:0.8    (`toushi doctor FOLDER` shows what fits)

The folder gets the trace, image.png, and words.png: the picture, then a heat map for each
word, all on one scale. `toushi view FOLDER` opens it in the browser, open_trace(FOLDER) reads
it in Python.

The command prints a table of the words. share: the part of all attention that the word gets. centre: the centre of
mass of its map, where that is above its mean. peak: the cell with the largest value. Both are fractions of the
picture's sides, y before x; 0, 0 is the top left corner.

For a whole image-to-image run, record the pipeline in Python: with record(pipeline, FOLDER)."""

    prompt: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PROMPT")] = None
    """The prompt, in Chinese or English. "" gives the unconditional picture."""
    model: str = "mini-unet"
    """A shipped model, a folder with one, or a diffusers pipeline (folder or hub id)."""
    steps: int | None = None
    """Number of sampling steps; if not given, the model's default: 20 for mini-unet."""
    seed: int = 0
    """The same seed gives the same picture."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the trace; runs/PROMPT-SEED if not given."""
    negative: str = ""
    """Negative prompt. Used only when guidance is on."""
    guidance: float | None = None
    """Guidance scale; if not given, the model's default. mini-unet: 3, and 1 turns guidance off, which is twice as
    fast. Our own Z-Image: 0, which is off."""
    sampler: Literal["euler", "heun"] | None = None
    """For mini-unet and its twins; euler if not given. heun evaluates the model twice in a step, and the maps are those
    of the first evaluation. Pipelines of diffusers have their own scheduler."""
    size: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Pixels, multiples of 16: 64, or height x width such as 64x96; if not given, the model's default."""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A text file (UTF-8) with one prompt a line, instead of PROMPT. Empty lines are skipped."""
    keep: Literal["heads", "mean", "sum"] | None = None
    """heads: every head; mean: the mean over heads at each step; sum: that mean, summed over all steps.
    If not given: heads if they fit the budget, else mean."""
    sites: Globs = ()
    """Record only these sites (globs such as 'unet.*.cross_attention'). Image self-attention is large, and is
    recorded only if a glob matches it: 'unet.*' does."""
    words: Words = ()
    """Record only these words."""
    record_steps: Annotated[str | None, tyro.conf.arg(metavar="N|FROM:TO")] = None
    """Record only this step, or the steps of this slice: 5:11 means 5 to 10. Steps count from 0."""
    branches: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Record only these branches: cond (the prompt), uncond (the negative prompt). If not given, all."""
    concepts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")] = ()
    """Texts that are not in the prompt, such as dog, or 银行@河边的银行 for a word in another text. The trace gets maps of
    the attention that they would get, in the branch "concepts". The picture stays the same. For models with
    cross-attention."""
    pads: bool = False
    """Keep each padding column, not only their sum."""
    budget: str | None = None
    """The largest size of the maps on disk, such as 20GB. If not given: 8GB. A larger run is refused."""
    edits: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Edits of attention and states: a JSON list such as
    [{"site": "unet.*.cross_attention", "kind": "zero", "word": "猫"}],
    or the folder of a trace, whose edits are applied again."""
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A picture that you have, instead of one that is drawn. It is noised, the model evaluates it once with PROMPT, and
    FOLDER/expected.png is what the model expects. Its sides must be sizes that the model draws."""
    at: float | None = None
    """With --image: how much noise, above 0 (the picture) to 1 (noise only). 0.5 if not given."""
    invert: bool = False
    """With --image: find the noise from which the model draws the picture, and record that run, without guidance.
    For mini-unet and its twins."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Finish the interrupted run in this folder. The result is the same as without the interruption.
    For mini-unet and its twins. All other options come from the trace."""
    overwrite: bool = False
    """Replace an existing trace in the folder."""
    no_record: bool = False
    """Generate the picture without recording; writes image.png only."""

    def run(self) -> None:
        start = time.perf_counter()
        if not self.no_record:
            require("matplotlib")  # for words.png, which is drawn last
        if self.resume is not None:
            return self.resume_run(self.resume, start)
        prompts, size, loading = self.checked_prompts(), checked_size(self.size), self.checked_loading()
        self.check_numbers()
        self.check_sampler()
        checked_steps(self.record_steps)
        if self.budget is not None:
            parse_bytes(self.budget, "--budget")
        self.check_no_record()
        self.check_image()
        folder = self.out or default_folder(prompts, self.prompts, self.seed)
        check_folder(folder, self.overwrite)
        self.check_words(prompts)
        with nullcontext() if self.no_record else figure_process() as figures:
            self.run_checked(prompts, size, loading, folder, figures, start)

    def run_checked(
        self,
        prompts: list[str],
        size: tuple[int, int] | None,
        loading: LoadOptions,
        folder: Path,
        figures: Executor | None,
        start: float,
    ) -> None:
        """`figures` draws words.png; without it nothing is recorded."""
        from toushi.probe.pipelines.generate import check_arguments
        from toushi.probe.pipelines.load import load_model

        edits = read_edits(self.edits)
        model = load_model(self.model, loading)
        loaded = time.perf_counter()
        if self.image is None:
            check_arguments(model, self.negative, self.guidance, self.sampler, size)
        else:
            from toushi.probe.trace_picture import image_pipeline

            model = image_pipeline(model)
        run = self.draw if figures is None else self.record if self.image is None else self.trace_image
        with apply_edits(model, edits):
            paths = run(model, prompts, size, folder)
        sampled = time.perf_counter()
        if figures is None:
            print("\n".join(f"picture   {file}" for file in paths))
        else:
            for report in figures.map(summarize_trace, paths, [self.words or None] * len(paths)):
                print(report)
        ended = time.perf_counter()
        print(f"time      sampling {sampled - loaded:.1f} s, total {ended - start:.1f} s")

    # --- the run

    def resume_run(self, folder: Path, start: float) -> None:
        """Finishes an interrupted run."""
        if names := self.options_beside_resume():
            raise ToushiError(f"--resume reads every option except --model from the trace; remove {', '.join(names)}")
        from toushi.probe.trace.open import open_trace

        trace = open_trace(folder)
        dtype = str(trace.manifest.dtype)
        import torch

        from toushi.probe.pipelines.load import load
        from toushi.probe.resume import check_family, check_resumable, resume

        check_family(trace)
        threads = trace.manifest.threads
        options: dict[str, Any] = (
            {"threads": threads} if isinstance(threads, int) and 1 <= threads <= MAX_THREADS else {}
        )
        device = checked_device(trace.manifest.device)
        model = load(self.model, device, getattr(torch, dtype, torch.float32), **options)
        check_resumable(model, trace)
        count = trace.manifest.steps.count
        left = count - (trace.steps[-1] + 1 if trace.steps else 0)
        with progress(left, 0, 1) as tick:
            resume(model, folder, tick)
        print(summarize_trace(folder))
        print(f"time      {left} of {count} steps, total {time.perf_counter() - start:.1f} s")

    def options_beside_resume(self) -> list[str]:
        """The names of the options that were given, without --resume and --model."""
        default = Trace()
        pairs = [
            (name, self, default) for name in self.__dataclass_fields__ if name not in ("loading", "resume", "model")
        ]
        pairs += [(name, self.loading, default.loading) for name in LoadOptions.__dataclass_fields__]
        names = [name for name, ours, theirs in pairs if getattr(ours, name) != getattr(theirs, name)]
        return ["PROMPT" if name == "prompt" else f"--{name.replace('_', '-')}" for name in names]

    def draw(self, model: "Model", prompts: list[str], size: tuple[int, int] | None, folder: Path) -> list[Path]:
        """The files of the pictures, which are drawn without recording."""
        from toushi.probe.pipelines.generate import default_steps

        prepare_output_dir(folder, self.overwrite)
        files = []
        for index, prompt in enumerate(prompts):
            with progress(self.steps or default_steps(model), index, len(prompts)) as tick:
                picture = self.sample(model, prompt, size, tick)
            home = folder if len(prompts) == 1 else folder / f"{index:03d}"
            home.mkdir(parents=True, exist_ok=True)
            save_picture(picture, home / "image.png")
            files.append(home / "image.png")
        return files

    def record(self, model: "Model", prompts: list[str], size: tuple[int, int] | None, folder: Path) -> list[Path]:
        """The folders of the traces that it records."""
        from toushi.probe.pipelines.generate import default_steps
        from toushi.probe.recording.record import record

        with record(model, folder, **self.recording_options()) as recording:
            for index, prompt in enumerate(prompts):
                with progress(self.steps or default_steps(model), index, len(prompts)) as tick:
                    self.sample(model, prompt, size, tick)
        return list(recording.traces)

    def recording_options(self) -> dict[str, Any]:
        """The options of `record`."""
        choice: dict[str, Any] = {"keep": self.keep, "words": list(self.words) or None}
        choice |= {"sites": list(self.sites) or None, "overwrite": self.overwrite, "concepts": self.concepts}
        choice |= {"steps": checked_steps(self.record_steps), "branches": self.branches or None, "pads": self.pads}
        return choice | ({} if self.budget is None else {"budget": parse_bytes(self.budget, "--budget")})

    def trace_image(self, model: "Model", prompts: list[str], size: object, folder: Path) -> list[Path]:
        """The folder of the trace of a picture that exists."""
        from toushi.probe.trace_picture import SOLVER_STEPS, trace_inversion, trace_picture

        assert self.image is not None
        image, prompt = self.image, prompts[0]
        options = self.recording_options()
        if self.invert:
            count = self.steps or SOLVER_STEPS
            _, inversion = trace_inversion(model, folder, prompt, image, solver_steps=count, **options)
            quality = f"PSNR {inversion.psnr:.1f} dB; {inversion.vae_psnr:.1f} dB by the VAE alone"
            print(f"inversion {image.name} to noise and back: {quality}\n")
        else:
            trace_picture(model, folder, prompt, image, 0.5 if self.at is None else self.at, seed=self.seed, **options)
            print(f"expected  {folder / 'expected.png'}: what the model expects of {image.name} at this noise\n")
        return [folder]

    def sample(self, model: "Model", prompt: str, size: tuple[int, int] | None, tick: Callable[..., object]) -> "Image":
        from toushi.probe.pipelines.generate import generate

        how = {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler, "seed": self.seed}
        return generate(model, prompt, self.negative, size=size, callback=tick, **how)

    # --- checks that need no model, so that a mistake costs no time

    def checked_prompts(self) -> list[str]:
        from toushi.probe.text.alignment import validate_prompt

        if self.prompts is None:
            if self.prompt is None:
                raise ToushiError('there is no prompt; use toushi trace "左边是猫，右边是月亮" (or use --prompts FILE)')
            if not self.prompt.strip():
                print("toushi: the prompt is empty, so the picture is unconditional", file=sys.stderr)
                return [""]
            return [validate_prompt(self.prompt)]
        if self.prompt is not None:
            raise ToushiError(
                f"expected either a prompt or --prompts, but both came: {self.prompt!r} and {self.prompts}"
            )
        try:
            lines = self.prompts.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise ToushiError(f"cannot read the prompts in {self.prompts}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ToushiError(f"{self.prompts} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ToushiError(f"{self.prompts} holds no prompt; write one prompt a line")
        return found

    def check_numbers(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ToushiError(f"--steps must be 1 or more, but {self.steps} came; 20 is a good choice")
        if not 0 <= self.seed < 2**63:
            raise ToushiError(f"--seed must be a whole number from 0 to 2^63 - 1, but {self.seed} came")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ToushiError(
                f"--guidance must be a number, but {self.guidance} came; 3 is a good choice for mini-unet"
            )

    def check_sampler(self) -> None:
        """Refuses --sampler for a pipeline before it is loaded, which takes minutes."""
        if self.sampler is None:
            return
        from toushi.probe.pipelines.load import model_folder

        home = model_folder(self.model)
        if home is None or (home / "model_index.json").is_file():
            raise ToushiError(
                f"--sampler is for mini-unet; the pipeline {self.model} has its own scheduler: remove --sampler"
            )

    def check_no_record(self) -> None:
        default, names = Trace(), ("keep", "sites", "words", "record_steps", "branches", "concepts", "pads", "budget")
        options = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != getattr(default, name)]
        if self.no_record and options:
            raise ToushiError(f"--no-record keeps no map; remove {', '.join(options)}")

    def check_image(self) -> None:
        """Checks the picture before the model is loaded, and refuses options that do nothing with it, or without it."""
        if self.image is None:
            if self.at is not None or self.invert:
                raise ToushiError("--at and --invert are of a picture: name it with --image cat.png")
            return
        if self.at is not None and not 0 < self.at <= 1:
            raise ToushiError(f"--at must be above 0 (the picture) and at most 1 (noise), but {self.at} came")
        names = ["prompts", "guidance", "negative", "sampler", "size", "no_record"]
        names += ["at", "seed"] if self.invert else ["steps", "record_steps"]
        default = Trace()
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != getattr(default, name)]
        if given:
            raise ToushiError(f"--image {'with --invert ' * self.invert}takes no {', '.join(given)}: leave it out")
        from toushi.probe.trace_picture import read_picture

        read_picture(self.image)

    def check_words(self, prompts: list[str]) -> None:
        if not self.words:
            return
        from toushi.probe.text.alignment import find_word, segment

        for prompt in prompts:
            words = segment(prompt)
            for word in self.words:
                find_word(prompt, words, word)


def checked_steps(text: str | None) -> int | slice | None:
    """The step or slice of "7" or "5:11"; None for None."""
    if text is None:
        return None
    try:
        return parse_slice(text) if ":" in text else int(text)
    except ValueError:
        raise ToushiError(f"--record-steps must be a step or a slice, 7 or 5:11, but {text!r} came") from None


def checked_size(size: str | None) -> tuple[int, int] | None:
    """(height, width) of "64" or "64x96"; None for None."""
    if size is None:
        return None
    parts = size.lower().replace("×", "x").split("x")
    try:
        height, width = (int(part) for part in (parts if len(parts) == 2 else parts * 2))
    except ValueError:
        raise ToushiError(f"--size must be like 64 or 64x96 (height x width), but {size!r} came") from None
    if min(height, width) < 16 or height % 16 or width % 16:
        near = "x".join(str(min(8192, max(16, round(n / 16) * 16))) for n in (height, width))
        raise ToushiError(f"--size must be multiples of 16, at least 16, but {size} came; the nearest is {near}")
    if max(height, width) > 8192:
        raise ToushiError(f"--size may be 8192 pixels a side at most, but {size} came")
    return height, width


def default_folder(prompts: list[str], file: Path | None, seed: int) -> Path:
    name = file.stem if file else "".join(c for c in prompts[0] if c.isalnum() or c == " ").strip().replace(" ", "-")
    return Path("runs") / f"{name[:24] or 'empty'}-{seed}"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raises ToushiError, before the model is loaded, if the trace cannot be written there. Creates nothing."""
    check_output_dir(folder, overwrite)
    check_can_create_in(folder, "--out")
