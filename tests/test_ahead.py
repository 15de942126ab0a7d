"""Work in threads, ahead of its use: in order, no further than said, and its errors in their turn."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilamp_lite.common.progress import announced_to, stage
from vilamp_lite.video.ahead import made_ahead, mapped_ahead


@given(items=st.lists(st.integers()), threads=st.integers(1, 5))
def test_results_come_in_order(items: list[int], threads: int) -> None:
    assert list(mapped_ahead(lambda item: (item, 2 * item), items, threads)) == [(item, 2 * item) for item in items]


def test_threads_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3)
    assert len(list(mapped_ahead(lambda _: meeting.wait(timeout=60), range(3), 3))) == 3


def test_no_more_is_begun_than_there_are_threads() -> None:
    begun = []

    def counted() -> Iterator[int]:
        for number in range(100):
            begun.append(number)
            yield number

    results = mapped_ahead(lambda number: number, counted(), 4)
    for used in range(5):
        assert next(results) == used
        assert len(begun) == used + 5, "four ahead of the one in use"
    results.close()
    assert len(begun) == 9


def test_an_error_comes_in_its_turn() -> None:
    results = mapped_ahead(lambda number: 1 // number, [2, 1, 0, 3], 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_what_is_made_ahead_is_closed_early() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1, 100)
        finally:
            closed.set()

    made = made_ahead(items())
    assert next(made) == 1
    made.close()
    assert closed.is_set()


def test_while_stages_are_measured_all_is_done_in_turns() -> None:
    """So that each stage has its own time, and is announced: a thread would not know who listens."""

    def items() -> Iterator[int]:
        for number in range(3):
            with stage(f"make {number}"):
                yield threading.get_ident()

    announced: list[str] = []
    with announced_to(lambda name: announced.append(name) or nullcontext()):
        assert set(made_ahead(items())) == {threading.get_ident()}
    assert announced == ["make 0", "make 1", "make 2"]
    assert threading.get_ident() not in set(made_ahead(items()))
    assert len(announced) == 3
