"""The documents speak of every command, option, exit status, error and metric that there is, and of no other."""

from __future__ import annotations

import argparse
import errno
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs import __version__, config, errors
from shardfs.commands import EXIT_STATUS
from shardfs.commands.arguments import COMMANDS, build_parser
from shardfs.commands.manual import page
from shardfs.commands.settings import BY_NAME, PRESETS, SETTINGS, Setting
from shardfs.metering import text_of
from shardfs.metrics import Meter
from shardfs.opening import open_store
from shardfs.vfs import build_vfs

REPOSITORY = Path(__file__).parents[2]
OPERATIONS = (REPOSITORY / "docs/OPERATIONS.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

OPENING = (
    "mount",
    "ls",
    "cat",
    "info",
    "find",
    "bench",
    "table",
    "index",
    "verify",
    "warm",
    "pin",
    "unpin",
    "staging recover",
)


def section(title: str) -> str:
    return OPERATIONS.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def options() -> Iterator[tuple[str, list[str]]]:
    """Each command with the options that its parser takes."""

    def of(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
        below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for action in below:
            for name, inside in action.choices.items():
                yield from of(inside, f"{path} {name}".strip())
        if path and not below:
            yield (
                path,
                [one for action in parser._actions for one in action.option_strings if one not in ("-h", "--help")],
            )

    return of(build_parser(), "")


def rows() -> dict[str, str]:
    """The table of commands: words of the command -> its row."""
    names = [name for name, _ in options()]
    found = {}
    for line in section("Commands and their options").splitlines():
        if line.startswith("| `") and not line.startswith("| `--"):
            words = re.match(r"\| `([^`]+)`", line)
            assert words is not None
            (name,) = [name for name in names if f"{words[1]} ".startswith(f"{name} ")]
            assert name not in found
            found[name] = line
    return found


def named(text: str) -> set[str]:
    return set(re.findall(r"(?<=`)--?[a-z0-9][a-z0-9-]*", text))


def test_every_command_has_a_row() -> None:
    assert set(rows()) == {name for name, _ in options()}
    assert {name.split()[0] for name in rows()} == set(COMMANDS)
    for command in COMMANDS:
        assert f"`shardfs {command}" in README, command


@pytest.mark.parametrize(("command", "taken"), list(options()), ids=lambda value: str(value) if " " in value else None)
def test_every_option_is_there(command: str, taken: list[str]) -> None:
    text = section("Commands and their options")
    shared = named("\n".join(line for line in text.splitlines() if line.startswith("| `--")))
    own = named(rows()[command])
    allowed = own | {"-v", "--verbose"} | (shared if command in OPENING else set())
    if command in ("mount", "config"):  # all settings, which have a table of their own
        allowed |= {setting.flag for setting in SETTINGS}
    allowed |= {f"--no-{one[2:]}" for one in allowed if one[2:].replace("-", "_") in BY_NAME}  # which is said of all
    assert set(taken) - allowed == set(), "missing in the documents"
    assert own - set(taken) == set(), "not taken by the command"
    if command in OPENING:
        assert shared <= set(taken)


def row_of(setting: Setting) -> str:
    default = "off" if setting.default is False else "on" if setting.default is True else setting.default
    default = setting.unsaid or (f"{default:g}" if isinstance(default, float) else default)
    name = f"`{setting.name}`" if setting.switch else f"`{setting.name}={setting.metavar or '|'.join(setting.choices)}`"
    return f"| {name.replace('|', chr(92) + '|')} | {default or 'none'} | {setting.help.replace('%%', '%')} |"


def test_the_table_of_settings_is_what_the_program_has() -> None:
    told = [line for line in section("Configuration").split("\n### ")[0].splitlines() if line.startswith("| `")]
    assert told == [row_of(setting) for setting in SETTINGS]


def test_the_table_of_profiles_is_what_the_program_has() -> None:
    told: dict[str, dict[str, str]] = {}
    name = ""
    for first, setting, text in re.findall(
        r"^\| (?:`([a-z]+)`)? ?\| [^|]*\| `(\w+)=(\S+)` \| [^|]+ \|$", section("Configuration"), re.MULTILINE
    ):
        name = first or name
        told.setdefault(name, {})[setting] = text
    assert told == PRESETS


def test_exit_statuses_are_told_once_and_as_they_are() -> None:
    told = {int(status): meaning for status, meaning in re.findall(r"^\| (\d+) \| (.*) \|$", OPERATIONS, re.MULTILINE)}
    assert told == EXIT_STATUS
    for meaning in EXIT_STATUS.values():
        assert meaning not in README


def test_every_metric_is_there(tmp_path: Path) -> None:
    vfs = build_vfs(open_store(tmp_path, "squirrel"), budget=1, arrays="png", uid=0, gid=0)
    made = set(re.findall(r"^# TYPE (\S+)", text_of(vfs, Meter(), ""), re.MULTILINE))
    source = (REPOSITORY / "shardfs/metering.py").read_text(encoding="utf-8")
    made |= {f"shardfs_{name}" for name in re.findall(r'(?:(?:f|F)amily|each)\("([a-z_]+)"', source)}
    told = set(re.findall(r"`(shardfs_[a-z_]+)(?:\{[a-z,]+\})?`", section("Metrics").split("Worth an alarm")[0]))
    assert told == made


def test_every_error_is_there_with_its_errno() -> None:
    told = dict(re.findall(r"^\| `([A-Za-z]+)` \| ([A-Za-z ]+) \|", section("Errors"), re.MULTILINE))
    made = {}
    for name, one in vars(errors).items():
        if isinstance(one, type) and issubclass(one, errors.ShardfsError):
            made[name] = errno.errorcode[one.errno] if isinstance(getattr(one, "errno", None), int) else "of the system"
    made |= {name: text for name, text in told.items() if issubclass(getattr(errors, name), errors.StorageError)}
    assert told == made
    assert told["StorageError"] == told["StagingError"] == "of the system"
    assert (errors.MissingFileError("").errno, told["MissingFileError"]) == (errno.ENOENT, "ENOENT")
    assert (errors.StagingLockedError("").errno, told["StagingLockedError"]) == (errno.EBUSY, "EBUSY")
    assert (errors.CameDamagedError("").errno, told["CameDamagedError"]) == (errno.EIO, "EIO")


def test_the_manual_page_is_what_the_parsers_make() -> None:
    """`python tools/manual.py` makes it."""
    made = page(build_parser(), __version__)
    assert (REPOSITORY / "docs/shardfs.1").read_text(encoding="utf-8") == made
    for command, taken in options():
        (text,) = re.findall(rf"^\.SS shardfs {command}\n(.*?)(?=^\.S[SH] )", made, re.MULTILINE | re.DOTALL)
        named_there = re.findall(r"\\fB((?:\\-)+[a-z0-9](?:\\-|[a-z0-9])*)\\fR", text)
        assert [one.replace("\\-", "-") for one in named_there] == taken, command
    for status in EXIT_STATUS:
        assert f"\\fB{status}\\fR" in made
    if shutil.which("groff"):
        words = ["groff", "-man", "-Tutf8", "-ww", REPOSITORY / "docs/shardfs.1"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        assert done.stderr == ""
        assert "Shows what the mount at" in " ".join(done.stdout.split())


def test_the_packages_of_debian_are_named_in_full() -> None:
    """Whoever pastes them has all that ./run installs."""
    found = re.search(r'^BASE_PACKAGES="(.*)"$', (REPOSITORY / "tools/bootstrap.sh").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == f"{config.DEBIAN_PACKAGES} python3-venv"
    assert f"`{found[1]}`" in " ".join(README.split())
    assert f"\napt-get install -y {found[1]} jq\n" in README
    containers = (REPOSITORY / "docs/CONTAINERS.md").read_text(encoding="utf-8")
    assert f"apt-get install -y {config.DEBIAN_PACKAGES.removesuffix(' python3-dev')}\n" in containers


# --- containers -------------------------------------------------------------------------------------------------------

EXAMPLES = REPOSITORY / "docs/examples/containers"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.yaml"))])
def test_pods_of_the_examples(name: str) -> None:
    """They parse; what is mounted is a volume of theirs; commands are such as our parser and the scripts take."""
    yaml = pytest.importorskip("yaml")
    (pod,) = yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8"))
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    used, spread = set(), set()
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        for mount in container["volumeMounts"]:
            used.add(mount["name"])
            spread.add(mount.get("mountPropagation", "None"))
            privileged = container["securityContext"].get("privileged", False)
            assert privileged is (mount.get("mountPropagation") == "Bidirectional") or mount["name"] != "volume"
        command, probe = container["command"], container.get("startupProbe", {}).get("exec", {}).get("command", [])
        for script in (word for word in command if word.startswith("/scripts/")):
            assert (EXAMPLES / script.rpartition("/")[2]).exists()
        for words in (command, probe):
            if "shardfs" in words:
                given = words[words.index("shardfs") + 1 :]
                build_parser().parse_args([*given, "/dev/fd/9"] if "take_over" in str(words) else given)
    assert used == volumes
    assert spread == {"Bidirectional", "HostToContainer", "None"} - ({"None"} if name == "sidecar.yaml" else set())


def test_containers_names_what_there_is() -> None:
    text = (REPOSITORY / "docs/CONTAINERS.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (REPOSITORY / "docs" / link).exists(), link
    for path in EXAMPLES.iterdir():
        assert path.is_dir() or f"examples/containers/{path.name}" in text, path
    for path in re.findall(r"`(tests/[a-z_/]+\.py)`", text):
        assert (REPOSITORY / path).exists(), path


def test_operations_names_every_unit() -> None:
    told = section("As a service of systemd")
    for path in (REPOSITORY / "systemd").rglob("*"):
        assert path.is_dir() or f"`{path.relative_to(REPOSITORY / 'systemd')}`" in told, path


# --- the house --------------------------------------------------------------------------------------------------------


def house() -> tuple[str, set[str]]:
    """The part of DESIGN.md about rooms: what comes before their table, and the names in it without their packages."""
    text = (REPOSITORY / "docs/DESIGN.md").read_text(encoding="utf-8")
    before, table = text.split("\n## The house\n", 1)[1].split("\n## ", 1)[0].split("\n| room |", 1)
    return before, {name.rstrip("/").rpartition("/")[2] for name in re.findall(r"`([\w/]+)`", table)}


def test_every_room_has_a_row() -> None:
    """But those of one command, which are called as it is."""
    rooms = {path.stem for path in (REPOSITORY / "shardfs").rglob("*.py") if not path.stem.startswith("__")}
    assert rooms - house()[1] <= {*COMMANDS, "look"}


@pytest.mark.parametrize("package", ["trio", "pyfuse3"])
def test_who_imports_what_is_what_the_contracts_say(package: str) -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [one for one in contracts["contracts"] if one.get("forbidden_modules") == [package]]
    allowed = {line.partition(" ")[0].rpartition(".")[2] for line in contract["ignore_imports"]}
    sentences = house()[0].replace("pyfuse3 by", "pyfuse3 is imported by")
    told = re.search(rf"{package} is imported by(.+?)\sonly", sentences, re.DOTALL)
    assert told is not None
    assert set(re.findall(r"`(\w+)`", told[1])) == allowed
