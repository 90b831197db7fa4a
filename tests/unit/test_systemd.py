"""The units are such as systemd accepts, as safe as they can be, and what fstab's generator makes names our helper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shardfs.commands.said import from_words

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "shardfs@.service"
USERS = SYSTEMD / "user/shardfs@.service"
GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")

EXPOSURE = {"shardfs@.service": 3.8, "shardfs@local.conf": 3.4, "shardfs@writable.conf": 4.0}
"""The most that `systemd-analyze security` (252) may find, of 10."""


def analyze(*words: str | Path, **environment: str) -> tuple[int, str]:
    """Exit status of systemd-analyze, and what it says."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: install the package systemd, as ./run test does")
    done = subprocess.run(
        ["systemd-analyze", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LC_ALL": "C", **environment},
    )
    return done.returncode, done.stdout + done.stderr


def instance(folder: Path, unit: Path, *additions: str) -> Path:
    """A unit under the name of an instance, with drop-ins of ours."""
    made = folder / "shardfs@photos.service"
    made.write_text(unit.read_text())
    for name in additions:
        beside = folder / "shardfs@photos.service.d"
        beside.mkdir(exist_ok=True)
        (beside / name.replace("shardfs@", "")).write_text((SYSTEMD / name).read_text())
    return made


def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    made = instance(tmp_path, UNIT, "shardfs@local.conf", "shardfs@writable.conf")
    status, said = analyze("verify", "--man=no", "--recursive-errors=no", made)
    assert (status, [line for line in said.splitlines() if "shardfs" in line]) == (0, [])


def test_systemd_accepts_the_unit_of_users(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    made = instance(tmp_path, USERS)
    words = ("verify", "--user", "--man=no", "--recursive-errors=no", made)
    status, said = analyze(*words, XDG_RUNTIME_DIR=str(tmp_path / "run"))
    assert (status, [line for line in said.splitlines() if "shardfs" in line]) == (0, [])


def test_systemd_accepts_mount_and_automount(tmp_path: Path) -> None:
    units = [SYSTEMD / "mnt-photos.mount", SYSTEMD / "mnt-photos.automount"]
    status, said = analyze("verify", "--man=no", "--recursive-errors=no", *units)
    assert (status, [line for line in said.splitlines() if "photos" in line]) == (0, [])


@pytest.mark.parametrize("addition", [None, "shardfs@local.conf", "shardfs@writable.conf"])
def test_no_more_is_allowed_than_was(tmp_path: Path, addition: str | None) -> None:
    made = instance(tmp_path, UNIT, *([] if addition is None else [addition]))
    _, version = analyze("--version")
    # other releases look at more, or at other things
    limit = EXPOSURE[addition or "shardfs@.service"] + (0 if version.startswith("systemd 252 ") else 1)
    words = ("security", "--offline=true", "--no-pager", f"--threshold={limit * 10:.0f}", made)
    status, said = analyze(*words)
    assert status == 0, said
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= limit
    if version.startswith("systemd 252 "):  # what the documents say is what it prints
        assert float(found[1]) == EXPOSURE[addition or "shardfs@.service"]


def test_the_documents_have_these_figures() -> None:
    text = " ".join((SYSTEMD.parent / "docs/OPERATIONS.md").read_text(encoding="utf-8").split())
    plain, local, writable = EXPOSURE.values()
    assert (
        f"`systemd-analyze security` (252) gives `shardfs@.service` {plain}, and {local} with `shardfs@local.conf`; "
        f"{writable} with `shardfs@writable.conf`"
    ) in text


def test_what_a_service_needs_in_order_to_work() -> None:
    """What would hide the mount, or take setuid from fusermount3, is in neither unit."""
    own_namespace = (
        *("PrivateMounts", "PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset"),
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
        *("RootDirectory", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "TemporaryFileSystem"),
    )
    no_new_rights = ("NoNewPrivileges", "SystemCallFilter", "RestrictNamespaces", "MemoryDenyWriteExecute", "User")
    for unit, absent in ((UNIT, own_namespace), (USERS, (*own_namespace, *no_new_rights))):
        lines = unit.read_text().splitlines()
        assert {"Type=notify", "NotifyAccess=main", "KillMode=mixed", "WatchdogSec=60"} <= set(lines)
        assert any(line.startswith("ExecStart=") and " mount -f " in line for line in lines)
        assert any(line.startswith("ExecStop=") and " umount " in line for line in lines)
        assert [line for line in lines if line.partition("=")[0] in absent] == []


def test_the_generator_of_fstab(tmp_path: Path) -> None:
    """What systemd makes of our lines: a mount of type shardfs, for which it calls mount(8), and an automount."""
    if not GENERATOR.exists():
        pytest.skip("no systemd-fstab-generator here")
    fstab = tmp_path / "fstab"
    fstab.write_text(
        "/srv/photos /mnt/photos shardfs ro,_netdev,nofail,x-systemd.automount,memory=1G 0 0\n"
        "s3://bucket/data /mnt/far fuse.shardfs noauto,allow_other,anonymous 0 0\n"
    )
    places = [tmp_path / name for name in ("normal", "early", "late")]
    for place in places:
        place.mkdir()
    done = subprocess.run(
        [GENERATOR, *places],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SYSTEMD_FSTAB": str(fstab), "SYSTEMD_LOG_TARGET": "console"},
    )
    assert done.returncode == 0, done.stderr
    mount = (places[0] / "mnt-photos.mount").read_text().splitlines()
    assert {"What=/srv/photos", "Where=/mnt/photos", "Type=shardfs"} <= set(mount)
    assert "Where=/mnt/photos" in (places[0] / "mnt-photos.automount").read_text().splitlines()
    far = (places[0] / "mnt-far.mount").read_text().splitlines()
    assert {"What=s3://bucket/data", "Type=fuse.shardfs"} <= set(far)
    required = [str(path.relative_to(places[0])) for path in places[0].glob("*.target.*/mnt-*")]
    assert required == ["remote-fs.target.wants/mnt-photos.automount"]
    options = [line.partition("=")[2] for line in (*mount, *far) if line.startswith("Options=")]
    words = [{one.setting.name: one.text for one in from_words([option], True)[0]} for option in options]
    assert words == [{"rw": False, "memory": "1G"}, {"allow_other": True, "anonymous": True}]
