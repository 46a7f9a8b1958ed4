"""The sweeps that are shipped: to run (`bench demo`), or to begin one's own with (`bench init`)."""

from __future__ import annotations

from pathlib import Path

from benchbench.errors import BenchError


def sample_file(name: str) -> Path:
    """A shipped sweep: beside this module where it is installed, in sweeps/ in a checkout. Raises BenchError."""
    here = Path(__file__).parent
    for folder in (here / "sweeps", here.parents[1] / "sweeps"):
        if (file := folder / f"{name}.yaml").is_file():
            return file
    raise BenchError(f"{name}.yaml is missing from this installation: install it anew")


def own_copy(name: str, file: str) -> str:
    """The text of a shipped sweep as a file of the user's: the commands in it name that file."""
    text = sample_file(name).read_text(encoding="utf-8").replace(f"sweeps/{name}.yaml", file)
    first, _, rest = text.partition("\n")
    schema = "# For editors: bench schema > sweep.schema.json\n"
    return f"{schema}{first}\n{rest}" if first.startswith("# yaml-language-server:") else text
