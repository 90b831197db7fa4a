"""What in a data set of MosaicML Streaming depends on the order of its shards: which may change, which may grow.

Samples are numbered through a split, so only behind its last samples can there be more of them. A merged index names
shards that the indexes below it name, too: which of them a reader uses is not known here. Pure: works on what indexes
say. Source of all format facts: what mosaicml-streaming 0.13.0 writes and reads, found by running it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shardfs.drivers.numbered import Standing
from shardfs.drivers.streaming_index import Place
from shardfs.errors import NotWritableError, RenumberingError
from shardfs.model import Key


def check_alone(splits: Mapping[str, Iterable[Place]], what: str, index: str, places: Iterable[Place]) -> None:
    """NotWritableError where one of `splits` other than `index` has any of these shards, too."""
    names = {place.raw.name for place in places}
    for other, others in splits.items():
        if other != index and any(place.raw.name in names for place in others):
            raise NotWritableError(f"{what} is in two indexes, {index} and {other}, and only one could be changed")


def check_numbers(key: str, shards: list[Any], at: int, samples: int) -> None:
    """RenumberingError if the shard at a place in an index gets another number of samples, and there are samples behind
    it."""
    before = shards[at]["samples"]
    if samples != before and any(shard["samples"] for shard in shards[at + 1 :]):
        text = f"{key} has {before} samples and would have {samples}: those of the shards behind it"
        raise RenumberingError(f"{text} would all get other numbers")


def standing(splits: Mapping[str, Iterable[Place]], index: str, key: Key, place: Place) -> Standing:
    """What may be done to a key that has its place in an index."""
    try:
        check_alone(splits, str(key), index, [place])
    except NotWritableError as error:
        return Standing(refused=str(error))
    behind = place.samples_through - place.first_sample - place.samples
    return Standing(closed=f"{behind} samples behind it in its split would get other numbers" if behind else None)


def key_before(splits: Mapping[str, list[Place]], index: str, places: Mapping[Key, Place]) -> Key | None:
    """The key behind whose samples those of a new one would come; None in a split without any. NotWritableError where
    an index that has the split's shards would not have the new one."""
    inside = splits.get(index, [])
    check_alone(splits, "what it would come behind", index, inside)
    last = next((place.raw.name for place in reversed(inside) if place.samples), None)
    return next((key for key, place in places.items() if place.raw.name == last), None)
