from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import deltasmith.edits
import deltasmith.merges
from deltasmith.edits.drop import Drop, DropMatchL1
from deltasmith.merges.elect import Elect
from deltasmith.operation.protocols import Edit, Merge
from deltasmith.recipe.catalogue import DIALECTS, EDITS, MERGES, dialects, name_of, operation, table
from deltasmith.recipe.facts import FACTS
from deltasmith.recipe.presets import PRESETS

ABSTRACT = {"Allocating", "Combination"}


def records(package, base):
    """Find every public record defined in the modules of a package."""
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, found in vars(module).items():
            own = isinstance(found, type) and issubclass(found, base) and found.__module__ == module.__name__
            if own and not name.startswith("_") and name not in ABSTRACT:
                yield f"{package.__name__.removeprefix('deltasmith.')}.{info.name}:{name}"


@pytest.mark.parametrize(
    ("package", "base", "kind"), [(deltasmith.edits, Edit, "edit"), (deltasmith.merges, Merge, "merge")]
)
def test_every_record_has_a_name_and_every_name_a_record(package, base, kind):
    named = {choice.target for choices in table(kind).values() for choice in choices.values()}
    assert set(records(package, base)) == named


@pytest.mark.parametrize("kind", ["edit", "merge"])
def test_every_entry_loads_and_its_defaults_are_fields(kind):
    for name, choices in table(kind).items():
        assert dialects(kind, name)[0] == "paper"
        for choice in choices.values():
            record = choice.load()
            assert issubclass(record, Edit if kind == "edit" else Merge)
            assert set(choice.defaults) <= set(record.model_fields), name


def test_names_do_not_serve_two_kinds():
    assert not set(EDITS) & set(MERGES)


def test_there_are_facts_for_every_name_and_no_other():
    assert set(FACTS) == {*EDITS, *MERGES, *PRESETS}


def test_operations_by_name():
    assert operation("edit", "drop", density=0.5) == Drop(density=0.5)
    assert operation("edit", "drop", "mergekit", density=0.5) == DropMatchL1(density=0.5)
    assert operation("merge", "elect", "mergekit") == Elect(zero="positive")
    with pytest.raises(KeyError):
        operation("merge", "tsv", "mergekit")


def test_names_of_records():
    assert name_of(Drop(density=1)) == ("drop", "paper")
    assert name_of(Drop(density=1), "authors") == ("drop", "authors")
    assert name_of(Drop(density=1), "mergekit") == ("drop", "paper")
    assert name_of(DropMatchL1(density=1)) == ("drop", "mergekit")
    for kind in ("edit", "merge"):
        for name, choices in table(kind).items():
            for dialect in DIALECTS:
                if dialect in choices:
                    found = choices[dialect].load().model_construct()
                    back, own = name_of(found, dialect)
                    assert table(kind)[back][own].target == choices[dialect].target, name
                    assert own == dialect


def test_reading_the_table_imports_no_operation():
    code = (
        "import sys, deltasmith.recipe.catalogue, deltasmith.recipe.presets\n"
        "bad = [m for m in sys.modules if m.startswith(('numba', 'deltasmith.edits', 'deltasmith.merges'))]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
