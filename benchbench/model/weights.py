"""Parameters and bytes of a checkpoint, from the headers of its safetensors files. No tensor is read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchbench.errors import ModelError
from benchbench.model.quantization import Quantization, dtype_word

_HEADER_MOST = 100_000_000  # bytes, the format's own limit
# Of what a quantized checkpoint stores, this is no parameter of the model; nor are tables of rotary embeddings.
_NO_PARAMETER = re.compile(
    r"(_scales?(_inv|_\d)?|_zero_points?|_g_idx|_shape|_absmax)$"
    r"|(^|\.)(scales|qzeros|g_idx|absmax|quant_map|nested_\w+|inv_freq|scale_inv)$|quant_state\."
)
_EXPERT = re.compile(r"(^|\.)experts\.")
_LOOKED_UP = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.(weight|qweight|weight_packed)$")
_NOT_TEXT = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|image\w*|multi_modal_projector|mm_projector)\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError that names the file."""
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{file}: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: must be a JSON object")
    return data


def fingerprint(folder: Path) -> str:
    """Of a checkpoint's configuration and the names and sizes of its weights; "" where there is no such folder."""
    if not (folder / "config.json").is_file():
        return ""
    sizes = sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors"))
    return hashlib.sha256((folder / "config.json").read_bytes() + repr(sizes).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Weights:
    """Parameters by part and by dtype; `bytes` by part as stored, scales too. Parts: experts (routed), embedding,
    not_text (towers for images or sound), extra (layers after the last: MTP), rest.
    """

    parts: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    head: bool = False  # an output head of its own, so that the embedding is only looked up

    @property
    def total(self) -> int:
        """Parameters without those of extra layers."""
        return sum(self.parts.values())


def count_weights(
    folder: Path, layers: int | None, quantization: Quantization | None
) -> tuple[Weights | None, int | None, int | None]:
    """What all shards hold, None when one is missing; bytes and number of the shards. Raises ModelError."""
    index = folder / "model.safetensors.index.json"
    size: int | None = None
    if index.is_file():
        data = read_json(index)
        names, metadata = data.get("weight_map"), data.get("metadata")
        if not isinstance(names, dict):
            raise ModelError(f"{index}: has no weight_map")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        size = int(total) if isinstance(total, int | float) else None
        files = [folder / Path(name).name for name in sorted({str(name) for name in names.values()})]
    else:
        files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files or not all(file.is_file() for file in files):
        return None, size, len(files) or None
    weights = Weights()
    for name, word, shape, stored in (tensor for file in files for tensor in _tensors(file)):
        part = _part(name, layers)
        weights.bytes[part] = weights.bytes.get(part, 0) + stored
        if part == "extra" or _NO_PARAMETER.search(name):
            continue
        dtype, amount = _unpacked(word, math.prod(shape), quantization)
        weights.parts[part] = weights.parts.get(part, 0) + amount
        weights.dtypes[dtype] = weights.dtypes.get(dtype, 0) + amount
        weights.head |= bool(_HEAD.search(name))
    return weights if weights.total else None, sum(weights.bytes.values()), len(files)


def _part(name: str, layers: int | None) -> str:
    layer = _LAYER.search(name)
    if _NOT_TEXT.search(name):
        return "not_text"
    if name.startswith("mtp.") or (layer and layers and int(layer[1]) >= layers):
        return "extra"
    if _EXPERT.search(name):
        return "experts"
    return "embedding" if _LOOKED_UP.search(name) else "rest"


def _unpacked(word: str, elements: int, quantization: Quantization | None) -> tuple[str, int]:
    """A tensor's dtype and number of weights: I32 holds 32 bits of packed weights, U8 (bitsandbytes too) two of 4."""
    packed = quantization.weight_dtype if quantization else "int4"
    bits = int(re.sub(r"\D", "", packed) or 4)  # of int3 too
    if word == "I32" or (word == "U8" and bits == 4):
        return packed, elements * (32 if word == "I32" else 8) // bits
    return dtype_word(word) or word.lower(), elements


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int], int]]:
    """Name, dtype, shape and bytes of each tensor: 8 bytes of length, then that much JSON (safetensors' format)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length <= _HEADER_MOST else b"")
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = map(int, about["data_offsets"])
                yield name, str(about["dtype"]), [int(length) for length in about["shape"]], end - begin
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file}: does not begin as a safetensors file (a pointer of git-lfs?)") from None
