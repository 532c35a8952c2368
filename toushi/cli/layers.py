"""`toushi layers`: what each layer of a text encoder makes of sentences."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from toushi.cli.output_file import check_figure_file
from toushi.cli.terminal import printable, table, terminal_width
from toushi.cli.token_alignment import format_alignment
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load_options import check_threads
from toushi.probe.trace.output_dir import check_output_dir

if TYPE_CHECKING:
    from toushi.probe.trace.text_encoding import TextEncodings

MAX_SENTENCES = 12


@dataclass(frozen=True)
class Layers:
    ABOUT = """Shows what each layer of a text encoder makes of the words of a sentence.

  toushi layers "我在河边的银行钓鱼"
  toushi layers "我在河边的银行钓鱼" "他去银行存钱了" --out bank.png
  toushi layers "他去银行存钱了" --encoder FOLDER_OR_HUB_ID --layers 1 6 12
  toushi layers "我在河边的银行钓鱼" --save runs/bank     (as a trace, for toushi view and open_encoder_trace)

Layer 0 is the embeddings, layer k the output of the k-th block, which toushi sites names layers.(k-1). The tables
have, for each layer, the cosine similarity of a word to its own embedding and to the words of the other sentences, and
its attention (mean over heads).

In many encoders all words are similar, so compare every cosine with the row "different words".

In Python: encode_layers(encoder, texts), and toushi.probe.analysis.layer_measures for measures over many sentences."""

    sentences: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SENTENCE ...")]
    """One or more; the first is compared with each of the others."""
    encoder: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini-unet"
    """A shipped model, or the folder or hub id of a text encoder of transformers: BERT, XLM-R, CLIP, T5, ..."""
    layers: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K ...")] = ()
    """Layers to show; if not given, as many as fit into the terminal."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also draw a figure: a .png, .pdf or .svg."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Save all states and attention in this folder, as one trace of texts."""
    overwrite: bool = False
    """Replace an existing trace in that folder."""
    threads: int | None = None
    """CPU threads. If not given: 1 for our own encoders, torch's default for others."""

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
        print(describe_encoder(readings))
        for index, reading in enumerate(readings, 1):
            print(
                f"\nsentence {index}\n{format_alignment(reading.text, reading.tokens, reading.words, terminal_width())}"
            )
            if reading.unknown:
                names = "、".join(word.text for word in reading.unknown)
                print(f"toushi: warning: {readings.encoder} has no token for: {names}; it reads <unk>", file=sys.stderr)
        from toushi.probe.analysis.layer_measures import evenly_spaced

        columns = max(4, (terminal_width() - 24) // 6)
        for section in sections(
            readings,
            list(self.layers) or evenly_spaced(every, columns),
            list(self.layers) or evenly_spaced(every[1:], 4),
        ):
            print(f"\n{section}")
        if readings[0].blind:
            layer, why = next(iter(readings[0].blind.items()))
            print(f"toushi: warning: attention is not shown: layer {layer} {why}", file=sys.stderr)
        if self.out is not None:
            from toushi.probe.figures.layer_similarity_figure import layer_similarity_figure
            from toushi.probe.figures.style import save

            save(layer_similarity_figure(readings, self.layers or None), self.out)
            print(f"\n{table([('figure', str(self.out))])}")
        if self.save is not None:
            line = f"{self.save}  (open it with: toushi view {shlex.quote(str(self.save))})"
            print(f"\n{table([('trace', line)])}")

    def _check(self) -> None:
        if not self.sentences:
            raise ToushiError(
                'expected a sentence, for example: toushi layers "我在河边的银行钓鱼" (see toushi layers --help)'
            )
        if len(self.sentences) > MAX_SENTENCES:
            raise ToushiError(
                f"{len(self.sentences)} sentences are too many to show, at most {MAX_SENTENCES}; in Python encode_layers(encoder, texts) "
                "takes any number"
            )
        check_threads(self.threads)
        if self.out is not None:
            check_figure_file(self.out, "--out")
        if self.save is not None:
            check_output_dir(self.save, self.overwrite)


def describe_encoder(readings: "TextEncodings") -> str:
    layers, _, width = readings[0].states.shape
    heads = "" if readings[0].blind else f" of {readings[0].attention.sizes['head']} heads"
    return table([("encoder", f"{readings.encoder}, {layers - 1} layers{heads}, {width} wide")])


def sections(readings: "TextEncodings", layers: Sequence[int], fewer: Sequence[int]) -> list[str]:
    """Tables with titles, as text."""
    from toushi.probe.analysis.layer_measures import cosine, mean_pairwise_cosine

    states = [reading.word_states() for reading in readings]
    names = [state["word"].values.tolist() for state in states]
    heads = [str(number) for number in layers]
    tables = []
    for index, (state, words) in enumerate(zip(states, names), 1):
        rows = [("layer", *heads)]
        chosen, first = state.sel(layer=layers).values, state.sel(layer=0).values
        for place, word in enumerate(words):
            rows.append((word, *map(format_cosine, cosine(chosen[:, place], first[place : place + 1])[:, 0])))
        rows.append(("different words", *map(format_cosine, mean_pairwise_cosine(chosen))))
        tables.append(titled(f"sentence {index}: each word and its own embedding (cosine with layer 0)", rows))
    for index, (other, theirs) in enumerate(zip(states[1:], names[1:]), 2):
        alike = cosine(states[0].sel(layer=layers).values, other.sel(layer=layers).values)
        same = [(i, theirs.index(word)) for i, word in enumerate(names[0]) if word in theirs]
        if same:
            rows = [("layer", *heads)] + [(names[0][i], *map(format_cosine, alike[:, i, j])) for i, j in same]
            different = alike[:, np.array(names[0])[:, None] != np.array(theirs)]
            rows.append(
                ("different words", *map(format_cosine, different.mean(1) if different.size else [np.nan] * len(heads)))
            )
            tables.append(titled(f"the same word in sentences 1 and {index} (cosine)", rows))
        if names[0] and theirs:
            alike = cosine(states[0].sel(layer=fewer).values, other.sel(layer=fewer).values)
            rows = [("sentence 1", *(f"layer {number}" for number in fewer))]
            for i, word in enumerate(names[0]):
                nearest = alike[:, i].argmax(1)
                rows.append((word, *(f"{theirs[j]} {alike[k, i, j]:.2f}" for k, j in enumerate(nearest))))
            tables.append(titled(f"the most similar word of sentence {index} (cosine)", rows))
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
        tables.append(
            titled(f"sentence {index}: the other word that each word attends to most; below, means of all words", rows)
        )
    return tables


def titled(title: str, rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n{table([[printable(cell) for cell in row] for row in rows], right=range(1, len(rows[0])))}"


def format_cosine(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}" if np.isfinite(value) else "–"  # + 0.0: no "-0.00"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
