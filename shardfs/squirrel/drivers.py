"""Drivers: a store to read from, and the stream of its samples. Knows nothing of how a store keeps them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from shardfs.iterstream import Composable, IterableSource, hooked
from shardfs.squirrel.serializers import JsonlSerializer, MessagepackSerializer, SquirrelSerializer
from shardfs.squirrel.stores import AbstractStore, SquirrelStore


class IterDriver(ABC):
    """What samples can be streamed from."""

    name: str

    @abstractmethod
    def get_iter(self, **kwargs: Any) -> Composable:
        """The stream of what there is."""


class MapDriver(IterDriver):
    """What has keys, and something under each."""

    @abstractmethod
    def get(self, key: Any, **kwargs: Any) -> Any:
        """What is under `key`."""

    @abstractmethod
    def keys(self, **kwargs: Any) -> Iterable[Any]:
        """All keys."""

    def get_iter(  # type: ignore[override]
        self,
        keys_iterable: Iterable[Any] | None = None,
        shuffle_key_buffer: int = 1,
        key_hooks: Iterable[Any] | None = None,
        max_workers: int | None = None,
        prefetch_buffer: int | None = None,
        shuffle_item_buffer: int = 1,
        flatten: bool = False,
        keys_kwargs: dict[str, Any] | None = None,
        get_kwargs: dict[str, Any] | None = None,
        key_shuffle_kwargs: dict[str, Any] | None = None,
        item_shuffle_kwargs: dict[str, Any] | None = None,
    ) -> Composable:
        """The stream of what is under all keys (or those of `keys_iterable`), in their order unless it is shuffled.

        `key_hooks` are steps for the keys. What is under `prefetch_buffer` keys is fetched ahead by `max_workers`
        threads (see `async_map`; 0 or 1: by none). With `flatten` the stream is of what these consist of: samples.
        """
        keys: Iterable[Any] | Callable[[], Iterable[Any]] = (
            partial(self.keys, **(keys_kwargs or {})) if keys_iterable is None else keys_iterable
        )
        stream = IterableSource(keys).shuffle(shuffle_key_buffer, **(key_shuffle_kwargs or {}))
        for hook in key_hooks or ():
            stream = hooked(stream, hook)
        fetch = partial(self.get, **(get_kwargs or {}))
        if max_workers is not None and max_workers <= 1:
            stream = stream.map(fetch)
        else:
            stream = stream.async_map(fetch, prefetch_buffer, max_workers)
        if flatten:
            stream = stream.flatten()
        return stream.shuffle(shuffle_item_buffer, **(item_shuffle_kwargs or {}))


class StoreDriver(MapDriver):
    """A driver over the store that `store` gives: a SquirrelStore at `url` with `serializer`, or one of one's own."""

    name = "store_driver"

    def __init__(
        self, url: str, serializer: SquirrelSerializer, storage_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.url = url
        self.serializer = serializer
        self.storage_options = storage_options or {}
        self._store: AbstractStore | None = None

    @property
    def store(self) -> AbstractStore:
        """The store, made when it is first asked for."""
        if self._store is None:
            self._store = SquirrelStore(self.url, self.serializer, **self.storage_options)
        return self._store

    def get(self, key: Any, **kwargs: Any) -> Iterable[Any]:
        """The samples of the shard `key`: what `store.get` returns."""
        return self.store.get(key, **kwargs)

    def keys(self, **kwargs: Any) -> Iterable[Any]:
        """What `store.keys` returns."""
        return self.store.keys(**kwargs)

    def get_iter(self, flatten: bool = True, **kwargs: Any) -> Composable:  # type: ignore[override]
        """The stream of all samples (of shards, without `flatten`); see MapDriver."""
        return super().get_iter(flatten=flatten, **kwargs)


class MessagepackDriver(StoreDriver):
    """A driver over a store of msgpack shards."""

    name = "messagepack"

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(url, MessagepackSerializer(), storage_options, **kwargs)


class JsonlDriver(StoreDriver):
    """A driver over a store of JSON lines."""

    name = "jsonl"

    def __init__(
        self,
        url: str,
        deser_hook: Callable[[dict[str, Any]], Any] | None = None,
        storage_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(url, JsonlSerializer(deser_hook), storage_options, **kwargs)
