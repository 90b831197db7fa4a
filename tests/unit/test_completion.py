"""`shardfs completion`: what bash completes, asked of a real bash; zsh and fish where they are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shardfs import cli
from shardfs.commands.arguments import COMMANDS, build_parser
from shardfs.commands.completion import ZSH, commands_of


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> str:
    assert cli.main(["completion", request.param]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def completed(script: str, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    typed = f"COMP_WORDS=(shardfs {line}); COMP_CWORD={len(words)}"
    asked = f"{script}\n{typed}; _shardfs; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("script", ["bash", "zsh"], indirect=True)
def test_bash(script: str) -> None:
    script = "\n".join(line for line in script.splitlines() if line not in ZSH)
    assert completed(script, "mo") == ["mount"]
    assert set(completed(script, "")) == {*COMMANDS, "--version", "-h", "--help"}
    assert completed(script, "mount", "--mem") == ["--memory"]
    assert completed(script, "mount", "store", "mnt", "--allow-o") == ["--allow-other", "--allow-overwrite"]
    assert completed(script, "staging", "re") == ["recover"]
    assert completed(script, "staging", "recover", "--t") == ["--text", "--to"]
    assert completed(script, "cache", "verify", "--js") == ["--json"]
    assert completed(script, "ls", "--arrays", "") == ["png", "npy"]
    assert completed(script, "umount", "/mnt/no-such") == []
    assert completed(script, "nothing", "--") == []


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_a_zsh_that_completes_nothing_yet(script: str, tmp_path: Path) -> None:
    """`compdef` was missing where ~/.zshrc does not begin zsh's own completion."""
    (tmp_path / "script").write_text(script)
    asked = f"source {tmp_path}/script && (( $+functions[compdef] )) && print -r -- $_comps[shardfs]"
    done = subprocess.run(
        ["zsh", "-f", "-c", asked],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_bash_complete" in done.stdout
    assert "-F _shardfs" in done.stdout


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_has_a_line_for_each_option(script: str) -> None:
    lines = script.splitlines()
    assert all(re.fullmatch(r"complete -c shardfs .*-d '(?:[^'\\]|\\.)*'", line) for line in lines[1:])
    count = sum(len(one.below) + (len(one.options) if one.path else 0) for one in commands_of(build_parser()))
    assert len(lines) == count + 1
    if shutil.which("fish"):
        asked = f"{script}\ncomplete -C 'shardfs mount --mem'"
        assert "--memory" in subprocess.run(["fish", "-c", asked], capture_output=True, text=True, timeout=20).stdout


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "sh"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
