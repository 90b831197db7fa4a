"""The example of docs/FORMATS.md, installed: a package of its own that offers a driver by an entry point."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "shardfs-npz"


def install(target: Path) -> Path:
    """Put into `target` what pip would put there; whoever has that on the path has the driver. No network, no build."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXAMPLE / "npz_driver.py", target)
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}", ""]
    (info / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    made = []
    for group, points in project["entry-points"].items():
        made += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(made), encoding="utf-8")
    return target
