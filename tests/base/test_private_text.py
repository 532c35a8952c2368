"""What a manifest may say of a call or a command: no password, no token, no home."""

from pathlib import Path

import pytest

from toushi.probe.base.private_text import is_secret_name, public_text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://me:pass@hub.example/model?x=1", "https://(secret)@hub.example/model?x=1"),
        ("https://hub.example/a?access_token=abc&size=64", "https://hub.example/a?access_token=(secret)&size=64"),
        ("use hf_abcdefghijklmnopqrstuv now", "use (secret) now"),
        (f"{Path.home()}/models/flux", "~/models/flux"),
        (f"--cache {Path.home()} --out={Path.home()}/a", "--cache ~ --out=~/a"),
        (f"/mnt{Path.home()}/models", f"/mnt{Path.home()}/models"),
        (f"{Path.home()}less/models", f"{Path.home()}less/models"),
        ("左边是猫，右边是月亮 @ 3 tokens?", "左边是猫，右边是月亮 @ 3 tokens?"),
    ],
)
def test_text_without_secrets_and_home(text, public):
    assert public_text(text) == public


def test_names_of_secrets():
    for name in ("token", "hf_token", "api_key", "API-KEY", "password", "client_secret"):
        assert is_secret_name(name)
    for name in ("tokenizer", "max_sequence_length", "key_dim", "prompt", "num_tokens"):
        assert not is_secret_name(name)
