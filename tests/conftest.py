"""What holds for all tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("bench", deadline=None)  # machines are shared: no test asserts a time
settings.load_profile("bench")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` in this process draws no pictures: for tests that look at none."""
    monkeypatch.setattr("benchbench.cli.drawing.drawn", lambda *_, **__: ([], []))
