"""Settings: what counts of all that was said, what is refused, profiles, and what `shardfs config` tells of it."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path

import pytest

from shardfs import cli, config
from shardfs.commands.arguments import build_parser
from shardfs.commands.config_file import config_path
from shardfs.commands.options import cache_options
from shardfs.commands.resolving import Settled, mount_point_of, settle
from shardfs.commands.settings import BY_NAME, OTHER_VARIABLES, PRESETS, SETTINGS, Setting
from shardfs.errors import BadSettingError
from shardfs.log_formats import FORMATS, LEVELS

REPOSITORY = Path(__file__).parents[2]

SAMPLES = {
    "driver": ("squirrel", "streaming", "webdataset", "superduper", "mltraq"),
    "endpoint": ("http://a", "http://b", "http://c", "http://d", "http://e"),
    "deadline": ("1", "2", "3", "4", "5"),
    "refresh": ("1", "2", "3", "4", "5"),
    "write_back": ("1", "2", "3", "4", "off"),
    "metrics_addr": ("1", "2", "3", "4", "5"),
    "view": ("by:a", "by:b", "flat", "tree", "hf"),
    **dict.fromkeys(("keys", "where", "field"), ("a", "b", "c d", "d", "e")),
    **dict.fromkeys(("cache_dir", "snapshot", "log", "trace"), ("/a", "/b", "/c", "/d", "/e")),
    **dict.fromkeys(("cache_size", "min_free", "memory", "size_limit"), ("1G", "2G", "3G", "4G", "5G")),
    "shutdown_timeout": ("1", "2", "3", "0", "5"),
}
"""Five texts for each setting that has no choices: flag, -o, environment, section, for all."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shardfs").mkdir()
    return tmp_path


def write(text: str) -> Path:
    path = config_path()
    assert path is not None
    path.write_text(text)
    return path


def settled(*words: str, **environment: str) -> tuple[argparse.Namespace, Settled]:
    arguments = build_parser().parse_args(words)
    return arguments, settle(arguments, environment)


def texts(setting: Setting) -> list[str | bool]:
    if setting.switch:
        return [True, False, True, False, True]
    if setting.choices:
        return [setting.choices[at % len(setting.choices)] for at in range(5)]
    return list(SAMPLES[setting.name])


# --- which counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_is_said_nearer_counts(setting: Setting) -> None:
    """Each source by itself, and each over all those below it."""
    flag, word, variable, section, for_all = texts(setting)
    needed = {"rw": "rw = true\n"}.get(setting.needs, "")
    kept = "cache_raw = 'again'\n" if setting.name in ("cache_size", "min_free", "cache_dir") else ""

    def toml(value: str | bool) -> str:
        return f"{setting.name} = {json.dumps(value)}\n"

    def flags(value: str | bool) -> list[str]:
        if setting.switch:
            return [setting.flag if value else f"--no-{setting.flag[2:]}"]
        return [setting.flag, str(value)]

    def words(value: str | bool) -> list[str]:
        return ["-o", setting.words[not value] if setting.switch else f"{setting.name}={value}"]

    said: dict[str, str] = {}
    expected = [("file", for_all), ("file", section), ("environment", variable), ("-o", word), ("flag", flag)]
    for count in range(1, 6):
        write(
            (toml(for_all) if count != 2 else "")
            + f"[mount.m]\nstore = 's3://b/x'\nmountpoint = '/m'\n{needed}{kept}"
            + (toml(section) if count >= 2 else "")
        )
        if count >= 3:
            said = {setting.variable: str(variable)}
        given = [*(flags(flag) if count == 5 else ()), *(words(word) if count >= 4 else ())]
        _, found = settled("mount", "m", *given, **said)
        source, text = expected[count - 1]
        held = found.holds[setting.name]
        value = text if isinstance(text, bool) else setting.parse(text)
        assert (held.source, held.value) == (source, value), (count, held)


def test_nothing_said_is_the_default() -> None:
    arguments, found = settled("mount", "s", "m")
    assert all(one.source == "default" for one in found.holds.values())
    assert {name: one.value for name, one in found.holds.items()} == {one.name: one.default for one in SETTINGS}
    assert arguments.write_back == config.WRITE_BACK
    assert BY_NAME["deadline"].unsaid == f"{config.REMOTE_DEADLINE:g}"
    assert BY_NAME["refresh"].unsaid == f"{config.REFRESH:g}, far away {config.REMOTE_REFRESH:g}"
    assert (BY_NAME["cache_raw"].choices, BY_NAME["cache_size"].unsaid[:3]) == (config.CACHE_RAW, "10%")
    assert config.CACHE_SHARE == 10
    assert (BY_NAME["log_format"].choices, set(BY_NAME["log_level"].choices)) == (FORMATS, set(LEVELS))


def test_v_is_the_log_level_in_short() -> None:
    for words, level in (
        ((), "warning"),
        (("-v",), "info"),
        (("-vv",), "debug"),
        (("-v", "--log-level", "error"), "error"),
    ):
        assert settled("mount", "s", "m", *words)[0].log_level == level
    assert settled("mount", "s", "m", "-v", SHARDFS_LOG_LEVEL="error")[1].facts()["log_level"] == {
        "value": "info",
        "from": "flag",
    }


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("True", True), ("0", False), ("off", False)])
def test_switches_in_the_environment(text: str, value: bool) -> None:
    assert settled("mount", "s", "m", SHARDFS_INDEX=text)[0].index is value


def test_variables_that_say_nothing() -> None:
    """Empty ones, those for tests and comparisons, and what Kubernetes makes of a service called shardfs."""
    services = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_9464_TCP", "PORT_9464_TCP_ADDR")
    said = {f"SHARDFS_{name}": "x" for name in services} | {"SHARDFS_METRICS_SERVICE_HOST": "10.0.0.1"}
    _, found = settled("mount", "s", "m", SHARDFS_MEMORY="", **dict.fromkeys(OTHER_VARIABLES, "1"), **said)
    assert all(one.source == "default" for one in found.holds.values())


def test_every_variable_of_the_repository_is_known() -> None:
    places = [*REPOSITORY.glob("shardfs/**/*.py"), *REPOSITORY.glob("tests/**/*.py"), REPOSITORY / "run"]
    pattern = re.compile(r"\bSHARDFS_[A-Z0-9_]+[A-Z0-9]\b")
    named = {name for path in places for name in pattern.findall(path.read_text("utf-8"))}
    ours = Path(__file__).read_text("utf-8")
    known = {setting.variable for setting in SETTINGS} | OTHER_VARIABLES
    assert {name for name in named - known if name not in ours} == set()


def test_other_commands_take_what_they_have_of_it(tmp_path: Path) -> None:
    write("memory = '1G'\nrw = true\narrays = 'npy'\n[mount.m]\nstore = '~/x'\ntext = 'files'\n")
    arguments, _ = settled("ls", "m", SHARDFS_DEADLINE="7")
    assert (arguments.store, arguments.arrays, arguments.text) == (str(Path.home() / "x"), "npy", "files")
    assert arguments.deadline is None  # for a store on this machine
    assert not hasattr(arguments, "memory")
    assert settled("ls", "s3://b/x", SHARDFS_DEADLINE="7")[0].deadline == 7.0


def test_shares_of_the_cache_are_shares_of_the_disk(tmp_path: Path) -> None:
    """`cache info --cache-size 20%` was a share of the memory."""
    from shardfs.storage.disk_cache import disk_bytes

    arguments, _ = settled("cache", "info", "--cache-dir", str(tmp_path), "--cache-size", "20%")
    assert cache_options(arguments)["cache_size"] == int(disk_bytes(tmp_path) * 0.2)


def test_a_file_is_found_with_a_name_in_place_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("[mount.m]\nstore = '/data/x'\nmountpoint = '/mnt/m'\n")
    arguments, found = settled("mount", "m", "/elsewhere")
    assert (arguments.store, arguments.mountpoint, found.name) == ("/data/x", "/elsewhere", "m")
    assert set(found.places) == {"store"}
    assert settled("mount", "m")[0].mountpoint == "/mnt/m"
    assert settled("mount", "./m", "/elsewhere")[0].store == "./m"
    assert [mount_point_of(text) for text in ("m", "/m", "n")] == ["/mnt/m", "/m", "n"]
    assert cli.main(["umount", "m"]) == 4
    assert capsys.readouterr().err == "shardfs: nothing is mounted on /mnt/m\n"
    (tmp_path / "m").mkdir()
    assert settled("mount", "m")[0].store == "/data/x", "alone it can only be a name"
    with pytest.raises(BadSettingError, match=r"write \./m if you mean that"):
        settled("mount", "m", "/elsewhere")


# --- what is refused --------------------------------------------------------------------------------------------------

HERE = "{file}, line 2, [mount.m]"


@pytest.mark.parametrize(
    ("text", "words", "environment", "said"),
    [
        ("memroy = '1G'", "", "", f"memroy ({HERE}): there is no such setting; did you mean memory?"),
        ("cache-dir = '/x'", "", "", f"cache-dir ({HERE}): there is no such setting; did you mean cache_dir?"),
        ("memory = 'lots'", "", "", f"memory = lots ({HERE}): 'lots' is no size"),
        ("memory = 'lots'", "--memory 1G", "", f"memory = lots ({HERE}): 'lots' is no size"),
        ("memory = ['1G']", "", "", f"memory ({HERE}): write it as text"),
        ("rw = 'yes'", "", "", f"rw ({HERE}): write true or false, without quotes"),
        ("arrays = 'tiff'", "", "", f"arrays = tiff ({HERE}): choose one of png, npy"),
        ("log = 'log'", "", "", f"log ({HERE}): write the whole path"),
        ("profile = 'trian'", "", "", f"profile = trian ({HERE}): choose one of browse, train, export"),
        ("mountpoint = 'x'", "", "", f"mountpoint ({HERE}): write the whole path"),
        ("mountpoint = 1", "", "", f"mountpoint ({HERE}): write it as text"),
        ("allow_delete = true", "", "", f"allow_delete = true ({HERE}) is for writable mounts: give rw = true, too"),
        ("rw = true", "--snapshot x", "", f"--snapshot x cannot be together with rw = true ({HERE})"),
        ("", "--write-back 5", "", "--write-back 5 is for writable mounts: give --rw, too"),
        ("", "-o size_limit=1g", "", "-o size_limit=1g is for writable mounts: give -o rw, too"),
        ("", "--shutdown-timeout 5", "", "--shutdown-timeout 5 is for writable mounts: give --rw, too"),
        ("", "--rw --shutdown-timeout soon", "", "--shutdown-timeout soon: write seconds, 0 to 86400"),
        ("", "", "SHARDFS_ALLOW_DELETE=1", "SHARDFS_ALLOW_DELETE=1 is for writable mounts: give SHARDFS_RW=1, too"),
        (
            "",
            "--cache-raw always",
            "SHARDFS_CACHE_SIZE=0",
            "--cache-raw always cannot be together with SHARDFS_CACHE_SIZE",
        ),
        ("", "-o index,no_index", "", "-o no_index,index: choose one of the two"),
        ("", "-o memroy=1G", "", "-o memroy=1G: there is no such option; did you mean memory=?"),
        ("", "", "SHARDFS_MEMROY=1G", "SHARDFS_MEMROY in the environment is no setting; did you mean SHARDFS_MEMORY?"),
        ("", "", "SHARDFS_NO_INDEX=1", "SHARDFS_NO_INDEX in the environment is no setting; write SHARDFS_INDEX=0"),
        ("", "", "SHARDFS_RW=maybe", "SHARDFS_RW=maybe: write 1 or 0"),
        ("", "", "SHARDFS_REFRESH=soon", "SHARDFS_REFRESH=soon: write seconds"),
        ("", "--deadline 0.1", "", "--deadline 0.1: write seconds, 0.5 to 86400"),
        ("= 1", "", "", "{file} is no TOML: Invalid statement (at line 2, column 1)"),
    ],
)
def test_errors_name_the_setting_and_the_place(text: str, words: str, environment: str, said: str) -> None:
    path = write(f"[mount.m]\n{text}\nstore = 's3://b/x'\n" + ("" if "mountpoint" in text else "mountpoint = '/m'\n"))
    variables = dict([environment.split("=")]) if environment else {}
    with pytest.raises(BadSettingError, match="^" + re.escape(said.format(file=path))):
        settled("mount", "m", *words.split(), **variables)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mounts.m.store = '/x'", "mounts ({file}, line 1): there is no such setting; did you mean mount?"),
        ("mount = 1", "{file}: mount is for sections, [mount.NAME]"),
        ("mount.m = 1", "{file}: write [mount.m]"),
        ("[mount.m]\nmountpoint = '/m'", "[mount.m] ({file}, line 1) does not say store"),
        ("[mount.m]\nstore = '/x'", "[mount.m] ({file}, line 1) does not say mountpoint"),
        ("[mount.mm]\nstore = '/x'", "{file} has no [mount.m]; did you mean mm?"),
        ("[mount.other]\nstore = '/x'", "{file} has no [mount.m]; known are: other"),
        ("\xff", "{file} is no TOML"),
    ],
)
def test_errors_of_the_file_as_a_whole(text: str, said: str) -> None:
    path = write("")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadSettingError, match="^" + re.escape(said.format(file=path))):
        settled("mount", "m")


def test_a_file_that_cannot_be_one(tmp_path: Path) -> None:
    path = write("#" * (config.CONFIG_FILE + 1))
    with pytest.raises(BadSettingError, match="that is no configuration"):
        settled("ls", "x")
    path.unlink()
    with pytest.raises(
        BadSettingError, match=re.escape(f"m: there is no {path} that says what it is; to mount a store")
    ):
        settled("mount", "m")
    path.mkdir()
    with pytest.raises(BadSettingError, match=f"{path} cannot be read: Is a directory"):
        settled("ls", "x")


def test_what_is_said_for_all_counts_where_it_fits() -> None:
    write("endpoint = 'http://m'\nwrite_back = 9\ncache_dir = '/c'\nallow_delete = true\n")
    near, found = settled("mount", "/s", "m", SHARDFS_OFFLINE="1")
    assert (near.endpoint, near.write_back, near.cache_dir, near.offline, near.allow_delete) == (
        None,
        5,
        None,
        False,
        False,
    )
    assert found.facts()["endpoint"] == {
        "value": None,
        "from": "default",
        "unused": f"endpoint = http://m ({config_path()}, line 1)",
    }
    far, _ = settled("mount", "s3://b/x", "m", "--rw", SHARDFS_OFFLINE="1")
    assert (far.endpoint, far.write_back, far.cache_dir, far.offline, far.allow_delete) == (
        "http://m",
        9,
        "/c",
        True,
        True,
    )
    web, _ = settled("mount", "https://h/x", "m")
    assert (web.endpoint, web.cache_dir) == (None, "/c")
    assert settled("mount", "/s", "m", "--cache-raw", "again")[0].cache_dir == "/c"


@pytest.mark.parametrize(
    ("store", "words", "said"),
    [
        ("/s", "--endpoint http://u:p@m", "--endpoint http://m is for s3://, gs:// and az://; /s is on this machine"),
        ("/s", "-o deadline=9", "-o deadline=9 is for stores far away; /s is on this machine"),
        ("/s", "--cache-size 1G", "--cache-size 1G is for stores far away, and with cache_raw; /s is on this machine"),
        ("https://h/x", "--anonymous", "--anonymous is for s3://, gs:// and az://; https://h/x is something else"),
        ("m", "", "offline = true ({file}, line 3, [mount.m]) is for stores far away; /data is on this machine"),
    ],
)
def test_what_is_said_for_one_mount_must_fit_it(store: str, words: str, said: str) -> None:
    path = write("[mount.m]\nstore = '/data'\noffline = true\nmountpoint = '/m'\n")
    with pytest.raises(BadSettingError, match="^" + re.escape(said.format(file=path)) + "$"):
        settled("mount", store, "/m", *words.split())


def test_what_lost_its_ground_nearer_by_does_not_count() -> None:
    write("[mount.m]\nstore = '/s'\nmountpoint = '/m'\nrw = true\nallow_delete = true\nwrite_back = 3\n")
    assert settled("mount", "m")[0].allow_delete
    for words in (("-o", "ro"), ("--no-rw",)):
        arguments, _ = settled("mount", "m", *words)
        assert (arguments.rw, arguments.allow_delete, arguments.write_back) == (False, False, 5)
    with pytest.raises(BadSettingError, match="--allow-delete is for writable mounts"):
        settled("mount", "m", "--allow-delete", "-o", "ro")


def test_mount8s_rw_says_nothing_of_what_the_file_says() -> None:
    write("[mount.m]\nstore = '/s'\nrw = true\n")
    for name, writable in (("m", True), ("/s", False)):
        arguments = build_parser().parse_args(["mount", name, "/m", "-o", "rw,dev"])
        arguments.from_mount8 = True
        found = settle(arguments, {})
        assert (arguments.rw, found.read_only_unasked) == (writable, not writable)


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_profile_is_below_all_that_is_said(name: str) -> None:
    arguments, found = settled("mount", "s3://b/x", "m", "--profile", name)
    for setting, text in PRESETS[name].items():
        assert found.facts()[setting]["from"] == "profile"
        assert getattr(arguments, setting) == BY_NAME[setting].parse(text)
    assert {one.setting.name for one in found.holds.values() if one.source == "profile"} == set(PRESETS[name])
    write("memory = '1G'\nprofile = 'train'\n")
    arguments, found = settled("mount", "s3://b/x", "m", "--profile", name)
    assert arguments.memory == 1 << 30
    assert found.facts()["memory"]["from"] == "file"
    assert arguments.profile == name


def test_a_profile_counts_for_what_looks_at_the_same_store() -> None:
    write("[mount.m]\nstore = '/s'\nprofile = 'train'\n")
    for command in ("ls", "cat", "index", "verify"):
        words = (command, "m", "f") if command == "cat" else (command, "m")
        assert settled(*words)[0].arrays == "npy"
    assert settled("mount", "m", "/m")[0].refresh == math.inf
    assert settled("mount", "m", "/m", "-o", "cache_raw=off")[1].facts()["cache_raw"] == {"value": "off", "from": "-o"}


# --- shardfs config ---------------------------------------------------------------------------------------------------


def show(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["config", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_config_tells_values_and_places(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("refresh = 'manual'\n[mount.m]\nstore = 's3://b/x'\nmountpoint = '/mnt/m'\nprofile = 'train'\n")
    monkeypatch.setenv("SHARDFS_MIN_FREE", "2G")
    status, out, err = show(capsys, "m", "--json", "-o", "deadline=9", "--no-index")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert set(found) == {"store", "mountpoint", *BY_NAME}
    assert found["store"] == {"value": "s3://b/x", "from": "file", "where": f"{path}, line 3, [mount.m]"}
    assert found["refresh"] == {"value": "manual", "from": "file", "where": f"{path}, line 1"}
    assert found["min_free"] == {"value": 2 << 30, "from": "environment", "where": "SHARDFS_MIN_FREE"}
    assert found["arrays"] == {"value": "npy", "from": "profile", "where": "train"}
    assert found["deadline"] == {"value": 9.0, "from": "-o"}
    assert found["index"] == {"value": False, "from": "flag"}
    assert found["text"] == {"value": "json", "from": "default"}
    assert found["memory"]["value"] == config.memory_available() // 2
    status, out, err = show(capsys, "m")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert (status, rows["refresh"], rows["arrays"]) == (0, ["manual", "line 1"], ["npy", "profile train"])
    assert re.search(r"^min_free +2\.0 GiB +SHARDFS_MIN_FREE$", out, re.MULTILINE)
    assert err == f"shardfs: the file is {path}; it has m\n"


def test_config_shows_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write("endpoint = 'http://u:hidden1@h/p?hidden2'\n[mount.m]\nstore = 's3://k:hidden3@b/x?t=hidden4'\n")
    monkeypatch.setenv("SHARDFS_ENDPOINT", "http://u:hidden5@h")
    told = [show(capsys, *words) for words in (("m",), ("m", "--json"), ("/s",), ("/s", "--json"), ())]
    told.append(show(capsys, "m", "-o", "endpont=http://u:hidden6@h?hidden7"))
    told.append(show(capsys, "m", "--deadline", "http://u:hidden8@h"))
    told.append(show(capsys, "m", "--endpont", "http://u:hidden9@h", "--endpont=http://u:hidden9@h"))
    assert [status for status, _, _ in told] == [0, 0, 0, 0, 0, 2, 2, 2]
    assert "hidden" not in "".join(out + err for _, out, err in told)
    assert "http://h" in told[0][1]


def test_config_looks_through_all_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("memory = '1G'\n[mount.a]\nstore = '/s'\n[mount.b]\nstore = '/s'\nallow_delete = true\n")
    assert show(capsys, "a")[0] == 0
    status, out, err = show(capsys)
    assert (status, out) == (2, "")
    assert f"allow_delete = true ({path}, line 6, [mount.b])" in err
    status, _, err = show(capsys, "c")
    assert (status, err) == (2, f"shardfs: {path} has no [mount.c]; known are: a, b; nor is there a store c\n")
    path.unlink()
    assert show(capsys)[2] == f"shardfs: there is no {path}\n"


def test_the_file_is_not_read_where_it_is_not_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """A mount can be ended and asked whatever the file has come to."""
    write("[mount")
    for words in (["umount", "/proc"], ["umount", "./none"], ["status", "/none"]):
        assert cli.main(words) == 4
        assert "TOML" not in capsys.readouterr().err


@pytest.mark.parametrize("store", ["/s", "s3://b/x", "https://h/x"])
def test_facts_are_json(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for refresh in ("immutable", "manual", "5"):
        status, out, _ = show(capsys, store, "--refresh", refresh, "--rw", "--write-back", "off", "--json")
        assert status == 0
        found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert found["write_back"]["value"] == "off"
