"""Which language a command answers in: as it was asked, or as the machine is set."""

import os

from toushi.probe.base.bilingual_text import Language, language_of_locale


def language_of(asked: Language | None) -> Language:
    """zh where the locale is Chinese, as POSIX ranks its variables; else en."""
    if asked is not None:
        return asked
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    return language_of_locale(next((os.environ[name] for name in names if os.environ.get(name)), None))
