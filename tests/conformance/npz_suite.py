"""The conformance subclass of the driver in docs/FORMATS.md. Subclasses provide `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.driver_suite import DriverSuite


class NpzSuite(DriverSuite):
    driver = "npz"

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [
            {
                "x": rng.random(size // 8),
                "image": rng.integers(0, 256, (9, 8, 3), "u1"),
                "label": at,
                "name": f"né {at}",
            }
            for at in range(count)
        ]

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        path = store / f"{key}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
        return path
