"""The addresses of a name, in an order of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Address = tuple[int, tuple[str, int]]  # family, socket address


def in_order(infos: Iterable[Any]) -> list[Address]:
    """What `getaddrinfo` gave: families as it has them, the addresses of each sorted.

    Resolvers turn the addresses of a name round from answer to answer. Whoever asks, at whatever time, is to reach the
    same machine first: all senders, and the look at its counters.
    """
    addresses = [(int(family), where) for family, _, _, _, where in infos]
    families = list(dict.fromkeys(family for family, _ in addresses))
    return sorted(addresses, key=lambda each: (families.index(each[0]), each[1]))
