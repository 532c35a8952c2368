"""The lines of steps.jsonl and texts.jsonl, typed: the finished files, with size and checksum."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from toushi.probe.trace.branch_tokens import TokenEntry, WordEntry, check_spans, check_words
from toushi.probe.trace.manifest import FileEntry
from toushi.probe.trace.strict_model import Count, Number, StrictModel, limit

LayerNumber = Annotated[str, Field(pattern=r"^[0-9]{1,4}$")]


class StepLine(FileEntry):
    step: Annotated[int, Field(ge=0, le=1_000_000)]
    file: str
    time: Number | None = Field(None, description="The model's time.")
    seconds: object = None
    evaluations: object = Field(None, description="Evaluations of the denoiser in this step.")


class TextEntry(StrictModel):
    """One text of a trace of texts."""

    text: str
    blind: Annotated[dict[LayerNumber, str], limit(10_000)] = Field(
        description="Layer -> why its attention could not be read."
    )
    tokens: list[TokenEntry] = Field(fail_fast=True)
    words: list[WordEntry] = Field(description="Those with a token.", fail_fast=True)
    lost: list[WordEntry] = Field(description="Words that were cut, or that the tokenizer leaves out.", fail_fast=True)
    unknown: list[WordEntry] = Field(description="Words that the vocabulary lacks.", fail_fast=True)

    @model_validator(mode="after")
    def _spans_fit_the_text(self) -> Self:
        check_spans(self.tokens, len(self.text))
        for name in ("words", "lost", "unknown"):
            check_words(getattr(self, name), self.text, name)
        return self


class TextsLine(FileEntry):
    file: str
    first: Count = Field(description="The number of the file's first text.")
    texts: list[TextEntry] = Field(fail_fast=True)
