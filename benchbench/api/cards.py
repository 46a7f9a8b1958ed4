"""A run's sections in a model card, written into it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchbench.analysis.runs import Run
from benchbench.api.run_tables import parts_of
from benchbench.api.selecting import chosen_rows
from benchbench.errors import CardError
from benchbench.publish.card import SECTIONS, difference, performance_section, tables_below, with_sections


@dataclass(frozen=True, slots=True, kw_only=True)
class CardChange:
    """A card before and after; `sections` that were made for it, `notes` on what should be looked at."""

    card: Path
    before: str
    after: str
    sections: tuple[str, ...]
    notes: tuple[str, ...]

    def difference(self) -> list[str]:
        """The lines of a unified diff, with their ends; none where nothing differs."""
        return difference(self.before, self.after, str(self.card))

    def write(self) -> None:
        """Replace the card in one step; its mode and owner stay, and a link to it stays a link. Raises OSError."""
        from benchbench.store.run_directory import replace_file

        if self.after != self.before:
            path = self.card.resolve()
            if not path.stat().st_mode & 0o222:  # to replace it the folder's mode would be enough
                raise PermissionError(errno.EACCES, "it is read-only", str(path))
            replace_file(path, self.after.encode(), like=path.stat())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a card gets: `sections` (performance, model, evaluation, comparison), and what they are made of.

    `after`: the heading behind which a section without markers is put. `model`, `evaluation`: the folders of those
    sections. `only`: the cells, by key or selection. `columns`, `pivot`: of the table. `allow_empty`: also a section
    without any number.
    """

    after: str | None = None
    sections: Sequence[str] = ("performance",)
    model: str | Path | None = None
    evaluation: str | Path | None = None
    only: Sequence[str] = ()
    columns: Sequence[str] | None = None
    pivot: str | None = None
    allow_empty: bool = False


def card_change(run: Run, card: str | Path, wanted: Wanted) -> CardChange:
    """What a card would become. Raises ValueError, RunError and OSError; writes nothing."""
    path = Path(card)
    before, after = _read(path), wanted.after
    texts = {name: _section(name, run, wanted) for name in dict.fromkeys(wanted.sections)}
    try:
        changed = with_sections(before, texts, after)
        below = tables_below(before, texts, after) if after else ()
    except CardError as error:
        raise CardError(f"{path}: {error}") from None
    notes = (f"{path}: below {after!r} stands a table already, lines {at}: it stays, below the new one" for at in below)
    return CardChange(card=path, before=before, after=changed, sections=tuple(texts), notes=tuple(notes))


def _read(card: Path) -> str:
    if card.exists() and not card.is_file() and not card.is_dir():
        raise ValueError(f"{card}: not a regular file")  # a FIFO would never end
    try:
        return card.read_bytes().decode()
    except FileNotFoundError:
        raise ValueError(f"{card}: no such card (make one with a heading, and name it in --after)") from None
    except IsADirectoryError:
        raise ValueError(f"{card}: a folder, not a card") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{card}: not UTF-8 (byte {error.start})") from None


def _section(name: str, run: Run, wanted: Wanted) -> str:
    """A section's text. Raises ValueError and RunError."""
    if name not in SECTIONS:
        raise ValueError(f"section {name!r}: unknown (allowed: {', '.join(SECTIONS)})")
    if name in {"performance", "comparison"} and not wanted.allow_empty:
        rows = chosen_rows(run.rows, wanted.only) if name == "performance" else run.rows
        if all(row["status"] == "invalid" for row in rows):
            reasons = "; ".join(sorted({row["reasons"] for row in rows}))
            raise ValueError(f"{run.path}: has no valid cell ({reasons}): nothing to publish (or use --allow-empty)")
    if name == "performance":
        parts = parts_of(chosen_rows(run.rows, wanted.only), columns=wanted.columns, pivot=wanted.pivot)
        return performance_section(run, parts)
    if name == "comparison":
        from benchbench.comparison.candidates import pairs_of
        from benchbench.comparison.tables import comparison_table

        if pairs := pairs_of(run):
            return comparison_table(pairs)
        raise ValueError(f"{run.path}: has no variants to compare")
    folder = wanted.model if name == "model" else wanted.evaluation
    if folder is None:
        raise ValueError(f"--section {name}: needs --{name} FOLDER")
    return _model(Path(folder)) if name == "model" else _evaluation(Path(folder))


def _model(folder: Path) -> str:
    from benchbench.model.config import read_model
    from benchbench.publish.model_section import model_section

    return model_section(read_model(folder))


def _evaluation(folder: Path) -> str:
    from benchbench.accuracy.section import evaluation_section, read_evaluation

    return evaluation_section(read_evaluation(folder))
