"""When a request that takes too long is asked a second time beside the first: by how long the last ones took, and only
for a small share of all. Knows nothing of requests.
"""

from __future__ import annotations

import threading
from collections import deque

from shardfs import config


class Hedging:
    """Of one store. Thread-safe."""

    def __init__(self) -> None:
        self.asked = 0
        """Second requests so far."""
        self.won = 0
        """Of these, those whose answer came first."""
        self._took: deque[float] = deque(maxlen=config.HEDGE_RECENT)
        self._noted = 0
        self._lock = threading.Lock()
        self._delay = config.HEDGE_LEAST

    @property
    def delay(self) -> float:
        """Seconds after which a request takes too long."""
        return self._delay

    def took(self, seconds: float) -> None:
        """A request was answered after so long."""
        with self._lock:
            self._took.append(seconds)
            self._noted += 1
            if self._noted % 10 == 0:
                ordered = sorted(self._took)
                late = ordered[len(ordered) * 95 // 100]
                self._delay = max(config.HEDGE_LEAST, config.HEDGE_TIMES * late)

    def may(self) -> bool:
        """Whether one more is within the share; it counts then."""
        with self._lock:
            if self.asked >= config.HEDGE_FREE + self._noted * config.HEDGE_SHARE // 100:
                return False
            self.asked += 1
            return True
