"""The language of a command's output: the one asked for, or that of the locale."""

import os

from toushi.probe.base.bilingual_text import Language, language_of_locale


def language_of(language: Language | None) -> Language:
    """The language; if None zh where the locale is Chinese, by the order of POSIX's variables, else en."""
    if language is not None:
        return language
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    return language_of_locale(next((os.environ[name] for name in names if os.environ.get(name)), None))
