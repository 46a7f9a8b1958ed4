"""What a validator raises: words that become a mistake of the file (`mistakes`)."""

from __future__ import annotations

from pydantic_core import PydanticCustomError


def problem(message: str, allowed: str = "") -> PydanticCustomError:
    """An error of a validator, in the words that the user will read."""
    return PydanticCustomError("bench", message, {"allowed": allowed} if allowed else None)
