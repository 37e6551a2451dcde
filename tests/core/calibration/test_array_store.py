"""Arrays that are kept in memory or in a file, and sums of them."""

import errno
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rankfold.calibration.array_store import ArrayStore, StoredSum
from rankfold.errors import RankfoldError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def normal(*shape: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def test_arrays_beyond_the_limit_come_back_from_a_file_as_they_were(folder: Path) -> None:
    arrays = [normal(5, 7), normal(3, 2, 2, dtype="float32"), normal(0, 4), normal(9).reshape(3, 3)]
    store = ArrayStore(limit=arrays[0].nbytes)
    kept = [store.keep(array) for array in arrays]
    assert store.bytes_on_disk == sum(array.nbytes for array in arrays[1:])
    for array, stored in zip(arrays, kept, strict=True):
        assert stored.load().dtype == array.dtype
        np.testing.assert_array_equal(stored.load(), array)


@pytest.mark.skipif(sys.platform == "win32", reason="its open files have names")
def test_the_file_has_no_name(folder: Path) -> None:
    stored = ArrayStore(limit=0).keep(normal(4))
    assert list(folder.iterdir()) == []
    np.testing.assert_array_equal(stored.load(), normal(4))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("of", ["float64", "float32"])
def test_a_sum_in_the_file_is_that_in_memory_to_the_bit(folder: Path, dtype: type, of: str) -> None:
    sums = [StoredSum(ArrayStore(limit)) for limit in (0, 2**20)]
    for size in range(3, 8):
        term = normal(size, 11, 11, dtype=of).sum(0)
        for total in sums:
            total.add(term, dtype)
    on_disk, in_memory = (total.over(7) for total in sums)
    assert on_disk.dtype == dtype
    np.testing.assert_array_equal(on_disk, in_memory)
    np.testing.assert_array_equal(sums[0].over(7), on_disk)  # reading changes nothing


def test_a_sum_does_not_change_its_first_term() -> None:
    term, total = np.ones(3), StoredSum(ArrayStore())
    total.add(term, np.float64)
    total.add(term, np.float64)
    np.testing.assert_array_equal(total.over(1), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(term, [1.0, 1.0, 1.0])


def test_a_full_disk_is_an_error_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RankfoldError, match=r"No space left.*TMPDIR"):
        ArrayStore(limit=0).keep(normal(4))


@pytest.mark.parametrize("limit", [0, 2**20])
def test_rows_wait_until_they_are_taken(folder: Path, limit: int) -> None:
    store = ArrayStore(limit)
    before = store.keep(normal(4))
    rows = store.reserve(7, 3, np.float32)
    after = store.keep(normal(5))
    for parts in ((2, 5), (1, 3)):
        arrays = [normal(size, 3, dtype="float32") for size in parts]
        for array in arrays:
            rows.add(array)
        assert rows.waiting == sum(parts)
        np.testing.assert_array_equal(rows.take(), np.concatenate(arrays))
        assert rows.waiting == 0
    np.testing.assert_array_equal(before.load(), normal(4))
    np.testing.assert_array_equal(after.load(), normal(5))
