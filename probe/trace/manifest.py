"""The trace on disk, format version 1: names, the manifest's fields, and the checks that writer and reader share.

    run/
      manifest.json              see below; replaced as a whole
      steps.jsonl                one line for each finished step: {step, file, bytes, sha256, time, …}
      step_0007.safetensors      `{site}/{branch}` [head, token, y, x] (keep "mean": [token, y, x]; image
                                 self-attention: key in place of token, row-major); `{site}/{branch}/rest`
                                 [head, y, x] or [y, x] where it is not zero; `latent` [channel, y, x];
                                 `preview` uint8 [y, x, 3]
      sum_0007.safetensors       with keep "sum" instead: fp32 sums over the steps up to 7; its metadata `counts`
                                 says for each name how many steps went in; `latent`, `preview`: the last ones
      encoder.safetensors        `state/{i}/{branch}` [token, feature], 0 the embeddings;
                                 `attention/{i}/{branch}` [head, query, token]
      image.png
    collection.json              of a folder of traces: {format, version, members: ["000", "001", …], …}

The manifest. Fields marked * must be there; what is not known is null; further fields are kept as they are.

    format* "toushi-trace", version* 1, kind* "picture", complete* bool
    model            {name, revision, weights_sha256}
    loading          how a pipeline was loaded (dtype, offload, …), or null; loras: its LoRAs, with sha256 and scale
    prompt*          str, or null for ready-made embeddings; negative_prompt the same
    branches*        {cond: {tokens: [{id, text, span, kind, encoders, position, column}], words: [{text, start,
                     end}], columns}}; spans are in characters of the prompt (uncond: of the negative prompt).
                     The token axis of the maps is `columns`: the text columns kept, in this order; null means
                     every column that a token has
    segmenter        {name, version, dictionary_sha256}
    sites*           {name: {kind: cross | self | encoder, grid: [y, x] or null, heads: n or null}}
    keep*            heads | mean | sum
    steps*           {count, times: [count or count + 1 numbers] or null, recorded: [step, …]; null means all}
    kept             {words, dtype, budget}: what else was asked for. words: as they were named, or null for all of them
    batch            how many pictures were drawn together, of which this is one
    evaluations      of the denoiser for one step; kept_evaluation: "first", which of them the maps are of
    guidance, sampler, seed, device, dtype, kernel, threads, edits, versions, git, argv
    true_guidance    where a model has two: the one by a negative prompt. strength: of an image to begin with
    asked            the prompt that a pipeline outside of the family table was given, whose tokens are not known
    safety           "passed", "blocked", "not run", or null where there is no checker
    family           the row of the family table by which it was recorded
    not_recorded     {glob: why} of the model's attention that no site stands for
    size             [height, width] in pixels
    heat_map         {sites: [globs], rule: "how they are averaged, in words"}: this model's better default, or null
    files            {name: {bytes, sha256}} of encoder.safetensors and image.png, written by the writer
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from toushi.probe.text.alignment import Token, Word
from toushi.probe.trace.trace_errors import DamagedTrace, NewerTrace
from toushi.probe.trace.trace_format import (
    ENCODER,
    FORMAT,
    IMAGE,
    KEEPS,
    LONGEST,
    SITE_KINDS,
    TOKEN_KINDS,
    VERSION,
    step_file,
)
from toushi.probe.trace.trace_json import short

# --- the manifest ---------------------------------------------------------------------------------------


def check_manifest(manifest: Any, where: str) -> dict:
    """The manifest, if every field that the reader relies on is what the format says."""

    def need(holds: bool, field: str, expected: str, came: object) -> None:
        if not holds:
            raise DamagedTrace(f"{where}: {field} must be {expected}; {short(came)} is there.")

    need(isinstance(manifest, dict), "the manifest", "a JSON object", manifest)
    came = manifest.get("format")
    need(came == FORMAT, "format", f'"{FORMAT}" (or this is no Toushi trace; of an experiment see toushi report)', came)
    check_version(manifest, where)
    came = manifest.get("kind")
    need(came == "picture", "kind", '"picture" or "encoder", the kinds that this version reads', came)
    for field in ("complete", "prompt", "branches", "sites", "keep", "steps"):
        need(field in manifest, field, "there", "nothing")
    need(isinstance(manifest["complete"], bool), "complete", "true or false", manifest["complete"])
    for field in ("prompt", "negative_prompt"):
        came = manifest.get(field)
        need(came is None or isinstance(came, str), field, "text or null", came)
    came = manifest["keep"]
    need(isinstance(came, str) and came in KEEPS, "keep", f"one of {', '.join(KEEPS)}", came)

    sites = manifest["sites"]
    need(isinstance(sites, dict) and len(sites) <= 10_000, "sites", "an object", sites)
    for name, site in sites.items():
        field = f"sites[{name!r:.60}]"
        need(bool(re.fullmatch(r"[^\s/\x00-\x1f]{1,300}", name)), field, "named by a module path", name)
        need(isinstance(site, dict) and site.get("kind") in SITE_KINDS, field, f"of kind {SITE_KINDS}", site)
        need({"grid", "heads"} <= set(site), field, "{kind, grid, heads}", site)
        grid, heads = site["grid"], site["heads"]
        is_grid = isinstance(grid, list) and len(grid) == 2 and all(whole(n, 1, 65_536) for n in grid)
        need(is_grid or (grid is None and site["kind"] == "encoder"), f"{field}.grid", "[rows, columns]", grid)
        need(heads is None or whole(heads, 1, 65_536), f"{field}.heads", "a count or null", heads)

    branches = manifest["branches"]
    need(isinstance(branches, dict) and len(branches) <= 16, "branches", "an object", branches)
    for name, branch in branches.items():
        need(bool(re.fullmatch(r"[a-z_]{1,32}", name)), "a branch", "named like cond or uncond", name)
        _check_branch(branch, prompt_of(manifest, name), f"branches.{name}", need)

    steps = manifest["steps"]
    need(isinstance(steps, dict) and whole(steps.get("count"), 0, 1_000_000), "steps", "{count, times}", steps)
    times, recorded = steps.get("times"), steps.get("recorded")
    need(times is None or _all(times, _number), "steps.times", "a list of numbers or null", times)
    in_run = _all(recorded, lambda n: whole(n, 0, steps["count"] - 1))
    need(recorded is None or in_run, "steps.recorded", "a list of step indices or null", recorded)

    for field in ("model", "segmenter", "versions"):
        came = manifest.get(field)
        need(came is None or isinstance(came, dict), field, "an object or null", came)
    size, rule, files = manifest.get("size"), manifest.get("heat_map"), manifest.get("files", {})
    is_size = _all(size, lambda n: whole(n, 1, 65_536)) and len(size) == 2
    need(size is None or is_size, "size", "[height, width] or null", size)
    is_rule = isinstance(rule, dict) and _all(rule.get("sites"), lambda s: isinstance(s, str))
    is_rule = is_rule and 1 <= len(rule["sites"]) <= 1000 and isinstance(rule.get("rule"), str)
    need(rule is None or is_rule, "heat_map", "{sites: [globs], rule: text} or null", rule)
    need(isinstance(files, dict), "files", "an object", files)
    for name, about in files.items():
        need(name in (ENCODER, IMAGE), "files", f"about {ENCODER} and {IMAGE} only", name)
        need(is_file(about), f"files[{name}]", "{bytes, sha256}", about)
    return manifest


def _check_branch(branch: Any, prompt: str | None, where: str, need) -> None:
    need(isinstance(branch, dict), where, "an object", branch)
    tokens, words, kept = branch.get("tokens"), branch.get("words"), branch.get("columns")
    need(isinstance(tokens, list), f"{where}.tokens", "a list", tokens)
    need(isinstance(words, list), f"{where}.words", "a list", words)
    length = len(prompt) if prompt is not None else 0
    columns = set()
    for index, token in enumerate(tokens):
        field = f"{where}.tokens[{index}]"
        need(isinstance(token, dict), field, "an object", token)
        known = isinstance(token.get("text"), str) and token.get("kind") in TOKEN_KINDS
        known = known and (token.get("id") is None or whole(token["id"], 0, 2**40))
        known = known and whole(token.get("position"), 0, 10**7)
        known = known and _all(token.get("encoders"), lambda e: isinstance(e, str))
        need(known, field, "{id, text, span, kind, encoders, position, column}", token)
        span, column = token.get("span"), token.get("column")
        need(span is None or is_span(span, length), f"{field}.span", f"within the {length} characters", span)
        free = whole(column, 0, 10**7) and column not in columns
        need(column is None or free, f"{field}.column", "a column that no other token has, or null", column)
        columns.add(column)
    for index, word in enumerate(words):
        good = isinstance(word, dict) and is_span([word.get("start"), word.get("end")], length)
        good = good and word.get("text") == (prompt or "")[word["start"] : word["end"]] != ""
        need(good, f"{where}.words[{index}]", "a {text, start, end} of the prompt", word)
    is_kept = _all(kept, lambda c: whole(c, 0, 10**7) and c in columns) and len(set(kept)) == len(kept)
    need(kept is None or is_kept, f"{where}.columns", "a list of the tokens' columns or null", kept)


def check_version(raw: dict, where: str) -> None:
    version: Any = raw.get("version")
    if not whole(version, 1, 10**9):
        raise DamagedTrace(f"{where}: version must be a whole number from 1; {short(version)} is there.")
    if version > VERSION:
        raise NewerTrace(
            f"{where} has format version {version}; this Toushi reads up to {VERSION}. Open it with a newer Toushi."
        )


def check_line(line: Any, keep: str, where: str) -> dict:
    """One line of steps.jsonl. The file's name follows from the step, so no other file can be named."""
    if not isinstance(line, dict) or not whole(line.get("step"), 0, 1_000_000) or not is_file(line):
        raise DamagedTrace(f"{where} must be {{step, file, bytes, sha256, …}}; {short(line)} is there.")
    expected = step_file(line["step"], keep)
    if line.get("file") != expected:
        raise DamagedTrace(f'{where}: the file must be "{expected}"; {short(line.get("file"))} is there.')
    if line.get("time") is not None and not _number(line["time"]):
        raise DamagedTrace(f"{where}: time must be a number or null; {short(line['time'])} is there.")
    return line


# --- tokens, words, columns -----------------------------------------------------------------------------


def prompt_of(manifest: dict, branch: str) -> str | None:
    """The text that the spans of a branch count in."""
    return manifest.get("negative_prompt" if branch == "uncond" else "prompt")


def token_of(raw: dict) -> Token:
    """A token as a manifest or a list of texts has it."""
    span = None if raw.get("span") is None else tuple(raw["span"])
    encoders = tuple(raw["encoders"])
    return Token(raw.get("id"), raw["text"], span, raw["kind"], encoders, raw["position"], raw.get("column"))


def word_of(raw: dict) -> Word:
    return Word(raw["text"], raw["start"], raw["end"])


def tokens_of(manifest: dict, branch: str) -> list[Token]:
    return list(map(token_of, manifest["branches"][branch]["tokens"]))


def words_of(manifest: dict, branch: str) -> list[Word]:
    return list(map(word_of, manifest["branches"][branch]["words"]))


def columns_of(manifest: dict, branch: str) -> list[int]:
    """The text column at each place of the token axis."""
    raw = manifest["branches"][branch]
    if raw.get("columns") is not None:
        return list(raw["columns"])
    return sorted(token["column"] for token in raw["tokens"] if token.get("column") is not None)


# --- tensors --------------------------------------------------------------------------------------------


def step_shapes(manifest: dict, key: str) -> list[tuple[int, ...]] | None:
    """The shapes that a tensor of this name may have in a step file; -1 is any length from 1. None: no such name."""
    if key == "latent":
        return [(-1, -1, -1)]
    if key == "preview":
        return [(-1, -1, 3)]
    name, _, tail = key.partition("/")
    branch, _, rest = tail.partition("/")
    site = manifest["sites"].get(name)
    if site is None or branch not in manifest["branches"] or site["kind"] == "encoder" or rest not in ("", "rest"):
        return None
    rows, columns = site["grid"]
    middle = rows * columns if site["kind"] == "self" else len(columns_of(manifest, branch))
    averaged = (rows, columns) if rest else (middle, rows, columns)
    by_head = (site["heads"] or -1, *averaged)
    return {"heads": [by_head], "mean": [averaged], "sum": [averaged, by_head]}[manifest["keep"]]


def fits(shape: Iterable[int], allowed: list[tuple[int, ...]]) -> bool:
    shape = tuple(shape)
    return any(
        len(shape) == len(one) and all(n == m or (m == -1 and 1 <= n <= LONGEST) for n, m in zip(shape, one))
        for one in allowed
    )


# --- parts ---------------------------------------------------------------------------------------------


def is_file(about: object) -> bool:
    if not isinstance(about, dict):
        return False
    digest = about.get("sha256")
    is_digest = isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) is not None
    return is_digest and whole(about.get("bytes"), 0, 2**60)


def whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 2**63 and math.isfinite(value)


def _all(values: Any, holds) -> bool:
    return isinstance(values, list) and all(map(holds, values))


def is_span(span: Any, length: int) -> bool:
    if not isinstance(span, list) or len(span) != 2:
        return False
    return whole(span[0], 0, length) and whole(span[1], span[0], length)
