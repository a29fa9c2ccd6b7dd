"""Each case of `tests/cases.md` names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_each_case_names_a_test_that_is_there() -> None:
    rows = [line for line in (TESTS / "cases.md").read_text(encoding="utf-8").splitlines()]
    cases = [line for line in rows if re.match(r"\| [DFNP]\d", line)]
    found = [re.search(r"\| `(\S+)::(test_\w+)` \|$", line) for line in cases]
    assert len(cases) > 130 and all(found)
    named = {(match[1], match[2]) for match in found if match}
    there = {
        (file, node.name)
        for file in {file for file, _ in named}
        for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert not named - there
