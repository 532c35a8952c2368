"""The verdicts of a pipeline's safety checker. A recording notes them; it never turns the checker off."""

from toushi.probe.pipelines.family import Model


def safety_verdicts(pipeline: Model, result: object) -> list[str] | None:
    """Verdict "passed" or "blocked" for each picture; None if there is no checker, or if it saw no pictures but latents.

    Pipelines return a flag for each picture: in a field of the result, or second in a plain tuple.
    """
    if getattr(pipeline, "safety_checker", None) is None:
        return None
    flags = getattr(result, "nsfw_content_detected", None)
    if flags is None and isinstance(result, tuple) and len(result) > 1:
        flags = result[1]
    if not isinstance(flags, list | tuple):
        return None
    return ["blocked" if flag else "passed" for flag in flags]
