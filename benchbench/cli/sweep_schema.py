"""The JSON Schema of sweep files, for editors and for `bench schema`."""

from __future__ import annotations

from typing import Any, get_args

from benchbench.spec.engine_sections import ENGINE_KEYS, Engine
from benchbench.spec.load import OVERRIDABLE
from benchbench.spec.schema import SweepSpec

# Sections whose keys are all optional: an override of them has the same schema as the section.
PARTIAL = ("rounds", "prompts", "timeouts", "slo", "validity")


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a file as users write it: single values beside lists, every key described.

    What only one section can say of another (a batch under an open load, say) is left to `bench validate`.
    """
    schema = SweepSpec.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    product = {"$ref": "#/$defs/Product"}
    properties["grid"] = {
        "description": properties["grid"]["description"],
        "anyOf": [product, {"type": "array", "items": product, "minItems": 1}],
    }
    axes = "values of settings of engine or git; the variants are all their combinations"
    properties["variants"]["properties"] = {
        "product": {
            "description": axes + ", as engine.args.max-num-seqs: [64, 128]",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": r"^(engine|git)\."},
            "additionalProperties": {"type": "array", "minItems": 1},
        },
        "baseline": {
            "description": "beside a product: the values of the variant that the others are compared with",
            "anyOf": [{"$ref": "#/$defs/Variant"}, {"type": "object", "minProperties": 1}],
        },
    }
    for kind, section in zip(ENGINE_KEYS, get_args(Engine), strict=True):
        own = definitions[section.__name__]["properties"]
        for other, keys in ENGINE_KEYS.items():
            for key in keys:
                own.setdefault(key, {"description": f"of engine kind {other}: kept, not used by {kind}"})
    override = definitions["Override"]
    override["additionalProperties"] = False
    for key in OVERRIDABLE:
        whole = key in PARTIAL or key not in {"engine", "load"}
        override["properties"][key] = (
            {k: v for k, v in properties[key].items() if k != "default"}
            if whole
            else {"type": "object", "description": f"keys of {key} that differ in these cells"}
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "benchbench sweep",
        **_tidy({key: value for key, value in schema.items() if key != "title"}),
    }


def _tidy(schema: Any) -> Any:  # noqa: ANN401 # JSON
    """Without the titles that pydantic makes of the names, and alike over pydantic's versions."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if len(schema.get("allOf", ())) == 1:
        schema = {**schema, **schema["allOf"][0]}
    generated = {"allOf"} | ({"title"} if isinstance(schema.get("title"), str) else set())
    if "const" in schema:
        generated |= {"enum", "type"}
    if schema.get("additionalProperties") is True:
        generated.add("additionalProperties")
    return {key: _tidy(value) for key, value in schema.items() if key not in generated}
