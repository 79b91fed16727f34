from pathlib import Path

import pytest
from fake_text import modules

from common import debian
from common.debian import make_sure_of
from common.errors import ExampleError
from common.sources import DatasetSpec, Source, SourceError


def test_what_is_broken_is_fetched_again_and_what_no_source_has_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = modules(tmp_path)
    broken = tmp_path / specs["English"].folder / "ot.bzz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1])

    def nobody(spec: DatasetSpec, folder: Path) -> None:
        raise SourceError("has nothing")

    monkeypatch.setattr(debian, "_sources", lambda spec: [Source("nobody", nobody)])
    with pytest.raises(ExampleError, match=r"(?s)no source has text-English.*nobody: has nothing.*ot\.bzz"):
        make_sure_of(specs["English"], broken.parent)

    def somebody(spec: DatasetSpec, folder: Path) -> None:
        modules(folder)
        for name in spec.sha256:
            (folder / spec.folder / name).replace(folder / name)

    monkeypatch.setattr(debian, "_sources", lambda spec: [Source("nobody", nobody), Source("somebody", somebody)])
    make_sure_of(specs["English"], broken.parent)
    assert broken.read_bytes() == whole
