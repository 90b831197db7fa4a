"""Streams of samples, and the steps they go through: `IterableSource(keys).async_map(store.get).flatten()`.

The steps have the names and arguments that squirrel-core's iterstream gives them. Nothing runs before the stream is
iterated, and nothing is held but what a step's buffer is for. Knows nothing of stores, samples or files.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from inspect import isclass
from typing import Any

from shardfs import config
from shardfs.errors import BadSettingError, MissingSystemError

Step = Callable[..., Iterator[Any]]
"""What makes an iterator of an iterator: one step of a stream."""

__all__ = ["Composable", "IterableSource"]


class Composable(Iterable[Any]):
    """A stream: an iterable whose methods give longer streams. May be iterated again if its source may."""

    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]] = ()) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        """The items of the source; a source that is a function is called for them, each time."""
        return iter(self.source() if callable(self.source) else self.source)

    def source_(self, source: Iterable[Any]) -> Composable:
        """Set where the items come from, and return this stream."""
        self.source = source
        return self

    def to(self, step: Step, *args: Any, **kw: Any) -> Composable:
        """The stream that `step(iterator, *args, **kw)` makes of this one."""
        return _Stepped(self, partial(_applied, step, args, kw))

    def compose(self, constructor: type[Composable], *args: Any, **kw: Any) -> Composable:
        """The stream of a class of one's own, whose `__iter__` reads `self.source`; it is made without a source."""
        return constructor(*args, **kw).source_(self)

    def map(self, callback: Callable[..., Any], **kw: Any) -> Composable:
        """What `callback(item, **kw)` returns for each item."""
        return self.to(_mapped, partial(callback, **kw))

    def async_map(
        self,
        callback: Callable[..., Any],
        buffer: int | None = None,
        max_workers: int | None = None,
        executor: Executor | None = None,
        **kw: Any,
    ) -> Composable:
        """What `callback(item, **kw)` returns for each item, in the order of the items, worked out by several threads.

        At most `buffer` items are under way or waiting to be taken: one more than there are workers unless it is given
        (squirrel-core takes 100, which may be 100 shards in memory). `max_workers` threads are started, by default four
        more than there are processors and 32 at most; with an `executor` of one's own, which is left running, it says
        nothing. What a callback raises is raised to who iterates, in its item's turn, and ends the stream: what has
        not begun by then is not begun.
        """
        workers = min(config.STREAM_WORKERS, (os.cpu_count() or 1) + 4) if max_workers is None else max_workers
        ahead = workers + config.STREAM_AHEAD if buffer is None else buffer
        if workers < 1 or ahead < 1:
            raise BadSettingError(f"async_map: max_workers {workers} and buffer {ahead} must be 1 or more")
        return self.to(_async_mapped, partial(callback, **kw), ahead, workers, executor)

    def filter(self, predicate: Callable[[Any], Any]) -> Composable:
        """The items for which `predicate` is true."""
        return self.to(_filtered, predicate)

    def flatten(self) -> Composable:
        """The members of each item, one after the other."""
        return self.to(itertools.chain.from_iterable)

    def batched(
        self, batchsize: int, collation_fn: Callable[[list[Any]], Any] | None = None, drop_last_if_not_full: bool = True
    ) -> Composable:
        """Lists of `batchsize` items, or what `collation_fn` makes of each. The last one is left out if it is short,
        unless `drop_last_if_not_full` is False."""
        if batchsize < 1:
            raise BadSettingError(f"batched: batchsize {batchsize} must be 1 or more")
        return self.to(_batched, batchsize, collation_fn, drop_last_if_not_full)

    def shuffle(
        self,
        size: int | None = config.SHUFFLE_BUFFER,
        initial: int = config.SHUFFLE_INITIAL,
        rng: random.Random | None = None,
        seed: int | float | str | bytes | bytearray | None = None,
    ) -> Composable:
        """The items in an order that is random within a buffer of `size`; unchanged if that is below 2.

        The first comes as soon as `initial` items are held. `seed` makes the order the same each time, `rng` draws it.
        """
        size = config.SHUFFLE_BUFFER if size is None else size
        return self if size < 2 else self.to(_shuffled, size, min(initial, size), rng, seed)

    def take(self, n: int | None) -> Composable:
        """The first `n` items; all of them for None."""
        return self if n is None else self.to(_taken, n)

    def tqdm(self, **kw: Any) -> Composable:
        """The same items, with the progress shown on stderr by the package tqdm, which `kw` are for."""
        return self.to(_with_progress, **kw)

    def collect(self) -> list[Any]:
        """All items, in a list."""
        return list(self)

    def join(self) -> None:
        """Let all items pass, for what the steps do."""
        deque(self, maxlen=0)


class IterableSource(Composable):
    """The beginning of a stream: any iterable, or a function that gives one."""


class _Stepped(Composable):
    def __init__(self, source: Composable, step: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        super().__init__(source)
        self._step = step

    def __iter__(self) -> Iterator[Any]:
        return self._step(iter(self.source))  # type: ignore[arg-type]


def hooked(stream: Composable, hook: Any) -> Composable:
    """`stream` with a hook behind it: a Composable class, a step, or either of them with arguments (a `partial`)."""
    step: Any = hook.func if isinstance(hook, partial) else hook
    args, kw = (hook.args, hook.keywords) if isinstance(hook, partial) else ((), {})
    if isclass(step) and issubclass(step, Composable):
        return stream.compose(step, *args, **kw)
    if not callable(step):
        raise BadSettingError(f"hook {hook!r}: neither a function nor a Composable class")
    return stream.to(step, *args, **kw)


# --- steps: each an iterator over another --------------------------------------------------------------------------


def _applied(step: Step, args: tuple[Any, ...], kw: dict[str, Any], items: Iterator[Any]) -> Iterator[Any]:
    return step(items, *args, **kw)


def _mapped(items: Iterator[Any], callback: Callable[[Any], Any]) -> Iterator[Any]:
    return map(callback, items)


def _filtered(items: Iterator[Any], predicate: Callable[[Any], Any]) -> Iterator[Any]:
    return (item for item in items if predicate(item))


def _taken(items: Iterator[Any], n: int) -> Iterator[Any]:
    return itertools.islice(items, n)


def _batched(
    items: Iterator[Any], size: int, collate: Callable[[list[Any]], Any] | None, drop_short: bool
) -> Iterator[Any]:
    while batch := list(itertools.islice(items, size)):
        if drop_short and len(batch) < size:
            return
        yield batch if collate is None else collate(batch)


def _shuffled(items: Iterator[Any], size: int, initial: int, rng: random.Random | None, seed: Any) -> Iterator[Any]:
    draw = rng or random.Random(seed)
    held: list[Any] = []
    grown = False
    for item in items:
        held.append(item)
        if len(held) < size:
            grown = not grown
            if grown or len(held) < initial:
                continue  # until it is full the buffer grows by an item for each that leaves it
        yield _drawn(held, draw)
    while held:
        yield _drawn(held, draw)


def _drawn(held: list[Any], draw: random.Random) -> Any:
    place = draw.randrange(len(held))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()


def _with_progress(items: Iterator[Any], **kw: Any) -> Iterator[Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingSystemError("showing the progress of a stream needs tqdm: pip install tqdm") from error
    yield from tqdm(items, **kw)


def _async_mapped(
    items: Iterator[Any], callback: Callable[[Any], Any], ahead: int, workers: int, executor: Executor | None
) -> Iterator[Any]:
    pool = executor or ThreadPoolExecutor(workers, "iterstream")
    waiting: deque[Future[Any]] = deque()
    failed: Exception | None = None
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:
                failed = error  # the source's: what came before it is to be had first
                break
            waiting.append(pool.submit(callback, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failed is not None:
            raise failed
    finally:
        for future in waiting:
            future.cancel()
        if executor is None:
            pool.shutdown(wait=True, cancel_futures=True)
