"""What code an engine has loaded: the libraries and code objects that its processes map, and the Python beside them.

Read after a start and before its first round, never while one runs. Linux only; elsewhere nothing is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

THREADS = 8  # that hash; the libraries of a GPU build have gigabytes
MOST_FILES = 20_000  # of one package; a folder with more is no package

_MAPPED = re.compile(r"\.so(?:\.[\w.]+)?$|\.(?:hsaco|cubin|co|fatbin)$")
_FINDS = re.compile(r"'\w+': '(/[^']+)'")  # in the MAPPING of an editable install
_SUFFIXES = (".py", ".json", ".csv", ".co", ".hsaco", ".cubin")  # of a package: also its tuned configurations
_DIGESTS: dict[tuple[int, int, int, int], str] = {}  # device, inode, mtime and size of a file that was read


def loaded_code(pid: int | None) -> dict[str, Any]:
    """What process `pid` and its descendants have loaded; empty where nothing can be found out.

    Keys: `libraries` (path: digest of each file that they map or run), `python` (name: digest, of each package that has
    such a library, and of the program: a script with what stands beside it, or a package), `unread` (mapped files that
    were replaced or deleted since then, a program of Python whose files are not to be found, and what else cannot be
    read) and `digest` (of names and contents: equal where the same code is loaded, wherever it lies). Digests are the
    first 16 digits of SHA-256.
    """
    import psutil

    try:
        if pid is None or pid in {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}:
            return {}  # a server within whoever runs us is a test's
        main = psutil.Process(pid)
        processes = [main, *main.children(recursive=True)]
    except psutil.Error:
        return {}
    mapped = sorted({path for process in processes for path in _mapped(process.pid)})
    if not mapped:
        return {}
    root = Path(f"/proc/{pid}/root")  # its own files, also where it runs in a container
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda path: _digest(root / path[1:]), mapped)
        libraries = {path: digest for path, digest in zip(mapped, digests, strict=True) if digest}
        packages = {folder.name: folder for path in libraries if (folder := _package(root / path[1:]))}
        packages = _program(processes, root, {folder.parent for folder in packages.values()}) | packages
        python = {name: _folder_digest(folder, pool) for name, folder in sorted(packages.items())}
    if not libraries:
        return {}
    unread = [path for path in mapped if path not in libraries] + [name for name in python if not python[name]]
    parts = [(Path(path).name, digest) for path, digest in libraries.items()]
    parts += [*python.items(), *((path, "") for path in unread)]
    digest = _of_text("\n".join(sorted(map(" ".join, parts))))
    return {
        "digest": digest,
        "libraries": libraries,
        "python": {name: digest for name, digest in python.items() if digest},
        "unread": unread,
    }


def _mapped(pid: int) -> Iterator[str]:
    """Paths of the program that a process is, and of what it maps of code; " (deleted)" after deleted ones."""
    with contextlib.suppress(OSError):
        yield str(Path(f"/proc/{pid}/exe").readlink())
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/maps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            path = line.rstrip("\n").split(maxsplit=5)[5:]
            if path and path[0].startswith("/") and _MAPPED.search(path[0].removesuffix(" (deleted)")):
                yield path[0]


def _digest(file: Path) -> str:
    """Of a file's content; empty if it cannot be read."""
    try:
        with file.open("rb") as data:
            stat = os.fstat(data.fileno())
            key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if key not in _DIGESTS:
                _DIGESTS[key] = hashlib.file_digest(data, "sha256").hexdigest()[:16]
    except OSError:
        return ""
    return _DIGESTS[key]


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _package(library: Path) -> Path | None:
    """The outermost package that a library is part of, if it is."""
    package = None
    for folder in library.parents:
        if not (folder / "__init__.py").is_file():
            return package
        package = folder
    return package


def _program(processes: list[psutil.Process], root: Path, installed: Collection[Path]) -> dict[str, Path]:
    """By its name, the folder of the file that the first Python runs, or the package of that name (`-m`, a command).

    Where its files are not to be found, a path that does not exist.
    """
    import psutil

    with contextlib.suppress(psutil.Error, OSError, StopIteration):
        process = next(process for process in processes if Path(process.exe()).name.startswith("python"))
        words, folder = process.cmdline(), root / process.cwd().removeprefix("/")
        word = next((word for word in words[1:] if not word.startswith("-")), "")
        file = folder / (root / word[1:] if word.startswith("/") else word)
        if file.suffix == ".py" and file.is_file():
            return {file.name: file.parent}
        name = file.name.partition(".")[0]
        programs = (root / words[0].removeprefix("/"), file) if words[0].startswith("/") else (file,)
        beside = (path for program in programs for path in program.parent.parent.glob("lib/python3*/site-packages"))
        installed = (*installed, *beside)
        bases = (folder, *installed, *(base for packages in installed for base in _editable(packages, root)))
        for base in bases if name.isidentifier() else ():
            if next((base / name).glob("*.py"), None):
                return {name: base / name}
        return {f"Python's {name if name.isidentifier() else 'program'}": root / "nowhere"}
    return {}


def _editable(installed: Path, root: Path) -> Iterator[Path]:
    """Folders outside site-packages that hold packages: of its .pth files, and of setuptools' finders."""
    with contextlib.suppress(OSError, UnicodeError):
        for file in sorted(installed.glob("*.pth")):
            yield from (root / line[1:] for line in file.read_text("utf-8").splitlines() if line.startswith("/"))
        for file in sorted(installed.glob("__editable___*_finder.py")):
            yield from ((root / path[1:]).parent for path in _FINDS.findall(file.read_text("utf-8")))


def _folder_digest(folder: Path, pool: ThreadPoolExecutor) -> str:
    """Of the names and contents of a package's files; empty where they are none, too many, or cannot be read."""
    files: list[Path] = []
    try:
        for path, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not _is_foreign(Path(path, name)))
            files += [Path(path, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
            if len(files) > MOST_FILES:
                return ""
    except OSError:
        return ""
    if not files:
        return ""
    digests: Iterable[str] = pool.map(_digest, files)
    lines = [f"{file.relative_to(folder)} {digest}" for file, digest in zip(files, digests, strict=True)]
    return _of_text("\n".join(lines))


def _is_foreign(folder: Path) -> bool:
    """Whether a folder beside a script is no part of it: hidden, packages of an environment, tests."""
    return folder.name.startswith((".", "__")) or folder.name == "site-packages" or (folder / "pyvenv.cfg").exists()
