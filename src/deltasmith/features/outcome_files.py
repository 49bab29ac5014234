"""features.json and rates.csv: what `features match` writes, and the way back.

features.json, one JSON object:

    format, deltasmith      1; the version that wrote it
    study                   sha256 of the study.json that this belongs to
    settings                strong, weak, min_fires, seed, resamples, blocks, mode, site
    statuses                {"fate": [...], "descent": [...], "origin": [...]}: what the numbers in arrays stand for
    members                 one object each: label, latents, testable, unexercised, dead
    edges                   one object each, the fields of `outcome.EdgeOutcome`
    merges                  one object each, the fields of `outcome.MergeOutcome`
    universal               share, members, features: one list for each feature, its index in every member
    notes                   sentences

A rate is {"value", "low", "high"}: a share in [0, 1] (`adjusted`: a ratio of two) with its 95 % interval, null where
there is none. `parents` and `children` of an edge hold lists with one entry for each feature of that side's
dictionary: `status` (a place in statuses.fate, or statuses.descent), `best` and `second` (the index of its best
partners on the other side, -1 for none), `r` and `second_r` (their correlations, to four decimals), `cosine` (of
the decoder directions with the best, null for none). `origin` of a merge likewise; bit i of `inherited_from` says that
the feature comes from parent i.

rates.csv has one row for each edge and rate: value, low, high, and the same rate of the floor that decides; for
`persisted` also the ratio of the two and the share under permuted tokens. The rates of merges follow (kind `merge`),
and the universal share (kind `graph`). Shares are in [0, 1]; what there is not is empty.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith import __version__
from deltasmith.analysis.publishing import Contents, check_report_folder, report_folder
from deltasmith.errors import DamagedInputError, printable
from deltasmith.features.outcome import (
    DESCENT,
    FATE,
    ORIGIN,
    Cosines,
    EdgeOutcome,
    Floor,
    Links,
    MemberOutcome,
    MergeOutcome,
    Outcome,
    Rate,
    Universal,
)
from deltasmith.features.pattern_records import FILE as PATTERNS
from deltasmith.formats.json_file import read_json_object

__all__ = [
    "FEATURES",
    "RATES",
    "as_json",
    "check_out",
    "features_json",
    "rates_csv",
    "read_outcome",
    "summary_json",
    "write_outcome",
]

FEATURES, RATES = "features.json", "rates.csv"
FORMAT = 1
_LIMIT = 1 << 29
_CONTENTS = Contents("`features match`", FEATURES, (FEATURES, RATES, PATTERNS))
_COLUMNS = (
    "parent", "child", "kind", "rate", "value", "low", "high", "floor_member", "floor", "floor_low", "floor_high",
    "adjusted", "adjusted_low", "adjusted_high", "null",
)  # fmt: skip


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as the plain JSON values of features.json."""
    body = {name: _plain(value) for name, value in _items(outcome)}
    head = {
        "format": FORMAT,
        "deltasmith": __version__,
        "study": body.pop("study"),
        "settings": body.pop("settings"),
    }
    statuses = {"fate": [*map(str, FATE)], "descent": [*map(str, DESCENT)], "origin": [*map(str, ORIGIN)]}
    return {**head, "statuses": statuses, **body}


def summary_json(outcome: Outcome) -> dict[str, Any]:
    """Return the same without what is told of single features."""
    document = as_json(outcome)
    del document["statuses"], document["universal"]["features"]
    for found in (*document["edges"], *document["merges"]):
        for name in ("children", "origin", "inherited_from", *(["parents"] if "children" in found else [])):
            found.pop(name, None)
    return document


def features_json(outcome: Outcome) -> bytes:
    """Return the bytes of features.json, the same for the same outcome: an array takes one line."""
    return ("".join(_lines(as_json(outcome), 0)) + "\n").encode()


def rates_csv(outcome: Outcome) -> bytes:
    """Return the bytes of rates.csv."""
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="")
    table.writeheader()
    for row in _rows(outcome):
        table.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue().encode()


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise RefusedError unless `out` may be created, or with `overwrite` replaced because it holds nothing else."""
    check_report_folder(out, overwrite=overwrite, contents=_CONTENTS)


def write_outcome(outcome: Outcome, out: Path, *, overwrite: bool = False) -> None:
    """Write both files into `out`, which appears, or is replaced, as a whole.

    Raises:
        RefusedError: see `check_out`. ResourceError: it cannot be written.
    """
    with report_folder(out, overwrite=overwrite, contents=_CONTENTS) as partial:
        for name, data in ((FEATURES, features_json(outcome)), (RATES, rates_csv(outcome))):
            with (partial / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def read_outcome(folder: str | Path) -> Outcome:
    """Read features.json back; correlations have four decimals then.

    Raises:
        DamagedInputError: it is missing, damaged, or of another format.
    """
    path = Path(folder) / FEATURES
    if not path.is_file():
        raise DamagedInputError(
            f"there is no {FEATURES}",
            where=printable(str(folder)),
            fix="run `deltasmith features match` first",
        )
    fix = "run `deltasmith features match` again"
    document = read_json_object(path, _LIMIT, fix=fix)
    try:
        if document["format"] != FORMAT:
            what = f"it has format {document['format']}, this version reads {FORMAT}"
            raise DamagedInputError(what, where=printable(str(path)), fix=fix)
        return Outcome(
            document["settings"],
            document["study"],
            tuple(MemberOutcome(**member) for member in document["members"]),
            tuple(_edge(edge) for edge in document["edges"]),
            tuple(_merge(merge) for merge in document["merges"]),
            _universal(document["universal"]),
            tuple(document["notes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
        what = f"it is no outcome of `features match` ({printable(str(cause), 100)})"
        raise DamagedInputError(what, where=printable(str(path)), fix=fix) from cause


def _edge(edge: Mapping[str, Any]) -> EdgeOutcome:
    read = dict(edge)
    read["floors"] = tuple(
        Floor(
            **{
                **floor,
                "persisted": _rate(floor["persisted"]),
                "adjusted": _rate(floor["adjusted"]),
                "rates": _rates(floor["rates"]),
            }
        )
        for floor in edge["floors"]
    )
    read |= {name: _rates(edge[name]) for name in ("rates", "curve")}
    read |= {name: _rate(edge[name]) for name in ("any_match", "firing_weighted")}
    read["cosines"] = Cosines(**edge["cosines"])
    read |= {
        side: _links(edge[side], len(words)) for side, words in (("parents", FATE), ("children", DESCENT))
    }
    return EdgeOutcome(**read)


def _merge(merge: Mapping[str, Any]) -> MergeOutcome:
    read = dict(merge)
    read["parents"] = tuple(merge["parents"])
    read |= {name: _rates(merge[name]) for name in ("rates", "lost_rates")}
    read["origin"] = _statuses(merge["origin"], len(ORIGIN))
    read["inherited_from"] = np.array(merge["inherited_from"], np.int32)
    return MergeOutcome(**read)


def _universal(found: Mapping[str, Any]) -> Universal:
    members = tuple(found["members"])
    features = np.array(found["features"], np.int32).reshape(-1, len(members))
    return Universal(_rate(found["share"]), members, features)


def _links(side: Mapping[str, Any], statuses: int) -> Links:
    best, second = (np.array(side[name], np.int32) for name in ("best", "second"))
    r, second_r, cosine = (np.array(side[name], np.float32) for name in ("r", "second_r", "cosine"))
    links = Links(_statuses(side["status"], statuses), best, r, second, second_r, cosine)
    if len({len(array) for array in vars(links).values()}) != 1:
        raise ValueError("its arrays differ in length")
    return links


def _statuses(places: list[int], count: int) -> npt.NDArray[np.int8]:
    found = np.array(places, np.int8)
    if found.size and not 0 <= found.min() <= found.max() < count:
        raise ValueError("a status that there is not")
    return found


def _rates(rates: Mapping[str, Any]) -> dict[str, Rate]:
    return {name: _rate(rate) for name, rate in rates.items()}


def _rate(rate: Mapping[str, Any]) -> Rate:
    value = rate["value"]
    return Rate(math.nan if value is None else value, rate["low"], rate["high"])


def _items(record: Any) -> Iterator[tuple[str, Any]]:
    yield from ((field.name, getattr(record, field.name)) for field in fields(record))


def _plain(value: Any) -> Any:
    """Turn records, arrays and mappings into what JSON has; what is not a number becomes null."""
    if is_dataclass(value):
        return {name: _plain(item) for name, item in _items(value)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        return [None if math.isnan(v) else round(v, 4) for v in value.astype(np.float64).tolist()]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def _lines(value: Any, depth: int) -> Iterator[str]:
    """Write objects and lists of objects over several lines, and anything else on one."""
    pad, keyed = " " * (depth + 1), isinstance(value, dict)
    if not value or not (keyed or (isinstance(value, list) and isinstance(value[0], dict))):
        yield json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return
    yield "{" if keyed else "["
    for at, key in enumerate(value):
        yield f"{',' if at else ''}\n{pad}"
        if keyed:
            yield f"{json.dumps(key, ensure_ascii=False)}: "
        yield from _lines(value[key] if keyed else key, depth + 1)
    yield f"\n{' ' * depth}{'}' if keyed else ']'}"


def _rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    for edge in outcome.edges:
        ends = {"parent": edge.parent, "child": edge.child, "kind": edge.kind}
        more = {"any_match": edge.any_match, "firing_weighted": edge.firing_weighted}
        curve = {f"mutual_{at}": rate for at, rate in edge.curve.items()}
        for name, rate in {**edge.rates, **curve, **more}.items():
            yield {**ends, "rate": name, **_three(rate), **_beside(edge, name)}
    for merge in outcome.merges:
        lost = {f"lost:{label}": rate for label, rate in merge.lost_rates.items()}
        for name, rate in {**merge.rates, **lost}.items():
            yield {"child": merge.label, "kind": "merge", "rate": name, **_three(rate)}
    share = outcome.universal.share
    yield {"parent": outcome.universal.members[0], "kind": "graph", "rate": "universal", **_three(share)}


def _beside(edge: EdgeOutcome, name: str) -> dict[str, Any]:
    """Return what stands beside a rate: that of the floor that decides; for `persisted` its ratio to it, and chance."""
    told: dict[str, Any] = {"null": edge.null} if name == "persisted" else {}
    if not edge.floors:
        return told
    floor = edge.floors[0]
    told["floor_member"] = floor.member
    told |= {
        f"floor{at}": value
        for at, value in zip(("", "_low", "_high"), _values(floor.rates[name]), strict=True)
    }
    if name == "persisted":
        adjusted = zip(("", "_low", "_high"), _values(floor.adjusted), strict=True)
        told |= {f"adjusted{at}": value for at, value in adjusted}
    return told


def _values(rate: Rate) -> tuple[float | None, ...]:
    return rate.value, rate.low, rate.high


def _three(rate: Rate) -> dict[str, Any]:
    return {"value": rate.value, "low": rate.low, "high": rate.high}


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
