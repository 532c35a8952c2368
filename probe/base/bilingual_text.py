"""Text in English and Chinese, the languages of commands, figures, reports and the explorer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toushi.probe.base.errors import ToushiError

Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True)
class Bilingual:
    """One text in both languages: `Bilingual(en="step", zh="步")`."""

    en: str
    zh: str

    @classmethod
    def same(cls, text: object) -> "Bilingual":
        """A text that is the same in both languages, such as a number or a name."""
        return cls(en=str(text), zh=str(text))

    def format(self, **values: object) -> "Bilingual":
        """The text with values for the names in its braces."""
        return Bilingual(en=self.en.format(**values), zh=self.zh.format(**values))

    def translate(self, language: str) -> str:
        """The text of this language. Raises ToushiError for a language other than en and zh."""
        return translate(language, en=self.en, zh=self.zh)

    def as_json(self) -> dict[str, str]:
        return {"zh": self.zh, "en": self.en}


def translate(language: str, *, en: str, zh: str) -> str:
    """The text of this language. Raises ToushiError for a language other than en and zh."""
    texts = {"en": en, "zh": zh}
    if language not in texts:
        raise ToushiError(f"the language is en or zh, but {language!r} came")
    return texts[language]


class Messages(dict[str, Bilingual]):
    """A catalogue, made of `{key: (English, Chinese)}`."""

    def __init__(self, pairs: Mapping[str, tuple[str, str]]):
        super().__init__({key: Bilingual(en=en, zh=zh) for key, (en, zh) in pairs.items()})

    def translate(self, language: str, key: str, **values: object) -> str:
        """The text of this key and language, with values for the names in its braces."""
        return self[key].format(**values).translate(language)


def language_of_locale(locale: str | None) -> Language:
    """zh for a Chinese locale (zh_CN.UTF-8, zh-TW), en for any other and for none."""
    return "zh" if (locale or "").lower().startswith("zh") else "en"
