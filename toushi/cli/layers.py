"""`toushi layers`: what every layer of a text encoder makes of one or a few sentences."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from toushi.cli.terminal import printable, table, terminal_width
from toushi.cli.token_alignment import format_alignment
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require
from toushi.probe.pipelines.load_options import checked_threads

MOST = 12  # sentences
ENDINGS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Layers:
    ABOUT = """Shows what each layer of a text encoder makes of the words of a sentence.

  toushi layers "我在河边的银行钓鱼"
  toushi layers "我在河边的银行钓鱼" "他去银行存钱了" --out bank.png
  toushi layers "他去银行存钱了" --encoder FOLDER_OR_HUB_ID --layers 1 6 12
  toushi layers "我在河边的银行钓鱼" --save runs/bank     (everything, as a trace: toushi view, open_encoder_trace)

Layer 0 is the embeddings, layer k the k-th block. Told for each layer: how alike a word still is to its own
embedding and to the words of the other sentences (cosine), and what it reads (attention, mean of the heads).
In many encoders all words are alike: compare every cosine with the row "different words". In Python:
encode_layers(encoder, texts), and toushi.probe.analysis.layer_measures for measures over many sentences."""

    sentences: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SENTENCE ...")]
    """One or more; the first is compared with each of the others."""
    encoder: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini-unet"
    """A shipped model, or a text encoder of the transformers library, by folder or hub id: BERT, XLM-R, CLIP, T5, ..."""
    layers: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K ...")] = ()
    """Which layers to show; as many as there is room for if not given."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw it as well: a .png, .pdf or .svg."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Keep all states and attention there, as one trace of kind encoder."""
    overwrite: bool = False
    """Replace a trace that is already in that folder."""
    threads: int | None = None
    """CPU threads to compute with. If not given: 1 for our own encoders, as many as torch takes for others."""

    def run(self) -> None:
        self._check()
        from toushi.probe.encoders.encode_layers import encode_layers
        from toushi.probe.encoders.load_encoder import open_encoder
        from toushi.probe.encoders.record_texts import record_texts

        encoder = open_encoder(self.encoder)
        if self.threads is not None:
            encoder = replace(encoder, threads=self.threads)
        every = list(range(len(encoder.layers) + 1))
        if wrong := [number for number in self.layers if number not in every]:
            raise ToushiError(f"there is no layer {wrong[0]}; {encoder.name} has 0 (the embeddings) to {every[-1]}")
        texts = list(self.sentences)
        if self.save is None:
            readings = encode_layers(encoder, texts)
        else:
            readings = record_texts(encoder, texts, self.save, overwrite=self.overwrite)
        print(about(readings))
        for index, reading in enumerate(readings, 1):
            print(
                f"\nsentence {index}\n{format_alignment(reading.text, reading.tokens, reading.words, terminal_width())}"
            )
            if reading.unknown:
                names = "、".join(word.text for word in reading.unknown)
                print(f"toushi: warning: {readings.encoder} does not know: {names}; it reads <unk>", file=sys.stderr)
        room = max(4, (terminal_width() - 24) // 6)
        for section in sections(
            readings, list(self.layers) or few(every, room), list(self.layers) or few(every[1:], 4)
        ):
            print(f"\n{section}")
        if readings[0].blind:
            layer, why = next(iter(readings[0].blind.items()))
            print(f"toushi: warning: no attention is shown: layer {layer} {why}", file=sys.stderr)
        if self.out is not None:
            from toushi.probe.figures.layer_similarity_figure import layer_similarity_figure
            from toushi.probe.figures.style import save

            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                save(layer_similarity_figure(readings, self.layers or None), self.out)
            except OSError as error:
                raise ToushiError(f"cannot write {self.out}: {error.strerror or error}") from None
            print(f"\n{table([('figure', str(self.out))])}")
        if self.save is not None:
            look = f"{self.save}  (look at it with: toushi view {shlex.quote(str(self.save))})"
            print(f"\n{table([('trace', look)])}")

    def _check(self) -> None:
        if not self.sentences:
            raise ToushiError(
                'expected a sentence, for example: toushi layers "我在河边的银行钓鱼" (see toushi layers --help)'
            )
        if len(self.sentences) > MOST:
            raise ToushiError(
                f"{len(self.sentences)} sentences are too many to show, at most {MOST}; in Python encode_layers(encoder, texts) "
                "takes any number"
            )
        checked_threads(self.threads)
        if self.out is not None and self.out.suffix not in ENDINGS:
            raise ToushiError(f"--out must end in {', '.join(ENDINGS)}, but {str(self.out)!r} came")
        if self.out is not None:
            require("matplotlib")


def about(readings) -> str:
    layers, _, width = readings[0].states.shape
    heads = "" if readings[0].blind else f" of {readings[0].attention.sizes['head']} heads"
    return table([("encoder", f"{readings.encoder}, {layers - 1} layers{heads}, {width} wide")])


def sections(readings, layers: Sequence[int], fewer: Sequence[int]) -> list[str]:
    """Titled tables, as text."""
    from toushi.probe.analysis.layer_measures import cosine, mean_pairwise_cosine

    states = [reading.word_states() for reading in readings]
    names = [state["word"].values.tolist() for state in states]
    heads = [str(number) for number in layers]
    told = []
    for index, (state, words) in enumerate(zip(states, names), 1):
        rows = [("layer", *heads)]
        chosen, first = state.sel(layer=layers).values, state.sel(layer=0).values
        for place, word in enumerate(words):
            rows.append((word, *map(number_of, cosine(chosen[:, place], first[place : place + 1])[:, 0])))
        rows.append(("different words", *map(number_of, mean_pairwise_cosine(chosen))))
        told.append(titled(f"sentence {index}: each word beside its own embedding (cosine with layer 0)", rows))
    for index, (other, theirs) in enumerate(zip(states[1:], names[1:]), 2):
        alike = cosine(states[0].sel(layer=layers).values, other.sel(layer=layers).values)
        same = [(i, theirs.index(word)) for i, word in enumerate(names[0]) if word in theirs]
        if same:
            rows = [("layer", *heads)] + [(names[0][i], *map(number_of, alike[:, i, j])) for i, j in same]
            different = alike[:, np.array(names[0])[:, None] != np.array(theirs)]
            rows.append(
                ("different words", *map(number_of, different.mean(1) if different.size else [np.nan] * len(heads)))
            )
            told.append(titled(f"the same word in sentences 1 and {index} (cosine)", rows))
        if names[0] and theirs:
            alike = cosine(states[0].sel(layer=fewer).values, other.sel(layer=fewer).values)
            rows = [("sentence 1", *(f"layer {number}" for number in fewer))]
            for i, word in enumerate(names[0]):
                nearest = alike[:, i].argmax(1)
                rows.append((word, *(f"{theirs[j]} {alike[k, i, j]:.2f}" for k, j in enumerate(nearest))))
            told.append(titled(f"the word of sentence {index} that is most alike (cosine)", rows))
    fewer = [number for number in fewer if number]
    for index, (reading, words) in enumerate(zip(readings, names), 1):
        if reading.blind or not words or not fewer:
            continue
        read = reading.word_attention().mean("head").sel(layer=fewer).values
        rows = [("", *(f"layer {number}" for number in fewer))]
        for i, word in enumerate(words):
            others = [j for j in range(len(words)) if j != i]
            best = [max(others, key=lambda j, part=part: part[i, j], default=i) for part in read]
            rows.append((word, *(f"{words[j]} {percent(part[i, j])}" for part, j in zip(read, best))))
        for name, column in (("(itself)", None), ("(other text)", -2), ("(special tokens)", -1)):
            means = [part[:, column].mean() if column else np.diag(part[:, : len(words)]).mean() for part in read]
            rows.append((name, *map(percent, means)))
        told.append(
            titled(f"sentence {index}: the other word that each word reads most; below, means of all words", rows)
        )
    return told


def titled(title: str, rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n{table([[printable(cell) for cell in row] for row in rows], right=range(1, len(rows[0])))}"


def few(numbers: Sequence[int], count: int) -> list[int]:
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [numbers[place] for place in places]


def number_of(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}" if np.isfinite(value) else "–"  # + 0.0: no "-0.00"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
