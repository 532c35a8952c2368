"""Concepts: texts outside the prompt, which the image is asked about while it is sampled.

A concept is encoded by itself, with the model's own template. Its map is exp(q k - lse): the queries and the log-sum-exp
are those of the real call, over the keys of the prompt, and k is the concept's key. So it is the attention that the
concept would get if its key stood beside those of the prompt and took nothing away from them. It may be larger than 1.
The model never sees the key: the picture stays the same bit for bit.

The keys are read from one evaluation of the denoiser on the concept's text. In cross-attention keys depend on the text
alone, neither on the image nor on the step. In joint attention they depend on both, so such models are refused.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toushi.hooks.attention import Call
from toushi.hooks.kernels import log_sum_exp, probabilities
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import EncodedPrompt, Model, SchedulerStep
from toushi.probe.pipelines.generate import generate
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.sampling_session import subscribe
from toushi.probe.session.subscriber import Run, Subscriber
from toushi.probe.text.alignment import Token, Word, find_word, segment, token_shares

CELLS = 16  # rows and columns of latent cells of the picture from which keys are read


class ConceptKeys(NamedTuple):
    """The keys of all concepts at each cross-attention site."""

    prompt: EncodedPrompt  # the names of the concepts, one a line, and their tokens
    words: list[Word]  # one for each concept
    keys: Mapping[str, Tensor]  # site -> [1, key head, token, feature]

    def maps(self, call: Call, rows: list[int], mean: bool, dtype: torch.dtype) -> Tensor:
        """exp(q k - lse) of these rows: [row, head, token, cell], with `mean` [row, token, cell]."""
        lse = log_sum_exp(call.inputs) if call.lse is None else call.lse
        inputs = call.inputs.select(rows, slice(None))
        inputs = inputs._replace(key=self.keys[call.site], mask=None, first=None)
        return probabilities(inputs, lse[rows], slice(None), mean, dtype)


class _KeysKnown(Exception):
    """Ends the evaluation that only reads keys."""


class _KeyReader(Subscriber):
    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules = modules
        self.keys: dict[str, Tensor] = {}  # site -> [1, key head, column, feature]
        self.prompt: EncodedPrompt | None = None

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return self.modules

    def on_attention(self, call: Call) -> None:
        evaluation = self.session.evaluation
        if evaluation is None or call.site in self.keys:
            return
        if evaluation.inputs.joint is not None:
            raise ToushiError(
                f"concepts need cross-attention, but {self.session.family.name} has joint attention, where the keys of a "
                "text depend on the image: leave concepts out"
            )
        row = evaluation.rows.index(("cond", 0))
        self.prompt = self.session.prompts["cond"][0]
        self.keys[call.site] = call.inputs.key[row : row + 1].detach().clone()

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        raise _KeysKnown


def read_concepts(model: Model, modules: Mapping[str, nn.Module], concepts: Iterable[str]) -> ConceptKeys:
    """The keys of the concepts at these modules: of "狗" all its tokens, of "银行@河边的银行" those of 银行 in that text.

    Samples one step of each text. Raises ToushiError for an empty concept, a word that its text does not have, and a
    model with joint attention.
    """
    names = list(dict.fromkeys(" ".join(concept.split()) for concept in concepts))
    tokens: list[Token] = []
    words: list[Word] = []
    parts: dict[str, list[Tensor]] = {}
    start = 0
    for name in names:
        word, _, text = name.rpartition("@")
        if not text.strip():
            raise ToushiError(f'a concept is a text, or a word in a text ("银行@河边的银行"); {name!r} came')
        reader = _read_keys(model, modules, text)
        if reader.prompt is None:
            raise ToushiError("concepts need an attention of the image to the text among the recorded sites; add one")
        if reader.prompt.prompt is None:
            raise ToushiError("concepts: which tokens the text columns are is not known here; leave concepts out")
        text = reader.prompt.prompt
        span = find_word(text, segment(text), word) if word else (0, len(text))
        own = [token for token, share in zip(reader.prompt.tokens, token_shares(reader.prompt.tokens, span)) if share]
        own = [token for token in own if token.column is not None and token.span is not None]
        if not own:
            raise ToushiError(f"the concept {name!r} has no token that the denoiser gets; choose another text")
        for token in own:
            assert token.span is not None
            first, last = (max(0, place - span[0]) + start for place in token.span)
            spelled = Token(token.id, token.text, (first, last), token.kind, token.encoders, len(tokens), len(tokens))
            tokens.append(spelled)
        columns = [token.column for token in own]
        for site, key in reader.keys.items():
            parts.setdefault(site, []).append(key[:, :, columns])
        words.append(Word(name, start, start + len(name)))
        start += len(name) + 1
    keys = {site: torch.cat(of_site, 2) for site, of_site in parts.items()}
    return ConceptKeys(EncodedPrompt("\n".join(names), (), tuple(tokens), torch.empty(0)), words, keys)


def _read_keys(model: Model, modules: Mapping[str, nn.Module], text: str) -> _KeyReader:
    reader = _KeyReader(modules)
    side = CELLS * family_of(model).cell_pixels(model)  # keys do not depend on the size
    with subscribe(model, reader), suppress(_KeysKnown):
        generate(model, text, steps=1, size=(side, side))
    return reader
