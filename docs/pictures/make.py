"""The pictures of README.md, made of what a real mount shows: a terminal session, and a folder's thumbnails.

    python docs/pictures/make.py [DIRECTORY]     writes session.svg and thumbnails.png there, else beside this file

It makes the demo's store of photographs in a temporary directory, mounts it, runs the commands below and draws what
they print. Needs what ./run installs, and the right to mount.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "demo")]

from demo import make_squirrel  # noqa: E402  (found by the line above)

SHARDFS = f"{sys.executable} -m shardfs"
COMMANDS = (
    "shardfs mount store mnt",
    "ls mnt",
    "ls -go mnt/shard_0 | head -6",
    "file -b mnt/shard_0/000001.photo.jpg | cut -c -60",
    "jq -c . mnt/shard_0/000001.json",
    "cat mnt/*/*.json | jq -r '.name[:4]' | sort | uniq -c",
    "du -sh --apparent-size mnt/shard_1 store/shard_1.gz",
    "shardfs umount mnt",
)
COLUMNS, SIZE, LINE, MARGIN = 100, 13, 18, 14
INK, PROMPT, PAPER, BAR = "#d8dee9", "#a3be8c", "#2e3440", "#3b4252"
THUMBNAIL, ACROSS, DOWN, CAPTION = (120, 80), 5, 3, 14


def session(folder: Path) -> list[str]:
    """Run the commands as a person would; their lines and what they print."""
    made: list[str] = []
    for command in COMMANDS:
        real = command.replace("shardfs ", f"{SHARDFS} ", 1) if command.startswith("shardfs ") else command
        done = subprocess.run(["sh", "-c", real], cwd=folder, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise SystemExit(f"{command}: {done.stderr}")
        made += [f"$ {command}", *(done.stdout + done.stderr).splitlines()]
    return [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in made]


def terminal(lines: list[str]) -> str:
    """A terminal's window as SVG, 100 columns of a monospaced font."""
    width, height = int(COLUMNS * SIZE * 0.602) + 2 * MARGIN, LINE * (len(lines) + 2) + MARGIN
    rows = []
    for number, line in enumerate(lines):
        y = LINE * (number + 2) + MARGIN // 2
        ink = PROMPT if line.startswith("$ ") else INK
        rows.append(f'<text x="{MARGIN}" y="{y}" fill="{ink}" xml:space="preserve">{escape(line)}</text>')
    dots = "".join(
        f'<circle cx="{MARGIN + 6 + 18 * at}" cy="13" r="5" fill="{ink}"/>'
        for at, ink in enumerate(("#bf616a", "#ebcb8b", "#a3be8c"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" '
        f'font-size="{SIZE}">\n<title>A session with shardfs</title>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n'
        f'<path d="M0 26V8a8 8 0 0 1 8-8h{width - 16}a8 8 0 0 1 8 8v18z" fill="{BAR}"/>{dots}\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


def thumbnails(folder: Path) -> PIL.Image.Image:
    """The photographs of a directory as a file manager shows them, with their names."""
    width, height = THUMBNAIL[0] + 10, THUMBNAIL[1] + CAPTION + 10
    sheet = PIL.Image.new("RGB", (ACROSS * width + 10, DOWN * height + 10), "#f4f4f2")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(10)
    for number, path in enumerate(sorted(folder.glob("*.photo.jpg"))[: ACROSS * DOWN]):
        left, top = 10 + number % ACROSS * width, 10 + number // ACROSS * height
        with PIL.Image.open(path) as image:
            sheet.paste(image.resize(THUMBNAIL), (left, top))
        draw.text((left, top + THUMBNAIL[1] + 2), path.name, fill="#333333", font=font)
    return sheet.quantize(96)


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    with tempfile.TemporaryDirectory(prefix="tour-") as name:
        folder = Path(name)
        make_squirrel(folder / "store")
        (target / "session.svg").write_text(terminal(session(folder)), encoding="utf-8")
        subprocess.run([*SHARDFS.split(), "mount", "store", "mnt"], cwd=folder, check=True, timeout=60)
        try:
            thumbnails(folder / "mnt/shard_0").save(target / "thumbnails.png", optimize=True)
        finally:
            subprocess.run([*SHARDFS.split(), "umount", "mnt"], cwd=folder, check=True, timeout=60)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
