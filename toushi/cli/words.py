"""`toushi words`: a prompt as characters, tokens and words."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from toushi.cli.terminal import table, terminal_width
from toushi.cli.token_alignment import format_alignment
from toushi.probe.base.errors import ToushiError


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
        from toushi.probe.text.alignment import join_words, segment

        tokenizer = tokenizer_of(self.model)
        encoding = tokenizer.encode(self.prompt)
        words = segment(self.prompt)
        print(format_alignment(self.prompt, encoding.tokens, words, terminal_width()))
        rows = [("position", "id", "token", "characters", "word")]
        for token in encoding.tokens:
            of = [w.text for w in words if token.span and w.start < token.span[1] and token.span[0] < w.end]
            span = f"{token.span[0]}–{token.span[1]}" if token.span else ""
            rows.append((str(token.position), str(token.id), token.text, span, " + ".join(of)))
        print(f"\n{table(rows, right=(0, 1))}\n")
        counts = (f"{len(self.prompt)} characters", f"{len(encoding.ids)} tokens of at most {tokenizer.length}")
        print(", ".join([*counts, f"{len(words)} words"]))
        if encoding.lost:
            lost = join_words(encoding.lost)
            print(f"toushi: warning: the prompt is too long; the model does not read: {lost}", file=sys.stderr)


def tokenizer_of(model: str):
    """The tokenizer of a model, without loading the model or torch where it lies in a folder as `save` writes it."""
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
