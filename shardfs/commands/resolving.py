"""Which of all that was said of a setting counts: flag, `-o`, environment, configuration file, profile, default.

`settle` puts the outcome into the parsed arguments, where each command finds it under the setting's name, as if all had
been said there. Knows nothing of what is done with it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardfs import daemon
from shardfs.commands import said as saying
from shardfs.commands.config_file import MOUNTS, PLACES, ConfigFile, read_config_file
from shardfs.commands.said import DEFAULT, FILE, FLAG, PRESET, Said
from shardfs.commands.settings import BUCKETS, BY_NAME, FAR, KEEPING, PRESETS, Setting
from shardfs.errors import BadSettingError


@dataclass(frozen=True, slots=True)
class Holds:
    """A setting with the value that counts."""

    setting: Setting
    value: Any
    """As its `parse` made it; None where the default depends on the machine or the store."""
    said: Said | None = None
    """Where it was said; None: it is the default."""
    unused: Said | None = None
    """What was said for all mounts and does not fit this one."""

    @property
    def source(self) -> str:
        return DEFAULT if self.said is None else self.said.source

    def facts(self) -> dict[str, Any]:
        """As `config.json` has it, without secrets: the value as it was said where JSON has no word for it."""
        value = self.value
        if self.said is not None and (value is None or value in (float("inf"), float("-inf"))):
            value = self.said.text
        made = {"value": saying.shown_url(value) if isinstance(value, str) else value, "from": self.source}
        if self.said is not None and self.said.where is not None:
            made["where"] = self.said.where
        if self.unused is not None:
            made["unused"] = self.unused.shown
        return made


@dataclass(frozen=True, slots=True)
class Settled:
    """What holds for one command."""

    holds: Mapping[str, Holds]
    name: str | None = None
    """The section of the configuration file that it is about."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where the file says `store` and `mountpoint`, as far as they come from there."""
    read_only_unasked: bool = False
    """mount(8) said rw, as it does of every mount, and nobody else did."""

    def by_flag(self, name: str) -> bool:
        """Whether the command line itself says it."""
        return self.holds[name].source == FLAG

    def facts(self) -> dict[str, dict[str, Any]]:
        """Each setting, its value, and where it came from."""
        return {name: self.holds[name].facts() for name in sorted(self.holds)}


def settle(arguments: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Settled:
    """Give each setting that a command takes the value that counts. BadSettingError names what is unknown or
    contradictory, where it was said, and what is nearest to it."""
    taken: Sequence[str] = arguments.settings
    file = read_config_file()
    for_all = file.for_all()
    name, places = _place(arguments, file)
    words, unasked = saying.from_words(getattr(arguments, "options", ()), getattr(arguments, "from_mount8", False))
    everything = [
        *saying.from_flags(arguments, taken),
        *words,
        *saying.from_variables(os.environ if environment is None else environment),
        *(file.of(name) if name is not None else ()),
        *for_all,
    ]
    for_this = [one for one in everything if one.setting.name in taken]
    for_this += [one for one in _preset(for_this) if one.setting.name in taken]
    holds = resolve([BY_NAME[one] for one in taken], for_this, _stores(arguments))
    for one in holds.values():
        setattr(arguments, one.setting.name, one.value)
    rw = holds.get("rw")
    return Settled(holds, name, places, unasked and rw is not None and not rw.value)


def resolve(settings: Iterable[Setting], everything: Iterable[Said], stores: Sequence[str] = ()) -> dict[str, Holds]:
    """What counts of all that was said, the first first, for a mount of `stores` (empty: of whatever store)."""
    said = list(everything)
    values = {id(one): _value(one) for one in said}  # what is overruled is to make sense, too
    first = {one.setting.name: one for one in saying.in_order(said)}
    unused: dict[str, Said] = {}
    for name, one in list(first.items()):
        if not _may_count(one, first, stores):
            unused[name] = first.pop(name)
    made = {}
    for setting in settings:
        counts = first.get(setting.name)
        value = setting.default if counts is None else values[id(counts)]
        made[setting.name] = Holds(setting, value, counts, unused.get(setting.name))
    return made


def _preset(said: Iterable[Said]) -> list[Said]:
    """What the profile that was asked for says."""
    chosen = next((one for one in saying.in_order(said) if one.setting.name == "profile"), None)
    if chosen is None or chosen.text not in PRESETS:  # which is told when it is looked at
        return []
    return [
        Said(BY_NAME[name], text, PRESET, f"{name} = {text} (profile {chosen.text})", str(chosen.text), for_all=True)
        for name, text in PRESETS[str(chosen.text)].items()
    ]


def _value(one: Said) -> Any:
    setting = one.setting
    if isinstance(one.text, bool):
        return one.text
    if setting.choices and one.text not in setting.choices:
        raise BadSettingError(f"{one.shown}: choose one of {', '.join(setting.choices)}")
    try:
        return setting.parse(one.text)
    except BadSettingError as error:
        raise BadSettingError(f"{one.shown}: {error}") from error


def _may_count(one: Said, first: Mapping[str, Said], stores: Sequence[str]) -> bool:
    """Whether what was said first of a setting agrees with the rest, and is for such a store. What was said for all
    mounts, and what has lost its ground by what was said nearer, just does not count. BadSettingError for the rest."""
    setting = one.setting
    if one.text is False:
        return True
    if setting.needs and not _is_on(setting.needs, first):
        no = first.get(setting.needs)
        if one.for_all or (no is not None and _nearer(no, one)):
            return False
        wanted = _as_said(BY_NAME[setting.needs], one.source)
        raise BadSettingError(f"{one.shown} is for writable mounts: give {wanted}, too")
    other = _against(setting, first)
    if other is not None and one.text != "off":
        if one.for_all:
            return False
        raise BadSettingError(f"{one.shown} cannot be together with {other.shown}: leave one of the two out")
    if _is_for(setting, stores, first):
        return True
    if one.for_all or one.source == saying.VARIABLE:
        return False
    if len(stores) == 1 and "+" not in stores[0].partition("://")[0]:  # else the store's own driver, or command, tells
        what = "is on this machine" if "://" not in stores[0] else "is something else"
        raise BadSettingError(f"{one.shown} is for {setting.is_for}; {saying.shown_url(stores[0])} {what}")
    return True


def _is_on(switch: str, first: Mapping[str, Said]) -> bool:
    one = first.get(switch)
    return BY_NAME[switch].default is True if one is None else one.text is True


def _against(setting: Setting, first: Mapping[str, Said]) -> Said | None:
    """What was said that a setting contradicts."""
    name, equals, text = setting.against.partition("=")
    other = first.get(name)
    return other if other is not None and other.text == (text if equals else True) else None


_ORDER = (FLAG, saying.WORD, saying.VARIABLE, FILE, PRESET)


def _nearer(one: Said, other: Said) -> bool:
    """Whether the first was said where it counts before the other."""
    return (_ORDER.index(one.source), one.for_all) < (_ORDER.index(other.source), other.for_all)


def _as_said(setting: Setting, source: str) -> str:
    """How a switch is turned on in the same place."""
    return {
        FLAG: setting.flag,
        saying.WORD: f"-o {setting.name}",
        saying.VARIABLE: f"{setting.variable}=1",
        FILE: f"{setting.name} = true",
    }[source]


def _is_for(setting: Setting, stores: Sequence[str], first: Mapping[str, Said]) -> bool:
    from shardfs.storage.urls import is_far

    if not setting.is_for or not stores:
        return True
    far = [store for store in stores if is_far(store)]
    if setting.is_for == KEEPING:
        kept = first.get("cache_raw")
        return bool(far) or (kept is not None and kept.text != "off")
    if setting.is_for == BUCKETS:
        far = [store for store in far if not store.startswith(("http://", "https://"))]
    else:
        assert setting.is_for == FAR
    return bool(far)


def _stores(arguments: argparse.Namespace) -> list[str]:
    named = (getattr(arguments, name, None) for name in ("store", "source", "target"))
    return [store for store in named if store is not None]


def _place(arguments: argparse.Namespace, file: ConfigFile) -> tuple[str | None, dict[str, str]]:
    """The name of a mount that the command line may have in place of a store, which is put there instead, and where
    the file says so. BadSettingError."""
    store = getattr(arguments, "store", None)
    without = getattr(arguments, "mountpoint", "") is None
    if store is None or not (without or may_name(store, file)):
        return None, {}
    if not file.called(store):
        why = "" if "/" in store else f"{file.no_such(store)}; "
        raise BadSettingError(f"{why}to mount a store say where, too: shardfs mount STORE MNT")
    name, places = store, {}
    for what in PLACES:
        value = file.place(name, what)
        if value is None and (what == "store" or without):
            raise BadSettingError(f"{file.shown((MOUNTS, name))} does not say {what}")
        if value is not None and (what == "store" or getattr(arguments, what, None) is None):
            setattr(arguments, what, value)
            places[what] = file.where((MOUNTS, name, what))
    return name, places


def mount_point_of(text: str) -> str:
    """A mount point as a command got it: a path at which something is mounted, or else the name of a mount in the
    configuration file, which stands for the mount point that it has there. BadSettingError."""
    if "/" in text or daemon.mounted_at(daemon.resolved(text)) is not None:
        return text
    file = read_config_file()
    return (file.place(text, "mountpoint") if file.called(text) else None) or text


def may_name(text: str, file: ConfigFile) -> bool:
    """Whether a text in the place of a store is the name of a mount. BadSettingError if it may be either."""
    if "/" in text or not file.called(text):
        return False
    if os.path.lexists(text):
        raise BadSettingError(
            f"{text} is a mount in {file.path}, and something that lies here: write ./{text} if you mean that"
        )
    return True
