"""Secrets of URLs in the process list."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shardfs.commands.hiding import secrets_of


@pytest.mark.parametrize(
    ("word", "secrets"),
    [
        ("https://user:pass@host/a/b", ["user:pass"]),
        ("--endpoint=https://user:p@ss@host?token=abc", ["user:p@ss", "token=abc"]),
        ("ro,endpoint=http://u:p@host", ["u:p"]),
        ("s3://bucket/a", []),
        ("/a/b@c?d", []),
    ],
)
def test_what_is_a_secret(word: str, secrets: list[str]) -> None:
    assert list(secrets_of(word)) == secrets


def test_the_process_list_does_not_show_it() -> None:
    code = (
        "import sys; from shardfs.commands.hiding import hide; hide(sys.argv[1:]);"
        "print(open('/proc/self/cmdline').read().replace(chr(0), ' ')); print(sys.argv[1])"
    )
    url = "https://user:s3cr3t@host/x?token=t0ken"
    done = subprocess.run([sys.executable, "-c", code, url, "after"], capture_output=True, text=True, check=True)
    shown, kept = done.stdout.splitlines()
    assert "s3cr3t" not in shown
    assert "t0ken" not in shown
    assert shown.rstrip().endswith("@host/x?*********** after")
    assert kept == url
