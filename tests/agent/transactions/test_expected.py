"""The list of host files that must exist."""

from pathlib import Path
from uuid import UUID

import pytest

from agent.errors import StorageFailed
from agent.transactions.expected import Expected, ExpectedFiles

VM = UUID(int=5)
NVRAM, NVRAM_DIR, TPM = Path("/nv ram/a=b.fd"), Path("/nvram"), Path(f"/swtpm/{VM}")


@pytest.fixture
def expected(tmp_path: Path) -> Expected:
    return Expected(tmp_path)


@pytest.mark.parametrize("paths", [(NVRAM, None, TPM), (None, NVRAM_DIR, None), (None, None, TPM), (None, None, None)])
def test_what_is_written_is_read(expected: Expected, paths: tuple[Path | None, Path | None, Path | None]) -> None:
    expected.write(VM, "машина 1", *paths)
    assert expected.read(VM) == ExpectedFiles("машина 1", *paths)


def test_an_unknown_domain_has_no_list(expected: Expected) -> None:
    assert expected.read(VM) is None


def test_writing_the_same_again_leaves_the_file_alone(expected: Expected, tmp_path: Path) -> None:
    expected.write(VM, "win11", NVRAM, None, TPM)
    before = (tmp_path / "expected" / str(VM)).stat()
    expected.write(VM, "win11", NVRAM, None, TPM)
    assert (tmp_path / "expected" / str(VM)).stat().st_ino == before.st_ino
    expected.write(VM, "win12", NVRAM, None, TPM)
    assert (tmp_path / "expected" / str(VM)).stat().st_ino != before.st_ino


def test_the_file_has_the_lines_that_the_hook_reads(expected: Expected, tmp_path: Path) -> None:
    expected.write(VM, "win11", NVRAM, NVRAM_DIR, TPM)
    path = tmp_path / "expected" / str(VM)
    assert path.read_text() == f"nvram={NVRAM}\nnvram_default={NVRAM_DIR}\ntpm={TPM}\nname=win11\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_forget_removes_the_list_once_and_again(expected: Expected) -> None:
    expected.write(VM, "win11", NVRAM, None, TPM)
    expected.forget(VM)
    expected.forget(VM)
    assert expected.read(VM) is None


def test_a_list_that_cannot_be_read_is_an_error_and_stays(expected: Expected, tmp_path: Path) -> None:
    (tmp_path / "expected" / str(VM)).mkdir()
    with pytest.raises(StorageFailed):
        expected.write(VM, "win11", NVRAM, None, TPM)
    assert [path.name for path in (tmp_path / "expected").iterdir()] == [str(VM)]
