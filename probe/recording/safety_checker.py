"""What a pipeline's safety checker said of its pictures. It is told, never asked to look away."""

from typing import Any


def verdicts(pipeline, result: Any) -> list[str] | None:
    """Of each picture "passed" or "blocked"; None if there is no checker, or it did not look (latents were asked for).

    Pipelines give a flag for each picture beside the pictures, in a field or, in a plain tuple, second.
    """
    if getattr(pipeline, "safety_checker", None) is None:
        return None
    flags = getattr(result, "nsfw_content_detected", None)
    if flags is None and isinstance(result, tuple) and len(result) > 1:
        flags = result[1]
    if not isinstance(flags, list | tuple):
        return None
    return ["blocked" if flag else "passed" for flag in flags]
