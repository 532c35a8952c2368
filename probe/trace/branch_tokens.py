"""Of a manifest: the tokens and words of a branch, and the columns of its maps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toushi.probe.text import alignment
from toushi.probe.trace.strict_model import Offset, SpanPair, StrictModel, Texts, mismatch
from toushi.probe.trace.trace_format import PADS, SUMS

Column = Annotated[int, Field(ge=0, le=10**7)]
Columns = Annotated[list[Column], Field(fail_fast=True)]


class TokenEntry(StrictModel):
    id: Annotated[int, Field(ge=0, le=2**40)] | None = Field(None, description="In the vocabulary of its encoder.")
    text: str = Field(description="The characters of the span, never bytes.")
    span: SpanPair | None = Field(
        None, description="Characters [start, end] of the prompt; null for what the prompt does not contain."
    )
    kind: Literal["text", "unknown", "template", "special", "pad", "image"] = Field(
        description="unknown: text that the vocabulary lacks. image: a part of a source picture. Both from version 2."
    )
    encoders: Texts = Field(description="The text encoders that read this token.")
    position: Column = Field(description="In the sequence of its encoder.")
    column: Column | None = Field(
        None, description="In the text keys of the denoiser; null where the denoiser never gets it."
    )

    def token(self) -> alignment.Token:
        return alignment.Token(
            self.id, self.text, self.span, self.kind, tuple(self.encoders), self.position, self.column
        )


class WordEntry(StrictModel):
    text: str
    start: Offset = Field(description="The first character, in the prompt of the branch.")
    end: Offset = Field(description="One past the last character.")

    def word(self) -> alignment.Word:
        return alignment.Word(self.text, self.start, self.end)


def check_spans(tokens: list[TokenEntry], length: int, field: str = "tokens") -> None:
    """Raises unless every span lies within a text of this length."""
    for index, token in enumerate(tokens):
        if token.span is not None and not token.span[0] <= token.span[1] <= length:
            raise mismatch(f"{field}[{index}].span", f"within the {length} characters", list(token.span))


def check_words(words: list[WordEntry], text: str, field: str = "words") -> None:
    """Raises unless every word is what its span says of this text."""
    for index, word in enumerate(words):
        if not word.text or text[word.start : word.end] != word.text or word.end > len(text):
            raise mismatch(f"{field}[{index}]", "a {text, start, end} of the text", word.model_dump())


class Branch(StrictModel):
    """The text of one forward pass of the denoiser: the prompt (cond), the negative prompt (uncond), …"""

    tokens: list[TokenEntry] = Field(
        description="Every token that was encoded, also those that the denoiser never gets.", fail_fast=True
    )
    words: list[WordEntry] = Field(fail_fast=True)
    cut: Offset | None = Field(
        None, description="The first character that no encoder read, because the prompt is too long. null: none."
    )
    columns: Columns | None = Field(
        None,
        description="The text columns that the maps have, in this order. null: every column that a token has, except "
        "`pad_columns`.",
    )
    pad_columns: Columns | None = Field(
        None,
        description="Columns of pads, or of a source picture. The maps have only the sum over them, as the last place of the token axis. "
        "From version 2.",
        min_length=1,
    )

    @model_validator(mode="after")
    def _columns_are_of_tokens(self) -> Self:
        known = set()
        for index, token in enumerate(self.tokens):
            if token.column in known:
                wanted = "a column that no other token has, or null"
                raise mismatch(f"tokens[{index}].column", wanted, token.column)
            known |= {token.column} - {None}
        chosen = self.columns or []
        if not set(chosen) <= known or len(set(chosen)) < len(chosen):
            raise mismatch("columns", "a list of different columns of the tokens, or null", self.columns)
        pads = self.pad_columns or []
        kinds = {token.column: token.kind for token in self.tokens if token.column not in chosen}
        summed = {kinds.get(column) for column in pads}
        if len(summed) > 1 or not summed <= {*SUMS} or len(set(pads)) < len(pads):
            wanted = "a list of different columns of pads, or of a picture, that are not among columns, or null"
            raise mismatch("pad_columns", wanted, self.pad_columns)
        return self

    def place_columns(self) -> list[int]:
        """The column at each place of the maps' token axis. PADS, at the last place, stands for the sum of `pad_columns`."""
        pads = self.pad_columns or []
        every = {token.column for token in self.tokens if token.column is not None}
        columns = sorted(every - set(pads)) if self.columns is None else self.columns
        return [*columns, PADS] if pads else [*columns]

    def places(self) -> list[alignment.Token]:
        """The token at each place of the maps' token axis. The last one may stand for the sum of `pad_columns`."""
        by_column = {entry.column: entry.token() for entry in self.tokens if entry.column is not None}
        if self.pad_columns:
            kind = by_column[self.pad_columns[0]].kind
            by_column[PADS] = alignment.Token(None, SUMS[kind], None, kind, (), PADS, PADS)
        return [by_column[column] for column in self.place_columns()]

    def covers_all_columns(self) -> bool:
        """Whether the maps hold the attention to every text column, so that it sums to 1 with `rest`."""
        every = {token.column for token in self.tokens} - {None}
        return self.columns is None or every <= {*self.columns, *(self.pad_columns or ())}
