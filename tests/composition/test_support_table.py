"""The table of what composes says what the tests show."""

import json
from pathlib import Path

import pytest
import torch

from composition.conftest import HERE, SHOWN
from project import ROOT

TABLE = ROOT / "docs/assets/composition/table.json"


def test_every_yes_and_every_raises_of_the_table_is_what_a_test_shows(request: pytest.FixtureRequest) -> None:
    shown = request.config.stash[SHOWN]
    others = set(HERE.glob("test_*.py")) - {Path(__file__)}
    marked = {path for path in others if "mark.supports(" in path.read_text()}
    if not marked <= set().union(*shown.values()):
        pytest.skip("not all tests that the table is made of were collected")
    said = json.loads(TABLE.read_text()).get(torch.__version__.partition("+")[0])
    if said is None:
        pytest.skip("the table was not made under this version of torch")
    cells = {(feature, form, outcome) for feature, row in said.items() for form, outcome in row.items()}
    assert cells - shown.keys() == set()
    assert {outcome for _, _, outcome in cells} == {"supports", "refuses"}
