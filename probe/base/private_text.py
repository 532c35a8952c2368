"""Text as it may stand in a manifest, which people publish: without secrets, and without the path of the user's home."""

import re
from pathlib import Path

HIDDEN = "(secret)"
SECRET_NAME = re.compile(r"(?i)(^|[_-])(token|auth|api[_-]?key|access[_-]?key|password|passwd|secret|credentials?)$")
SECRETS = (
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user:password in a URL
    re.compile(r"(?i)(?<=[?&#])((?:[\w-]*(?:token|key|password|secret|signature))=)[^&#\s]+"),  # in its query
    re.compile(r"\b(?:hf_|sk-|gh[opsu]_)[A-Za-z0-9_-]{16,}"),  # of the hub, of OpenAI, of GitHub
)


def is_secret_name(name: str) -> bool:
    """Whether a value of this name is a secret: token, api_key, password, …"""
    return SECRET_NAME.search(name) is not None


def public_text(text: str) -> str:
    """The text with `(secret)` in place of passwords and keys, and `~` in place of the user's home."""
    for pattern in SECRETS:
        text = pattern.sub(lambda match: (match[1] if match.re.groups else "") + HIDDEN, text)
    home = str(Path.home())
    return text if len(home) < 2 else re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w-]|\.\w)", "~", text)
