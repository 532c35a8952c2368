"""Prints the JSON schema of manifest.json, whose fields are declared in manifest.py. `make schema` calls it."""

import json
from typing import Annotated

from pydantic import Field, TypeAdapter

from toushi.probe.trace.manifest import EncoderManifest, Manifest


def manifest_schema() -> str:
    """The schema of both kinds of manifest, as the text of docs/trace-manifest.schema.json.

    It holds types and ranges. That spans lie within the prompt and words are what their spans say is checked by the
    models alone.
    """
    either = TypeAdapter(Annotated[Manifest | EncoderManifest, Field(discriminator="kind")])
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "manifest.json of a Toushi trace"}
    return json.dumps(schema | either.json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(manifest_schema(), end="")
