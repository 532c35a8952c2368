"""The diagnosis of a word as rows of text in English or Chinese: what was measured, findings, what to try."""

import shlex
from typing import TYPE_CHECKING

from toushi.probe.trace.diagnosis_messages import MESSAGES
from toushi.probe.trace.word_diagnosis import CONTRAST, SINK, WordDiagnosis

if TYPE_CHECKING:
    from toushi.probe.trace.comparison import Comparison

NO_EFFECT = 0.01  # share of changed pixels below which a word has no effect


def diagnosis_rows(
    diagnosis: WordDiagnosis, folder: str, language: str, comparison: "Comparison | None" = None
) -> list[tuple[str, str]]:
    """(what, text). `comparison` is with a run without the word."""

    def say(key: str, **values: object) -> str:
        return MESSAGES.translate(language, key, **values)

    tokens = "  ".join(f"{token.text.strip() or '␣'} ({token.id})" for token in diagnosis.tokens)
    rows = [(say("word"), diagnosis.word), (say("tokens"), tokens or "–")]
    if diagnosis.share is not None:
        rows.append((say("share"), percent(diagnosis.share)))
        rows.append((say("peers"), ", ".join(f"{n} {percent(share)}" for n, share in diagnosis.peers.items()) or "–"))
        if diagnosis.sink is not None:
            rows.append((say("special"), percent(diagnosis.sink)))
        values = {"share": percent(diagnosis.peak_share or 0), "site": diagnosis.peak_site, "step": diagnosis.peak_step}
        rows.append((say("peak"), say("peak_of_sum" if diagnosis.peak_step is None else "peak_at", **values)))
    if diagnosis.contrast is not None:
        rows.append((say("contrast"), say("contrast_is", value=f"{diagnosis.contrast:.2f}", limit=CONTRAST)))

    mark = "、" if language == "zh" else ", "
    words = {"unknown": mark.join((diagnosis.word, *diagnosis.unknown_with)), "shared": mark.join(diagnosis.split_with)}
    limits = {"limit": f"{SINK:.0%}", "median": percent(diagnosis.median_of_peers or 0)}
    findings = [say(code, **words, **limits) for code in diagnosis.findings]
    if comparison is not None:
        changed, difference = comparison.changed_pixels, comparison.mean_difference
        text = say("test_unknown")
        if changed is not None and difference is not None:
            text = say("test_is", changed=percent(changed), difference=f"{difference:.1f}")
        rows.append((say("test"), text))
        if changed is not None:
            findings.append(say("no_effect" if changed < NO_EFFECT else "has_effect", limit=f"{NO_EFFECT:.0%}"))
    rows += [(say("finding"), finding) for finding in findings or [say("nothing")]]

    advice = [f"try_{code}" for code in diagnosis.findings]
    advice += ["try_test"] if comparison is None else []
    advice += ["try_remove"] if diagnosis.share is not None else []
    names = {"folder": shlex.quote(folder), "word": shlex.quote(diagnosis.word)}
    rows += [(say("next"), text) for text in dict.fromkeys(say(key, **names) for key in advice)]
    return rows


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
