"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from benchbench.api.pictures import FORMATS, Pictures

settings.register_profile("bench", deadline=None)  # machines are shared: no test asserts a time
settings.load_profile("bench")


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
