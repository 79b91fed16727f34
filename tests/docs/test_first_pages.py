"""Whoever reads on goes on with the same objects: the first pages are one script."""

import re

import pytest

from docs.pages import ROOT


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", ["docs/how_to/freeze.md", "docs/how_to/ablate.md", "docs/how_to/audit.md"])
def test_a_how_to_runs_after_the_readme(page: str) -> None:
    source = "\n".join(block for block in (*blocks("README.md"), *blocks(page)) if not block.startswith(">>>"))
    exec(compile(source, page, "exec"), {"__name__": "script"})


def test_the_readmes_own_router_serves_what_the_page_on_freezing_uses() -> None:
    """Its first block alone, and then the two calls on the very router that it made."""
    names: dict[str, object] = {}
    exec(blocks("README.md")[0], names)
    exec(
        "from gradroute.optim import Isolation, clip_grad_norm_per_route_\n"
        "isolation = Isolation(router, optimizer)\n"
        "with router(labels):\n"
        "    torch.nn.functional.cross_entropy(model(x), y).backward()\n"
        "norms = clip_grad_norm_per_route_(router, 1.0)\n"
        "optimizer.step()\n",
        names,
    )
    assert set(names["norms"]) == {("retain", "forget"), ("retain",), ("forget",)}  # type: ignore[call-overload]
