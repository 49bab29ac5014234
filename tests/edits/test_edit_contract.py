"""Every edit keeps every promise of the contract suite."""

from __future__ import annotations

import pytest

from contracts import EDIT_CHECKS, EDIT_EXAMPLES, name_of


@pytest.mark.parametrize("check", EDIT_CHECKS, ids=name_of)
@pytest.mark.parametrize("edit", EDIT_EXAMPLES, ids=repr)
def test_edit(edit, check):
    check(edit)
