"""The description on PyPI: README.md, with links that lead somewhere where there is no other file."""

import re
import runpy

import pytest
from markdown import markdown

from project import HOOK, PROJECT, ROOT

hatch_build = runpy.run_path(str(ROOT / "hatch_build.py"))
REPOSITORY = "https://github.com/somebody/gradroute"
FILE = re.compile(rf"{re.escape(REPOSITORY)}/(?:blob|raw)/v{re.escape(PROJECT['version'])}/(.*)")
ELSEWHERE = re.compile(r"https://|mailto:|#")


def addresses(text):
    """Of all links and pictures of a page, as it is rendered."""
    return re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="([^"]*)"', markdown(text, extensions=["tables", "fenced_code"]))


def metadata(repository):
    found = {"version": PROJECT["version"]}
    hatch_build["Metadata"](str(ROOT), {**HOOK, "repository": repository}).update(found)
    return found


def test_without_a_repository_it_is_the_readme():
    found = metadata("")
    assert found["readme"] == {"content-type": "text/markdown", "text": (ROOT / "README.md").read_text()}
    assert found["urls"] == HOOK["urls"]


def test_with_one_no_link_is_relative_and_each_leads_to_a_file():
    readme = (ROOT / "README.md").read_text()
    before, after = addresses(readme), addresses(metadata(REPOSITORY)["readme"]["text"])
    assert len(before) == len(after) > 10
    for old, new in zip(before, after, strict=True):
        assert ELSEWHERE.match(new)
        if ELSEWHERE.match(old):
            assert new == old
        else:
            assert FILE.fullmatch(new)[1] == old
            assert (ROOT / old.partition("#")[0]).exists()


def test_a_picture_is_the_file_itself_and_no_page_around_it():
    text = hatch_build["absolute"]("![a](b.png) [![c](d.png)](e.md) [f](#g) [h](https://i)", REPOSITORY, "1")
    at = f"{REPOSITORY}/{{}}/v1/{{}}"
    raw_b, raw_d, page = at.format("raw", "b.png"), at.format("raw", "d.png"), at.format("blob", "e.md")
    assert text == f"![a]({raw_b}) [![c]({raw_d})]({page}) [f](#g) [h](https://i)"
    text = hatch_build["absolute"]('<img src="b.png" width="9" alt="c"> <img src="https://i/b.png">', REPOSITORY, "1")
    assert text == f'<img src="{raw_b}" width="9" alt="c"> <img src="https://i/b.png">'


@pytest.mark.parametrize("code", ["```python\nlayers[0](x)\n```\n", "As in `layers[0](x)`, and `![a](b)`."])
def test_code_is_left_alone(code):
    assert hatch_build["absolute"](code, REPOSITORY, "1") == code


def test_the_links_of_the_project_follow_from_it_too():
    urls = metadata(REPOSITORY)["urls"]
    assert {"Repository", "Documentation", "Changelog", "Issues", "Paper"} == urls.keys()
    for url in urls.values():
        file = FILE.fullmatch(url)
        assert file is None or (ROOT / file[1]).is_file()
    with pytest.raises(ValueError, match="repository must be an address"):
        metadata("github.com/somebody")
