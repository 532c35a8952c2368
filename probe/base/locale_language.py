"""Which of the two languages of the house a machine or a browser asks for; commands and the explorer decide alike."""

from typing import Literal

Language = Literal["en", "zh"]


def of_locale(locale: str | None) -> Language:
    """zh for any Chinese locale (zh_CN.UTF-8, zh-TW), en for all others and for none."""
    return "zh" if (locale or "").lower().startswith("zh") else "en"
