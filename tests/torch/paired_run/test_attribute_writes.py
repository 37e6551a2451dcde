"""Methods of a class that several calls watch."""

from concurrent.futures import ThreadPoolExecutor

from rankfold_torch.paired_run.attribute_writes import Watched


def test_watchers_of_a_method_come_and_go_in_any_order() -> None:
    class Owner:
        def method(self, x: int) -> int:
            return x

    original = Owner.method
    watched = Watched(Owner, "method")
    seen: list[tuple[str, int]] = []
    first = watched.by(lambda _, x: seen.append(("first", x)))
    second = watched.by(lambda _, x: seen.append(("second", x)))
    with ThreadPoolExecutor(1) as pool:
        first.__enter__()
        pool.submit(second.__enter__).result()
        assert Owner().method(3) == 3
        first.__exit__(None, None, None)
        assert Owner().method(5) == 5
        pool.submit(second.__exit__, None, None, None).result()
    assert seen == [("first", 3), ("second", 3), ("second", 5)]
    assert Owner.method is original
