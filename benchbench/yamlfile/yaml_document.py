"""A YAML document that remembers where each value was written.

The scalars follow YAML 1.2's core schema, as editors do: `off` is text, `1e-3` a number, `12:30` text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchbench.yamlfile.mistakes import Fault, Loc, Problem, SpecError, show

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # aliases of aliases multiply

_ABSENT = object()
_TAG = "tag:yaml.org,2002:"


class _CoreLoader(yaml.SafeLoader):
    # The C loader is not used: it overflows the stack on deep nesting, and a sweep is a page.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 # as its base


for _name, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}.items():
    _CoreLoader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "merge": str,
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, 0 if text[:2] in {"0x", "0o"} else 10),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


@dataclass(frozen=True, slots=True)
class YamlText:
    """A document that stands in no file: `name` is what problems call it, as `<stdin>`.

    `options`: for each line what on the command line wrote it, as `--input`, by which its problems are called instead.
    """

    name: str
    raw: bytes
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


@dataclass
class Document:
    """Plain data, and for each place in it the file (or `--set` option) and the line that wrote it."""

    file: str
    data: Any = None
    places: dict[Loc, tuple[str, int | None]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def locate(self, fault: Fault) -> Problem:
        """The fault with its file, its line (or the nearest known one) and its key path."""
        loc = self._written(fault.loc)
        nearest = next((loc[:n] for n in range(len(loc), -1, -1) if loc[:n] in self.places), ())
        file, line = self.places.get(nearest, (self.file, None))
        return Problem(file, line, ".".join(str(part) for part in loc), fault.message, fault.allowed)

    def _written(self, loc: Loc) -> Loc:
        # Validation turns a single value into a list of one: that index stands in no file.
        here, written = self.data, list[int | str]()
        for part in loc:
            if here is _ABSENT or (isinstance(here, dict) and (isinstance(part, str) or part in here)):
                here = here.get(part, _ABSENT) if isinstance(here, dict) else _ABSENT
            elif isinstance(here, (list, tuple)) and isinstance(part, int) and 0 <= part < len(here):
                here = here[part]
            else:
                continue
            written.append(part)
        return tuple(written)

    def put(self, text: str) -> None:
        """Apply `key.path=value` (the text of a `--set`); its value is YAML, list indices are numbers."""
        source = f"--set {text}"
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            self.problems.append(Problem(source, None, "", "is not key.path=value"))
            return
        parsed = parse_yaml(value, source, lined=False)
        self.problems.extend(parsed.problems)
        if parsed.problems:
            return
        here, loc = self.data, list[int | str]()
        index = -1
        while (index := index + 1) < len(keys):
            keys[index:] = _dotted(here, keys[index:])
            place = _child(here, keys[index])
            if isinstance(place, str) and not isinstance(here, dict):
                self.problems.append(Problem(source, None, ".".join(keys[: index + 1]), place))
                return
            loc.append(place)
            if index == len(keys) - 1:
                here[place] = parsed.data
            elif isinstance(here, dict) and here.get(place) is None:
                here[place] = {}
                self.places[tuple(loc)] = (source, None)
            here = here[place]
        self._replace_places(tuple(loc), source)

    def _replace_places(self, loc: Loc, source: str) -> None:
        for old in [old for old in self.places if old[: len(loc)] == loc]:
            del self.places[old]
        self.places[loc] = (source, None)


def _dotted(here: object, keys: list[str]) -> list[str]:
    """`keys`, the first of them joined where `here` has a key with dots in it, as a product of settings does."""
    joined = (n for n in range(len(keys), 1, -1) if isinstance(here, dict) and ".".join(keys[:n]) in here)
    first = next(joined, 1)
    return [".".join(keys[:first]), *keys[first:]]


def _child(here: object, key: str) -> int | str:
    """The key or index to step into; where `here` is no mapping, text says why there is none."""
    if isinstance(here, dict):
        return key
    if not isinstance(here, list):
        return f"nothing can be set inside {show(here)}"
    if not re.fullmatch(r"[0-9]{1,6}", key) or int(key) >= len(here):
        return f"is a list of {len(here)}: give an index from 0 to {len(here) - 1}"
    return int(key)


def read_yaml(source: Path | YamlText, file: str) -> Document:
    """Read a file, or a text, of one YAML mapping.

    What makes the rest unreadable raises SpecError with one problem; the other problems are collected in
    the document.
    """
    raw = source.raw if isinstance(source, YamlText) else _bytes_of(source, file)
    if len(raw) > MAX_BYTES:
        raise SpecError([Problem(file, None, "", f"is larger than {MAX_BYTES} bytes: not a sweep file")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError([Problem(file, line, "", "is not UTF-8 text")]) from None
    document = parse_yaml(text, file, lined=True)
    if document.data is None and not document.problems:
        document.problems.append(Problem(file, None, "", "is empty: a sweep needs name, model, engine and grid"))
    elif document.data is not None and not isinstance(document.data, dict):
        document.problems.append(
            Problem(file, document.places[()][1], "", f"must be a mapping (key: value), is {show(document.data)}")
        )
    if not isinstance(document.data, dict):
        raise SpecError(document.problems)
    if isinstance(source, YamlText) and source.options:
        written = document.places.items()
        document.places = {loc: (source.options[line - 1], None) for loc, (_, line) in written if loc and line}
    return document


def _bytes_of(path: Path, file: str) -> bytes:
    """What is in the file, up to a byte more than is read of one."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        known: dict[Any, str] = {IsADirectoryError: "is a folder, not a sweep file", FileNotFoundError: "no such file"}
        raise SpecError([Problem(file, None, "", known.get(type(error), reason))]) from None


def parse_yaml(text: str, file: str, *, lined: bool) -> Document:
    """Parse one YAML value; `lined` says whether line numbers mean something to the reader.

    Text that is not YAML gives a document without data and with one problem.
    """
    document = Document(file)
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
        if node is not None:
            builder = _Builder(document, lined)
            document.places[()] = (file, builder.line(node))
            document.data = builder.value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None and lined else None
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        hint = "; YAML indents with spaces" if "'\\t'" in reason else ""
        return Document(file, problems=[Problem(file, line, "", f"is not YAML: {reason}{hint}")])
    except RecursionError:
        return Document(file, problems=[Problem(file, None, "", "is nested too deeply")])
    except _TooManyValuesError:
        return Document(file, problems=[Problem(file, None, "", f"holds more than {MAX_VALUES} values")])
    return document


class _TooManyValuesError(Exception):
    pass


class _Builder:
    """Turns YAML nodes into data, noting places and problems in the document."""

    def __init__(self, document: Document, lined: bool) -> None:
        self.document, self.lined = document, lined
        self.count = 0
        self.open: set[int] = set()  # nodes being built: an alias to one of them is a cycle

    def line(self, node: yaml.Node) -> int | None:
        return node.start_mark.line + 1 if self.lined else None

    def complain(self, node: yaml.Node, loc: Loc, message: str) -> None:
        path = ".".join(str(part) for part in loc)
        self.document.problems.append(Problem(self.document.file, self.line(node), path, message))

    def value(self, node: yaml.Node, loc: Loc) -> Any:  # noqa: ANN401 # whatever the YAML says
        self.count += 1
        if self.count > MAX_VALUES:
            raise _TooManyValuesError
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, loc)
        if id(node) in self.open:
            self.complain(node, loc, "refers to itself")
            return None
        kind = node.tag.removeprefix(_TAG)
        self.open.add(id(node))
        if isinstance(node, yaml.MappingNode) and kind == "map":
            built: Any = self.mapping(node, loc)
        elif isinstance(node, yaml.SequenceNode) and kind == "seq":
            built = [self.item(item, (*loc, index)) for index, item in enumerate(node.value)]
        else:
            self.complain(node, loc, f"has the tag {node.tag}, which is not used in sweeps")
            built = None
        self.open.discard(id(node))
        return built

    def item(self, node: yaml.Node, loc: Loc) -> Any:  # noqa: ANN401 # whatever the YAML says
        self.document.places[loc] = (self.document.file, self.line(node))
        return self.value(node, loc)

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        built: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        for key_node, value_node, own in self.pairs(node, loc):
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                self.complain(key_node, loc, "a key must be text: put it in quotes")
                continue
            key = key_node.value
            if key not in first:
                first[key] = key_node
                self.document.places[*loc, key] = (self.document.file, self.line(key_node))
                built[key] = self.value(value_node, (*loc, key))
            elif own:
                where = f"in line {self.line(first[key])}" if self.lined else "before"
                self.complain(key_node, (*loc, key), f"duplicate key, first given {where}")
        return built

    def pairs(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """Keys and values, the mapping's own before those of its merge keys (`<<`), so that its own win."""
        merges: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merges += value.value if isinstance(value, yaml.SequenceNode) else [value]
            else:
                yield key, value, True
        for merge in merges:
            if not isinstance(merge, yaml.MappingNode) or id(merge) in self.open:
                self.complain(merge, (*loc, "<<"), "must name another mapping, or a list of them")
                continue
            self.open.add(id(merge))
            yield from ((key, value, False) for key, value, _ in self.pairs(merge, loc))
            self.open.discard(id(merge))

    def scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:  # noqa: ANN401 # one of YAML's scalars
        kind = node.tag.removeprefix(_TAG)
        if kind not in _SCALARS:
            self.complain(node, loc, f"has the tag {node.tag}, which is not used in sweeps")
            return None
        try:
            return _SCALARS[kind](node.value)
        except (ValueError, KeyError):
            self.complain(node, loc, f"is no {kind} that can be read, is {show(node.value)}")
            return None
