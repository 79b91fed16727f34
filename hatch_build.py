"""Metadata that follows from one variable: the address of the repository, in `pyproject.toml`.

Where it is set, the description on PyPI, which is README.md without any other file, links to files of the release's tag
by their addresses, and the project has its links. Where it is empty, README.md is the description as it stands.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"(?<=!)(\[[^\[\]]*\]\()(?!https?://)([^)\s]+)")
_IMAGE = re.compile(r'(<img\b[^>]*?\bsrc=")(?!https?://)([^"]+)')
_LINK = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)\s]+)")


def absolute(text: str, repository: str, version: str) -> str:
    """A page of Markdown whose relative links and pictures are addresses of files in a repository on GitHub."""
    if not repository:
        return text
    tree = repository.rstrip("/")
    parts = _CODE.split(text)
    for position in range(0, len(parts), 2):  # in between stands code
        part = parts[position]
        for picture in (_PICTURE, _IMAGE):
            part = picture.sub(rf"\g<1>{tree}/raw/v{version}/\g<2>", part)
        parts[position] = _LINK.sub(rf"\g<1>{tree}/blob/v{version}/\g<2>", part)
    return "".join(parts)


def links(repository: str, version: str) -> dict[str, str]:
    """The links of the project that follow from its repository; none where it is empty."""
    if not repository:
        return {}
    tree = repository.rstrip("/")
    return {
        "Repository": tree,
        "Documentation": f"{tree}/blob/v{version}/docs/index.md",
        "Changelog": f"{tree}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{tree}/issues",
    }


class Metadata(MetadataHookInterface):
    """Fills in what `pyproject.toml` calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description and the links.

        Raises:
            ValueError: The repository is no address.
        """
        repository, version = self.config["repository"], metadata["version"]
        if repository and not re.fullmatch(r"https://[^\s<>{}]+", repository):
            raise ValueError(
                f"repository must be an address such as https://github.com/you/gradroute; got {repository!r}."
            )
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(readme, repository, version)}
        metadata["urls"] = {**links(repository, version), **self.config["urls"]}
