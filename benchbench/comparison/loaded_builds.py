"""Whether two builds loaded the same code, or what differs, from what the manifest says of their starts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchbench.identity.identity import known
from benchbench.store.facts import Manifest

SHOWN = 3  # names of a kind that are listed


@dataclass(frozen=True, slots=True)
class _Build:
    """What each start of a build has loaded: (kind, name, content). `varying`: what only some of its starts have."""

    code: frozenset[tuple[str, str, str]]
    varying: frozenset[tuple[str, str, str]]
    backends: Mapping[str, str]
    packages: Mapping[str, str]
    unread: tuple[str, ...]


SAME = "both builds loaded the same code"


def loaded_notes(base: tuple[str, Manifest, str], candidate: tuple[str, Manifest, str]) -> list[str]:
    """Sentences about two sides, each a name, the manifest of its run and its variant; none where nothing is known.

    One that begins with SAME comes first.
    """
    old, new = _build(*base[1:]), _build(*candidate[1:])
    notes = [
        f"{name}: not all of its starts loaded the same code ({_named(_names(build.varying))})"
        for (name, _, _), build in ((base, old), (candidate, new))
        if build and build.varying
    ]
    if old is None or new is None:
        return [*_one_server(base, candidate), *notes]
    unread = sorted({Path(path).name for build in (old, new) for path in build.unread})
    changes, packages = _changes(old, new), _changed(old.packages, new.packages)
    if old.code == new.code and not packages:
        libraries = sum(kind == "library" for kind, _, _ in old.code)
        python = _named(_names(entry for entry in old.code if entry[0] == "Python"))
        of = f"{libraries} librar{'y' if libraries == 1 else 'ies'}" + (f", Python of {python}" if python else "")
        more = f"; {'; '.join(changes)}" if changes else ""
        sure = SAME if not unread else "as far as it could be read, both builds loaded the same code"
        notes.insert(0, f"{sure} ({of}): only flags, variables and data can differ{more}")
    elif changes or packages:
        notes.insert(0, f"of what the builds loaded, {'; '.join([*changes, *packages])}")
    if unread:
        notes.append(f"loaded, but replaced on disk since then or not readable: {_named(unread)}")
    return notes


def _one_server(base: tuple[str, Manifest, str], candidate: tuple[str, Manifest, str]) -> list[str]:
    """Two variants of a run that are one endpoint, whose code nobody can read."""
    (_, manifest, old), (_, other, new) = base, candidate
    engines = [known(manifest.get("starts", []), variant)[0] for variant in (old, new)]
    if manifest != other or old == new or engines[0] != engines[1] or engines[0].get("engine.kind") != "endpoint":
        return []
    return [f"{SAME}: they are one server ({engines[0]['engine.url']})"]


def _build(manifest: Manifest, variant: str) -> _Build | None:
    starts = [start for start in manifest.get("starts", []) if start.get("variant", "") == variant]
    facts = [loaded for start in starts if (loaded := manifest.get("loaded", {}).get(start.get("loaded", "")))]
    if not facts:
        return None
    each = [
        frozenset(
            [("library", Path(path).name, digest) for path, digest in loaded["libraries"].items()]
            + [("Python", name, digest) for name, digest in loaded["python"].items()]
        )
        for loaded in facts
    ]
    code = frozenset.intersection(*each)
    environment: Mapping[str, Any] = starts[-1].get("environment") or manifest.get("engine_environment") or {}
    return _Build(
        code,
        frozenset.union(*each) - code,
        {kind: ", ".join(names) for kind, names in (starts[-1].get("backends") or {}).items()},
        environment.get("packages") or {},
        tuple(path for loaded in facts for path in loaded["unread"]),
    )


def _changes(old: _Build, new: _Build) -> list[str]:
    """What differs, kind by kind."""
    differing = old.code ^ new.code
    changes = []
    if libraries := _names(entry for entry in differing if entry[0] == "library"):
        changes.append(
            f"{len(libraries)} {'library differs' if len(libraries) == 1 else 'libraries differ'} ({_named(libraries)})"
        )
    if python := _names(entry for entry in differing if entry[0] == "Python"):
        changes.append(f"Python of {_named(python)} differs")
    return changes + _changed(old.backends, new.backends)


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """`torch 2.9 -> 2.10`, where both sides are known."""
    kinds = [kind for kind in {**before, **after} if before.get(kind) != after.get(kind)] if before and after else []
    changes = [f"{kind} {before.get(kind, 'none')} -> {after.get(kind, 'none')}" for kind in kinds[:SHOWN]]
    return changes + ([f"{len(kinds) - SHOWN} more"] if len(kinds) > SHOWN else [])


def _names(entries: Iterable[tuple[str, str, str]]) -> list[str]:
    return sorted({name for _, name, _ in entries})


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
