"""manifest.json of a result, typed: what was asked, what it was computed with, and what the study concluded."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from toushi.experiments.runner.study import Study
from toushi.probe.base.bilingual_text import Bilingual

FORMAT, VERSION = "toushi-run", 1


class FileHash(BaseModel):
    bytes: int
    sha256: str


class TableHash(BaseModel):
    rows: int
    sha256: str


class Hardware(BaseModel):
    system: str
    processor: str
    cores: int | None
    gpus: list[str]


class JobRecord(BaseModel):
    """jobs/JOB.json: what the rows of a finished job were computed with."""

    call_sha256: str  # of function and arguments
    seconds: float
    finished: str
    git: str | None
    code_sha256: str


class Conclusion(BaseModel):
    finished: str
    git: str | None
    code_sha256: str


class ResultManifest(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: Literal["toushi-run"] = FORMAT
    version: int = VERSION
    experiment: str  # name of the study
    study: Study
    complete: bool = False
    verdict: str | None = None
    sentence: Bilingual | None = None
    config: dict[str, JsonValue]
    config_sha256: str
    command: str
    seeds: dict[str, JsonValue]
    weights: dict[str, FileHash]
    versions: dict[str, str]
    git: str | None  # commit of the checkout, with + if files were changed; None outside of a checkout
    code_sha256: str  # of the study's module and of all that it imports from this project
    hardware: Hardware
    threads: int
    argv: list[str]
    concluded: Conclusion | None = None
    may_differ: Bilingual
    jobs: dict[str, JobRecord] = {}
    failed: dict[str, str] = {}  # job -> why
    tables: dict[str, TableHash] = {}
    jobs_in_all: int
