"""Which language a command answers in: as it was asked, or as the machine is set."""

import os
from collections.abc import Mapping

from toushi.probe.base.locale_language import Language, of_locale


def language_of(asked: Language | None) -> Language:
    """zh where the locale is Chinese, as POSIX ranks its variables; else en."""
    if asked is not None:
        return asked
    return of_locale(
        next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), None)
    )


def teller(texts: Mapping[str, tuple[str, str]], language: Language):
    """tell(key, **names) -> the sentence of this key, from (English, Chinese) pairs."""

    def tell(key: str, **names) -> str:
        return texts[key][language == "zh"].format(**names)

    return tell
