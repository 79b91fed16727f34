from pathlib import Path

import pytest
from fake_text import entries, written

from common.sword import read_ztext


@pytest.mark.parametrize("blocks", [1, 3])
def test_what_was_written_as_a_module_is_read(tmp_path: Path, blocks: int) -> None:
    texts = entries("Spanish", "ot")
    written(tmp_path, "ot", texts, blocks)
    assert read_ztext(tmp_path, "ot") == texts
