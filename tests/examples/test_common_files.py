import json
from pathlib import Path

from common.files import fill_page


def test_data_get_into_a_page_and_no_text_of_them_ends_its_script(tmp_path: Path) -> None:
    (tmp_path / "template.html").write_text("<script>const data = /* DATA */;</script>")
    data = {"text": "</script><!-- <script><b>", "numbers": [1, 2.5]}
    fill_page(tmp_path / "template.html", data, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<") == 2
    assert json.loads(page.removeprefix("<script>const data = ").removesuffix(";</script>")) == data
