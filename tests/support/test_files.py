"""Files and folders that are replaced as a whole or stay as they were."""

from pathlib import Path

import pytest

from fusionlib.support.files import replacing, write_bytes


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_is_replaced_after_the_block_or_not_at_all(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result"

    def write(place: Path, content: bytes) -> None:
        write_bytes(place / "part" if kind == "folder" else place, content)

    def read() -> bytes:
        return (path / "part" if kind == "folder" else path).read_bytes()

    with replacing(path) as new:
        write(new, b"first")
        assert not path.exists()
    assert read() == b"first"
    with pytest.raises(KeyboardInterrupt), replacing(path) as new:
        write(new, b"half")
        raise KeyboardInterrupt
    assert read() == b"first"
    with replacing(path) as again:
        assert again == new and not again.exists(), "what was left is removed"
        write(again, b"second")
    assert read() == b"second" and list(tmp_path.iterdir()) == [path]
