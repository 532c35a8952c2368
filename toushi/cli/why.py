"""`toushi why`: why a word of the prompt seems to be ignored."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.compare import describe_objects
from toushi.cli.language import language_of
from toushi.cli.terminal import progress, table
from toushi.probe.base.bilingual_text import Language

if TYPE_CHECKING:
    from toushi.probe.trace.comparison import Comparison
    from toushi.probe.trace.picture_trace import Trace
    from toushi.probe.trace.word_diagnosis import WordDiagnosis


@dataclass(frozen=True)
class Why:
    ABOUT = """Says why a word was ignored, and what to try next.

  toushi why runs/cat 猫
  toushi why runs/cat 猫#2 --language zh
  toushi why runs/cat 猫 --test          (one more run: what changes without the word?)

The command looks for these reasons in the trace:

  the word was cut from the prompt, or the vocabulary lacks it
  special tokens and pads take most of the attention
  the word gets little attention, compared with words of its class (nouns with nouns)
  its map does not differ from the maps of the other words

It also says at which step and layer the word gets most attention.

--test samples the same prompt without the word, as toushi edit --without does, and keeps no file.
In Python: diagnose_word(trace, "猫")."""

    trace: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The trace."""
    word: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WORD")]
    """The word, as it stands in the prompt: 猫, or 猫#2 for the second 猫."""
    test: bool = False
    """Also sample the picture without the word."""
    model: str | None = None
    """Of --test: the model, or its folder. If not given, the one that the trace names."""
    language: Language | None = None
    """Language of the output. If not given, that of the system."""

    def run(self) -> None:
        from toushi.probe.trace.diagnosis_rows import diagnosis_rows
        from toushi.probe.trace.open import open_trace
        from toushi.probe.trace.word_diagnosis import diagnose_word

        trace, language = open_trace(self.trace), language_of(self.language)
        diagnosis = diagnose_word(trace, self.word)
        comparison, changes = self.sample_without(trace, diagnosis) if self.test else (None, "")
        print(table(diagnosis_rows(diagnosis, str(self.trace), language, comparison)))
        if changes:
            print(f"\n{changes}")

    def sample_without(self, trace: "Trace", diagnosis: "WordDiagnosis") -> "tuple[Comparison, str]":
        """The comparison with a run without the word, and what the recogniser sees."""
        from toushi.probe.edit_run import edit_run

        with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
            bar = cache(lambda: stack.enter_context(progress(trace.manifest.steps.count, 0, 1)))
            comparison = edit_run(
                trace,
                Path(home) / "without",
                without=[diagnosis.span],
                model=self.model,
                callback=lambda *_: bar()(),
            )
            return comparison, describe_objects(comparison.a, comparison.b)
