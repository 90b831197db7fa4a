"""Filters: SQL over light fields, evaluated by SQLite where nothing else can be done."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shardfs import config, light_reading
from shardfs.errors import BadSettingError, StorageError
from shardfs.light_columns import LightColumns
from shardfs.light_where import Where

SAMPLES: list[dict[str, Any]] = [
    {"label": "cat", "n": 1, "x": 0.5, "ok": True, "meta": {"w": 3, "tags": ["a", "b"]}, "a.b": 1},
    {"label": "Dog", "n": 2, "x": 2.5, "ok": False, "meta": {"w": 5}, "odd name": "y"},
    {"label": "bird", "n": 3, "x": math.nan, "ok": None, "meta": "no JSON {", "key": "k"},
    {"n": 2**63, "label": None, "rowid": 7, "samples": 1},
    {"label": 'say "cat"', "ünder": "é", 'quo"te': 1, "long": "y" * (config.LIGHT_VALUE + 1)},
]


@pytest.fixture(scope="module")
def columns() -> LightColumns:
    builder = light_reading.Builder("png")
    for sample in SAMPLES:
        builder.add(sample, memoryview(b""))
    return builder.columns()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("label = 'cat'", [0]),
        ("LABEL = 'cat'", [0]),
        ("\"label\" = 'cat'", [0]),
        ("label LIKE 'd%'", [1]),
        ("label IN ('cat', 'bird')", [0, 2]),
        ("label IS NULL", [3]),
        ("nowhere IS NULL", [0, 1, 2, 3, 4]),
        ("nowhere = 1", []),
        ('label = "cat"', []),  # a name, of a field that nobody has: never a text
        ("n BETWEEN 2 AND 3", [1, 2]),
        ("n > 1 AND NOT ok", [1]),
        ("ok", [0]),
        ("ok = 1 OR x > 1", [0, 1]),
        ("x IS NULL", [2, 3, 4]),
        ("n = '9223372036854775808'", [3]),
        ("meta ->> 'w' >= 3", [0, 1]),  # no error for the sample whose text is no JSON
        ("json_array_length(meta -> 'tags') = 2", [0]),
        ('"a.b" = 1', [0]),
        ("[odd name] = 'y'", [1]),
        ("key = 'k'", [2]),
        ("rowid = 7 AND samples = 1", [3]),
        ("label = 'say \"cat\"'", [4]),
        ("ünder = 'é'", [4]),
        ('"quo""te" = 1', [4]),
        ("long IS NULL", [0, 1, 2, 3, 4]),
        ("label GLOB '[a-c]*' -- those", [0, 2]),
        ("n % 2 = 1 AND length(label) = 3", [0]),
        ("CASE WHEN n = 1 THEN 1 ELSE 0 END", [0]),
        ("iif(n = 3, ok IS NULL, 0)", [2]),
        ("1", [0, 1, 2, 3, 4]),
        # a text of more than WHERE_VALUE bytes for one sample, which was an error for all
        ("CASE n WHEN 1 THEN length(" + "hex(" * 20 + "label" + ")" * 20 + ") > 0 ELSE n = 2 END", [1]),
    ],
)
def test_what_is_true_is_shown(columns: LightColumns, text: str, shown: list[int]) -> None:
    assert Where(text).matches(columns).nonzero()[0].tolist() == shown


def test_it_says_which_fields_it_speaks_of() -> None:
    assert Where("""Label = 'x "y" z' AND ("a.b" > 1 OR [n] = n)""").fields == ("Label", "a.b", "n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write an SQL expression"),
        ("label =", "ends too early"),
        ("label = 'cat", "quote is not closed"),
        ("label == = 3", "syntax error"),
        ("foo(label) = 1", "no such function: foo"),
        ("meta.w = 1", "meta.w"),
        ("label = ?", "parameters"),
        ("label = :x", "parameters"),
        ("n = 1) , (2", "no expression about one sample"),
        ("max(n)", "no expression about one sample"),
        ("count(*) > 1", "function count"),
        ("random() > 0", "function random"),
        ("date('now') > '2024'", "function date"),
        ("CURRENT_TIMESTAMP > '2024'", "function current_timestamp"),
        ("zeroblob(1000000000)", "function zeroblob"),
        ("load_extension('/tmp/x.so')", "load_extension"),
        ("n IN (SELECT 1)", "SELECT"),
        ("EXISTS (SELECT 1 FROM samples)", "SELECT"),
        ("n = (WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x FROM c) SELECT x FROM c)", "--where"),
        ("n IN json_each('[1]')", "--where"),
        ("n IN sqlite_master", "--where"),
        ("1); DROP TABLE samples; --", "one statement"),
        ("1; ATTACH '/tmp/x' AS y", "--where"),
        ("row_number() OVER () > 1", "function row_number"),
        ("1) IS TRUE FROM samples LIMIT (1", "--where"),
        ("n = 1\0", "--where"),
        ("(" * 500 + "1" + ")" * 500, "--where"),
        ("n" + " + n" * 200, "depth"),
        ("'" + "x" * config.WHERE_LENGTH + "'", "characters"),
        (" OR ".join(f"f{at} = 1" for at in range(config.WHERE_FIELDS + 1)), "fields"),
    ],
)
def test_a_bad_one_is_one_clear_line(text: str, reason: str) -> None:
    with pytest.raises(BadSettingError) as caught:
        Where(text)
    said = str(caught.value)
    assert reason in said
    assert "\n" not in said.replace(text, "")
    assert "IS TRUE" not in said.replace(text, "")


def test_one_that_takes_for_ever_is_ended(columns: LightColumns, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Where("label LIKE '%a%a%a%a%b' OR " + " + ".join(["length(replace(label, 'a', 'bb'))"] * 40))
    builder = light_reading.Builder("png")
    for at in range(2000):
        builder.add({"label": f"{at}" + "a" * 1000}, memoryview(b""))
    monkeypatch.setattr(config, "WHERE_SECONDS", 0.05)
    with pytest.raises(StorageError, match="takes longer"):
        where.matches(builder.columns())


def test_no_samples_are_no_samples() -> None:
    assert Where("n = 1").matches(light_reading.Builder("png").columns()).tolist() == []
