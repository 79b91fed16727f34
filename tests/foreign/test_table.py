"""The table of the documentation is that of the models in the list, as `make foreign` last wrote it."""

import json

from foreign.models import MODELS
from foreign.run import OUT, table


def records():
    return json.loads((OUT / "table.json").read_text())["models"]


def test_every_model_of_the_list_is_in_the_table_and_none_else():
    assert [(one["name"], one["library"]) for one in records()] == [(one.name, one.library) for one in MODELS.values()]


def test_the_table_is_made_of_the_records():
    assert (OUT / "table.md").read_text().startswith(table(records()))


def test_every_module_is_accounted_for_and_none_failed():
    for one in records():
        assert one["failures"] == []
        for counts in one["counts"].values():
            assert sum(counts.values()) + one["left_out"] == one["modules"]
        assert one["left_out"] == 0 or one["modules"] - one["left_out"] <= (MODELS[one["name"]].most or one["modules"])
