"""What in a data set of MosaicML Streaming depends on the order of its shards: which may change, which may grow.

Samples are numbered through a split, so only behind its last samples can there be more of them. A merged index has the
shards that the indexes below it have, too: what is done to one of them is done to all, the outermost first, as that is
the one that is shown. Pure: works on what indexes say, a mapping of their names to their shards. Source of all format
facts: what mosaicml-streaming 0.13.0 writes and reads, found by running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardfs import config
from shardfs.drivers.numbered import Standing
from shardfs.drivers.streaming_index import Place, key_of
from shardfs.errors import NotWritableError, RenumberingError
from shardfs.model import Key

INDEX = "index.json"
Splits = Mapping[str, list[Place]]


def twins(splits: Splits, place: Place) -> list[Place]:
    """What other indexes say of a shard. NotWritableError where one has another version of it: nobody knows which is
    to be changed."""
    found = []
    for index, others in splits.items():
        for other in others if index != place.split + INDEX else ():
            if other.raw.name == place.raw.name:
                found.append(other)
            elif key_of(other.raw.name, other.format) == key_of(place.raw.name, place.format):
                text = f"{place.split}{INDEX} has {place.raw.name} and {index} {other.raw.name}: merge them anew"
                raise NotWritableError(text)
    return found


def outermost(splits: Splits, split: str) -> tuple[str, list[str]]:
    """To which split a new shard in a split is added first, and to which others then: those below that have the same
    shards."""
    names = {place.raw.name for place in splits.get(split + INDEX, ())}
    above = [
        index.removesuffix(INDEX)
        for index, places in splits.items()
        if split.startswith(index.removesuffix(INDEX)) and any(place.raw.name in names for place in places)
    ]
    ordered = sorted({*above, split}, key=len)
    return ordered[0], ordered[1:]


def check_numbers(key: str, shards: list[Any], at: int, samples: int) -> None:
    """RenumberingError if the shard at a place in an index gets another number of samples, and there are samples behind
    it."""
    before = shards[at]["samples"]
    if samples != before and any(shard["samples"] for shard in shards[at + 1 :]):
        text = f"{key} has {before} samples and would have {samples}: those of the shards behind it"
        raise RenumberingError(f"{text} would all get other numbers")


def check_last(key: str, place: Place) -> None:
    """RenumberingError if there are samples behind those of a shard, and it has any."""
    if place.samples and samples_behind(place):
        text = f"{samples_behind(place)} samples behind {key} in {place.split}{INDEX} would get other numbers"
        raise RenumberingError(text)


def standing(splits: Splits, place: Place) -> Standing:
    """What may be done to a key that has its place in an index."""
    try:
        others = twins(splits, place)
    except NotWritableError as error:
        return Standing(refused=str(error))
    behind = max(map(samples_behind, (place, *others)))
    count = f"{behind} sample{'' if behind == 1 else 's'}"
    return Standing(closed=f"{count} behind it in its split would get other numbers" if behind else None)


def samples_behind(place: Place) -> int:
    """How many samples of the split come behind those of a shard."""
    return place.samples_through - place.first_sample - place.samples


def first_number(splits: Splits, split: str) -> int:
    """What the samples of a new key in a split are numbered from."""
    inside = splits.get(outermost(splits, split)[0] + INDEX, [])
    return inside[-1].samples_through if inside else 0


def key_before(splits: Splits, split: str, places: Mapping[Key, Place]) -> Key | None:
    """The key behind whose samples those of a new one in a split would come; None where there are none yet."""
    inside = splits.get(outermost(splits, split)[0] + INDEX, [])
    last = next((place.raw.name for place in reversed(inside) if place.samples), None)
    return next((key for key, place in places.items() if place.raw.name == last), None)


def replaced(known: Mapping[str, Place], before: Mapping[Key, Place], after: Mapping[Key, Place]) -> dict[str, Place]:
    """Where versions were that indexes have no more, by their identity: those that are `known`, and what has changed
    between two scans. The last config.PLACES_KEPT of them."""
    now = {place.identity for place in after.values()}
    gone = {place.identity: place for place in before.values() if place.identity not in now}
    return dict(list({**known, **gone}.items())[-config.PLACES_KEPT :])
