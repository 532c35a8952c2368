"""`toushi words`: shows a prompt as characters, tokens and words."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.terminal import table, terminal_width
from toushi.cli.token_alignment import format_alignment
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.probe.text.bpe import Tokenizer


@dataclass(frozen=True)
class Words:
    ABOUT = """Shows a prompt as characters, tokens and words, side by side.

  toushi words "河边的银行在左边，树在右边"

The model reads tokens; heat maps exist for words. ×4 marks a character that is made of four tokens."""

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
    """The prompt."""
    model: str = "mini-unet"
    """The model whose tokenizer is used."""

    def run(self) -> None:
        from toushi.probe.text.alignment import join_words, segment

        tokenizer = tokenizer_of(self.model)
        encoding = tokenizer.encode(self.prompt)
        words = segment(self.prompt)
        print(format_alignment(self.prompt, encoding.tokens, words, terminal_width()))
        rows = [("position", "id", "token", "characters", "word")]
        for token in encoding.tokens:
            inside = [w.text for w in words if token.span and w.start < token.span[1] and token.span[0] < w.end]
            span = f"{token.span[0]}–{token.span[1]}" if token.span else ""
            rows.append((str(token.position), str(token.id), token.text, span, " + ".join(inside)))
        print(f"\n{table(rows, right=(0, 1))}\n")
        counts = (f"{len(self.prompt)} characters", f"{len(encoding.ids)} tokens of at most {tokenizer.length}")
        print(", ".join([*counts, f"{len(words)} words"]))
        if encoding.lost:
            lost = join_words(encoding.lost)
            print(f"toushi: warning: the prompt is too long; the model does not read: {lost}", file=sys.stderr)


def tokenizer_of(model: str) -> "Tokenizer":
    """The tokenizer of one of our models. Needs no torch where the folder has a tokenizer.json."""
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
            f"expected one of our own models, because only their tokenizer works alone, but {model} came; for the tokens "
            f"of another encoder use: toushi layers PROMPT --encoder {model}"
        )
    return tokenizer
