"""squirrel-core's `catalog.yaml`: which sources it names, and where they are. Knows nothing of what is in them.

Source of the form: what squirrel-core 0.20.2 writes (`Catalog.to_file`): a document tagged !YamlCatalog with `version`
and `sources`, each of them a !YamlSource with `identifier`, `driver_name`, `driver_kwargs`, `version` and `metadata`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.errors import BadStoreError, MissingSystemError


@dataclass(frozen=True, slots=True)
class Source:
    """One version of one source."""

    identifier: str
    version: int
    driver_name: str
    url: str | None
    """Where it is, as it stands in the file: a relative path counts from where the program runs."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_catalog(path: Path) -> list[Source]:
    """The sources of a catalog, in its order. BadStoreError for a file that is none."""
    try:
        with open(path, "rb") as file:
            text = file.read(config.CATALOG_BYTES + 1)
    except OSError as error:
        raise BadStoreError(f"{path}: {error.strerror}") from error
    if len(text) > config.CATALOG_BYTES:
        raise BadStoreError(f"{path} is no catalog: it is larger than {config.CATALOG_BYTES >> 20} MiB")
    document = _parsed(path, text)
    sources = document.get("sources") if isinstance(document, dict) else None
    if not isinstance(sources, list):
        raise BadStoreError(f"{path} is no catalog of squirrel-core: it has no list of sources")
    found: dict[tuple[str, int], Source] = {}
    for place, entry in enumerate(sources):
        source = _source(path, place, entry)
        if found.setdefault((source.identifier, source.version), source) is not source:
            raise BadStoreError(f"{path}: version {source.version} of {source.identifier!r} stands there twice")
    return list(found.values())


def _parsed(path: Path, text: bytes) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingSystemError("reading a catalog needs PyYAML: pip install 'shardfs[catalog]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain values and squirrel-core's own tags, which are plain mappings; any other tag is an error."""

    for tag in ("!YamlCatalog", "!YamlSource"):
        Loader.add_constructor(tag, lambda loader, node: loader.construct_mapping(node, deep=True))
    Loader.add_constructor("!CatalogKey", lambda loader, node: loader.construct_sequence(node, deep=True))
    try:
        return yaml.load(text, Loader)  # safe: of a class derived from SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadStoreError(f"{path} is no catalog of squirrel-core: {reason[:200] or type(error).__name__}") from error


def _source(path: Path, place: int, entry: Any) -> Source:
    if not isinstance(entry, dict):
        raise BadStoreError(f"{path}: source {place} is no mapping")
    identifier, version, driver = entry.get("identifier"), entry.get("version", 1), entry.get("driver_name")
    kwargs, metadata = entry.get("driver_kwargs") or {}, entry.get("metadata") or {}
    if not isinstance(identifier, str) or not isinstance(driver, str):
        raise BadStoreError(f"{path}: source {place} has no identifier or no driver_name")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BadStoreError(f"{path}: the version of {identifier!r} is {version!r}, where it should be 1 or more")
    if not isinstance(kwargs, dict) or not isinstance(metadata, dict):
        raise BadStoreError(f"{path}: driver_kwargs and metadata of {identifier!r} should be mappings")
    url, options = kwargs.get("url"), kwargs.get("storage_options") or {}
    return Source(
        identifier,
        version,
        driver,
        url if isinstance(url, str) else None,
        options if isinstance(options, dict) else {},
        metadata,
    )
