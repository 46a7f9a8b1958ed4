"""`variants: {product: {engine.args.max-num-seqs: [64, 128], ...}}` written out as variants. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchbench.secrets import mask_text
from benchbench.yamlfile.mistakes import Fault, Loc, show, unknown_key

PRODUCT, BASELINE = "product", "baseline"
MAX_VARIANTS = 256
MAX_NAME = 160  # names of files are made of it, of 255 bytes at most
EXAMPLE = "as engine.args.max-num-seqs: [64, 128]"
ROOTS = ("engine", "git")

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]{1,40}")


class Axis(NamedTuple):
    """One setting and its values: its place in the data, and its path in a variant, as (engine, args, max-num-seqs)."""

    loc: Loc
    path: tuple[str, ...]
    values: Sequence[Any]

    @property
    def key(self) -> str:
        """`engine.args.max-num-seqs`."""
        return ".".join(self.path)


class Expansion(NamedTuple):
    """A sweep's data with its product written out, what is wrong with the product, and where each setting came from.

    With faults the data lacks the variants and what speaks of them. `origins`: made variant -> path -> place.
    """

    data: dict[str, Any]
    faults: list[Fault]
    origins: dict[str, dict[tuple[str, ...], Loc]]

    def written(self, fault: Fault) -> Fault:
        """A fault within a made variant, at the value in the product that caused it."""
        if fault.loc[:1] != ("variants",) or len(fault.loc) < 2 or fault.loc[1] not in self.origins:
            return fault
        inner = fault.loc[2:]
        for path, loc in self.origins[str(fault.loc[1])].items():
            if inner == path and fault.message.startswith("unknown key"):
                return fault._replace(loc=loc[:-1])  # whatever its values
            if inner[: len(path)] == path:
                return fault._replace(loc=(*loc, *inner[len(path) :]))
        return fault._replace(loc=("variants", PRODUCT))


def expanded(data: Mapping[str, Any], reserved: Collection[str]) -> Expansion:
    """`variants.product` replaced by its combinations (the last axis runs fastest), other variants left as they are.

    A combination's name is `key=value,...`, each key the shortest end of its dotted path that is unique and not among
    `reserved`. `variants.baseline` beside a product names the values of one of them, which `baseline` then names.
    """
    variants = data.get("variants")
    if not isinstance(variants, dict) or PRODUCT not in variants:
        return Expansion(dict(data), [], {})
    axes, faults = _axes(variants[PRODUCT])
    labels = _labels(axes, reserved)
    made: dict[str, dict[str, Any]] = {}
    origins: dict[str, dict[tuple[str, ...], Loc]] = {}
    for places in itertools.product(*(range(len(axis.values)) for axis in axes)) if not faults else ():
        name = _name(labels, [axis.values[at] for axis, at in zip(axes, places, strict=True)])
        made[name] = _variant(axes, places)
        origins[name] = {axis.path: (*axis.loc, at) for axis, at in zip(axes, places, strict=True)}
    faults += [
        Fault(("variants", name), "is also the name of one of the product") for name in variants.keys() & made.keys()
    ]
    if longest := max((name for name in made if len(name) > MAX_NAME), key=len, default=""):
        message = f"makes a name of {len(longest)} characters: write these variants out, with names of their own"
        faults.append(Fault(("variants", PRODUCT), message, f"{MAX_NAME} at most"))
    if any(mask_text(name) != name for name in made):
        faults.append(Fault(("variants", PRODUCT), "would show a secret in the variants' names"))
    baseline = data.get("baseline")
    if BASELINE in variants and made:
        chosen, wrong = _baseline(variants[BASELINE], axes, labels)
        faults += wrong
        if baseline is not None:
            faults.append(Fault(("baseline",), f"is given twice: here and as variants.{BASELINE}"))
        baseline = chosen
    if faults:
        about = {"variants", "baseline", "blocks", "overrides"}
        return Expansion({key: value for key, value in data.items() if key not in about}, faults, {})
    whole: dict[str, Any] = {}
    for name, variant in variants.items():
        whole |= made if name == PRODUCT else {} if name == BASELINE else {name: variant}
    return Expansion({**data, "variants": whole, "baseline": baseline}, [], origins)


def settings_of(variant: str) -> dict[str, str]:
    """The settings that a variant's name tells: `a=1,b=x` -> {a: 1, b: x}; nothing of other names."""
    pairs = [part.partition("=") for part in variant.split(",")]
    return {key: value for key, equals, value in pairs if equals and key}


def short_settings(names: Collection[str], most: int) -> dict[str, str]:
    """Of names that are settings, those that are not alike in all; where that is more than `most` characters, with the
    initials of keys: `max-num-batched-tokens=2048,tp=4` -> `mnbt=2048,tp=4`. Other names are as they are.
    """
    of_name = {name: settings_of(name) for name in names if len(settings_of(name)) == name.count(",") + 1}
    keys = list(dict.fromkeys(key for settings in of_name.values() for key in settings))
    alike = {key for key in keys if len({settings.get(key) for settings in of_name.values()}) == 1}
    alike = alike if len(of_name) > 1 and len(alike) < len(keys) else set()
    initials = {key: _initials(key) for key in keys}
    written = {key: key if list(initials.values()).count(first) > 1 else first for key, first in initials.items()}
    written = {key: key if len(re.split(r"[-_.]+", key)) == 1 else short for key, short in written.items()}
    whole = {
        name: {key: value for key, value in settings.items() if key not in alike} or settings
        for name, settings in of_name.items()
    }
    text = {name: ",".join(f"{key}={value}" for key, value in whole[name].items()) for name in of_name}
    if any(len(short) > most for short in text.values()):
        text = {name: ",".join(f"{written[key]}={value}" for key, value in whole[name].items()) for name in of_name}
    return {name: text.get(name, name) for name in names}


def _initials(key: str) -> str:
    return "".join(word[:1] for word in re.split(r"[-_.]+", key))


def initials_in(short: Mapping[str, str]) -> str:
    """What the initials in short names stand for, `mnbt: max-num-batched-tokens`; nothing where there are none."""
    known: dict[str, str] = {}
    for name, text in short.items():
        written, whole = settings_of(text), settings_of(name)
        known |= {_initials(key): key for key in whole if key not in written and _initials(key) in written}
    return ", ".join(f"{first}: {key}" for first, key in known.items())


def value_text(value: object) -> str:
    """A value as it stands in names: itself where a file's name and `--only` can hold it, else its start and a hash."""
    whole = _whole(value)
    if _PLAIN.fullmatch(whole):
        return whole
    start = re.sub(r"[^A-Za-z0-9_.+-]+", "-", whole).strip("-")[:20]
    return f"{start}~{hashlib.sha256(whole.encode(errors='surrogatepass')).hexdigest()[:6]}"


def _whole(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def _name(labels: Sequence[str], values: Sequence[Any]) -> str:
    return ",".join(f"{label}={value_text(value)}" for label, value in zip(labels, values, strict=True))


def _variant(axes: Sequence[Axis], places: Sequence[int]) -> dict[str, Any]:
    variant: dict[str, Any] = {}
    for axis, at in zip(axes, places, strict=True):
        here = variant
        for part in axis.path[:-1]:
            here = here.setdefault(part, {})
        here[axis.path[-1]] = axis.values[at]
    return variant


def _leaves(
    value: Mapping[Any, Any], loc: Loc, path: tuple[str, ...], whole: Collection[str]
) -> Iterator[tuple[Loc, tuple[str, ...], Any]]:
    """Dotted keys and nested ones (as `--set` makes them) alike: place, path and value. Those of `whole` end a path."""
    for key, item in value.items():
        at, parts = (*loc, key), (*path, *str(key).split("."))
        if isinstance(item, dict) and item and ".".join(parts) not in whole:
            yield from _leaves(item, at, parts, whole)
        else:
            yield at, parts, item


def _axes(product: object) -> tuple[list[Axis], list[Fault]]:
    where: Loc = ("variants", PRODUCT)
    if not isinstance(product, dict) or not product:
        return [], [Fault(where, f"must be a mapping of settings to lists of values, is {show(product)}", EXAMPLE)]
    axes: list[Axis] = []
    faults: list[Fault] = []
    for loc, path, values in _leaves(product, where, (), ()):
        if path[0] not in ROOTS or len(path) < 2 or not all(map(_KEY.fullmatch, path)):
            message = f"is no setting of a variant (a variant of one's own cannot be called {PRODUCT})"
            faults.append(
                Fault(loc, message, f"engine.args.FLAG, engine.env.NAME, another engine.KEY or git.KEY, {EXAMPLE}")
            )
        elif not isinstance(values, (list, tuple)) or not values:
            faults.append(Fault(loc, f"must be a list of values, is {show(values)}", EXAMPLE))
        else:
            axes.append(Axis(loc, path, values))
            faults += _clashes(axes)
    if math.prod(len(axis.values) for axis in axes) > MAX_VARIANTS:
        count = math.prod(len(axis.values) for axis in axes)
        faults.append(Fault(where, f"has {count} combinations", f"{MAX_VARIANTS} at most"))
    return axes, faults


def _clashes(axes: Sequence[Axis]) -> Iterator[Fault]:
    """What the last axis has twice, in itself or with those before it."""
    last, texts = axes[-1], [_whole(value) for value in axes[-1].values]
    for at, text in enumerate(texts):
        if text in texts[:at]:
            yield Fault((*last.loc, at), f"holds {show(last.values[at])} twice")
    for other in axes[:-1]:
        common = min(len(other.path), len(last.path))
        if other.path[:common] == last.path[:common]:
            message = "is given twice" if other.path == last.path else f"and {other.key}: one is part of the other"
            yield Fault(last.loc, message)


def _labels(axes: Sequence[Axis], reserved: Collection[str]) -> list[str]:
    ends = [[".".join(axis.path[-n:]) for n in range(1, len(axis.path) + 1)] for axis in axes]
    taken = [end for of_axis in ends for end in of_axis]
    return [next((e for e in of_axis if taken.count(e) == 1 and e not in reserved), of_axis[-1]) for of_axis in ends]


def _baseline(value: object, axes: Sequence[Axis], labels: Sequence[str]) -> tuple[str | None, list[Fault]]:
    """The name of the combination that `variants.baseline` gives the values of."""
    where: Loc = ("variants", BASELINE)
    if not isinstance(value, dict):
        return None, [
            Fault(
                where, f"must be the values of one of the product, is {show(value)}", "as engine.args.max-num-seqs: 64"
            )
        ]
    known = {key: at for at, pair in enumerate(zip(axes, labels, strict=True)) for key in (pair[0].key, pair[1])}
    chosen = {at: axis.values[0] for at, axis in enumerate(axes) if len(axis.values) == 1}
    faults: list[Fault] = []
    for loc, path, wanted in _leaves(value, where, (), known):
        at = known.get(".".join(path))
        if at is None:
            faults.append(Fault(loc, *unknown_key(".".join(path), [axis.key for axis in axes])))
            continue
        texts = [_whole(item) for item in axes[at].values]
        if _whole(wanted) not in texts:
            faults.append(Fault(loc, f"unknown value {show(wanted)}", ", ".join(texts)))
        chosen[at] = wanted
    for at, axis in enumerate(axes):
        if at not in chosen and not faults:
            allowed = ", ".join(map(_whole, axis.values))
            faults.append(Fault(where, f"needs a value of {axis.key}", allowed))
    return (None if faults else _name(labels, [chosen[at] for at in range(len(axes))])), faults
