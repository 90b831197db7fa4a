"""One loader reading one data set for `tests.bench.loaders`, in the environment of its package.

    python loaders_side.py NAME PATH WORKERS     prints one JSON object: seconds and images of each of two epochs, and a
                                                 sum over all labels and some pixels, which tells whether all were seen
    python loaders_side.py litdata-write SOURCE PATH

Each loader decodes JPEG by PIL, in the same way, in batches of 64, shuffled as it shuffles. torchvision's compiled
operators are not needed: the two that its import asks for are declared.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 64
BUFFER = 256
"""Samples that a stream is shuffled within."""


def decoded(image: Any) -> Any:
    """The picture as uint8 (3, 224, 224), cut out of its middle."""
    import numpy as np
    import torch

    pixels = np.asarray(image.convert("RGB"))
    top, left = (pixels.shape[0] - 224) // 2, (pixels.shape[1] - 224) // 2
    cut = np.ascontiguousarray(pixels[top : top + 224, left : left + 224].transpose(2, 0, 1))
    return torch.from_numpy(cut)


def from_bytes(data: bytes) -> Any:
    from PIL import Image

    return decoded(Image.open(io.BytesIO(data)))


def image_folder(path: str) -> tuple[Any, bool]:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision.datasets import ImageFolder

    image_folder.library = library  # type: ignore[attr-defined]  # its end would take the operators away
    return ImageFolder(path, transform=decoded), True


def streaming(path: str) -> tuple[Any, bool]:
    from streaming import StreamingDataset

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Any:
            row = super().__getitem__(at)
            return decoded(row["jpg"]), int(row["label"])  # the column's encoding is jpeg: it is a picture already

    return Images(local=path, shuffle=True, batch_size=BATCH, num_canonical_nodes=1), False


def webdataset(path: str) -> tuple[Any, bool]:
    import webdataset

    tars = sorted(str(tar) for tar in Path(path).glob("*.tar"))
    made = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
    return made.shuffle(BUFFER).to_tuple("jpg", "cls").map_tuple(from_bytes, int), False


def litdata(path: str) -> tuple[Any, bool]:
    from litdata import StreamingDataset

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            data, label = super().__getitem__(at)
            return from_bytes(data), int(label)

    return Images(path, shuffle=True), False


def _pair(where: tuple[str, int]) -> tuple[bytes, int]:
    return Path(where[0]).read_bytes(), where[1]


def litdata_write(source: str, path: str) -> None:
    from litdata import optimize

    classes = sorted(entry.name for entry in os.scandir(source))
    inputs = [(str(file), label) for label, name in enumerate(classes) for file in sorted(Path(source, name).iterdir())]
    optimize(_pair, inputs, output_dir=path, chunk_bytes="64MB", num_workers=1)


def epoch(loader: Any) -> tuple[float, int, int]:
    begun = time.perf_counter()
    count = seen = 0
    for images, labels in loader:
        count += len(images)
        seen += int(labels.sum()) + int(images[:, :, ::56, ::56].sum())
    return time.perf_counter() - begun, count, seen


def main(name: str, path: str, workers: int) -> None:
    from torch.utils.data import DataLoader

    made, shuffle = {
        "image_folder": image_folder,
        "streaming": streaming,
        "webdataset": webdataset,
        "litdata": litdata,
    }[name](path)
    words: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers, "persistent_workers": workers > 0}
    if name == "litdata":
        from litdata import StreamingDataLoader

        loader: Any = StreamingDataLoader(made, **words)
    else:
        loader = DataLoader(made, shuffle=shuffle or None, **words)
    print(json.dumps({"epochs": [epoch(loader) for _ in range(2)]}))


if __name__ == "__main__":
    if sys.argv[1] == "litdata-write":
        litdata_write(*sys.argv[2:])
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
