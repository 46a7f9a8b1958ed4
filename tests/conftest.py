"""What holds for all tests."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from benchbench.api.pictures import FORMATS, Pictures

settings.register_profile("bench", deadline=None)  # machines are shared: no test asserts a time
settings.load_profile("bench")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a third of all tests' time they wait."""
    return min(len(os.sched_getaffinity(0)), 4) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """One process of pytest-xdist after the other: the first compiles the tests, which takes as long as the rest."""
    with Path(__file__).open() as this:
        fcntl.flock(this, fcntl.LOCK_EX)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process of pytest-xdist is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` in this process draws no pictures: for tests that look at none."""
    monkeypatch.setattr("benchbench.cli.drawing.drawn", lambda *_, **__: ([], []))


@pytest.fixture
def drawn_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` in this process draws here, without processes that import matplotlib: test_drawing.py shows that it is
    the same."""

    def drawn(pictures: Pictures, formats: Sequence[str] = FORMATS) -> tuple[list[Path], list[str]]:
        return pictures.draw(formats), []

    monkeypatch.setattr("benchbench.cli.drawing.drawn", drawn)
