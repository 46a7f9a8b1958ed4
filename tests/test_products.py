"""Variants as a product of settings: every combination once, under a name that its values make."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from driving import CARRIED_OUT, bench, summary, write_sweep
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.cli.sweep_schema import json_schema
from benchbench.products.product import MAX_VARIANTS, expanded, settings_of, short_settings, value_text
from benchbench.products.select import FIELDS
from benchbench.secrets import mask_text, masked
from benchbench.spec import SpecError, load_spec, make_plan, parse_selection, spec_from_mapping
from benchbench.spec.plan import variant_spec

SWEEP = """\
name: s
model: m
engine: {kind: vllm_serve, args: {max-model-len: 4096}}
grid: {input: 8, output: 4, batch: [1, 2]}
variants:
  product:
    engine.args.max-num-batched-tokens: [2048, 8192]
    engine.args.tensor-parallel-size: [4, 8]
  baseline: {engine.args.max-num-batched-tokens: 8192, engine.args.tensor-parallel-size: 4}
"""
NAMES = [
    "max-num-batched-tokens=2048,tensor-parallel-size=4",
    "max-num-batched-tokens=2048,tensor-parallel-size=8",
    "max-num-batched-tokens=8192,tensor-parallel-size=4",
    "max-num-batched-tokens=8192,tensor-parallel-size=8",
]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *sets: str) -> Any:
    Path("s.yaml").write_text(text)
    return load_spec("s.yaml", sets)


def refused(text: str, *sets: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(text, *sets)
    return [str(problem) for problem in caught.value.problems]


def test_a_product_is_written_out_and_its_names_are_its_values() -> None:
    spec = load(SWEEP)
    assert list(spec.variants) == NAMES
    assert spec.baseline == NAMES[2]
    assert variant_spec(spec, NAMES[1]).engine.args == {
        "max-model-len": 4096,
        "max-num-batched-tokens": 2048,
        "tensor-parallel-size": 8,
    }
    assert spec_from_mapping(json.loads(spec.model_dump_json())) == spec
    product = json_schema()["properties"]["variants"]["properties"]["product"]
    assert re.search(product["propertyNames"]["pattern"], "engine.args.tensor-parallel-size")


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ("tensor-parallel-size=8", [1, 3]),
        ("tensor-parallel-size>=5,max-num-batched-tokens<8192", [1]),
        ("tensor-parallel-size!=8", [0, 2]),
        (f"variant={NAMES[2]}", [2]),
        (f"variant != {NAMES[2]} , batch=1", [0, 1, 3]),
        (NAMES[3], [3]),
    ],
)
def test_cells_are_selected_by_settings(only: str, kept: list[int]) -> None:
    spec = load(SWEEP + "overrides: [{when: tensor-parallel-size=8, rounds: {min: 7}}]\n")
    assert {cell.variant for cell in make_plan(spec, only).cells} == {NAMES[k] for k in kept}
    by_eight = {cell.variant for cell in make_plan(spec).cells if cell.rounds.min == 7}
    assert by_eight == {NAMES[1], NAMES[3]}


def test_named_variants_stand_beside_a_product() -> None:
    spec = load(SWEEP.replace("  baseline", "  plain: {}\n  baseline"))
    assert list(spec.variants) == [*NAMES, "plain"]
    assert {c.variant for c in make_plan(spec, "tensor-parallel-size!=8").cells} == {NAMES[0], NAMES[2]}
    without = load(SWEEP.split("  baseline", maxsplit=1)[0] + "  plain: {}\nbaseline: plain\n")
    assert without.baseline == "plain"
    named = load(MINIMAL + "variants: {baseline: {}, new: {engine: {args: {a: 1}}}}\n")
    assert list(named.variants) == ["baseline", "new"]


MINIMAL = SWEEP.split("variants:", maxsplit=1)[0]
WRONG = {
    "unknown value": (
        SWEEP.replace("tensor-parallel-size: 4}", "tensor-parallel-size: 6}"),
        "s.yaml:9: variants.baseline.engine.args.tensor-parallel-size: unknown value 6 (allowed: 4, 8)",
    ),
    "unknown setting": (
        SWEEP.replace("baseline: {", "baseline: {x: 1, "),
        "s.yaml:9: variants.baseline.x: unknown key (allowed: engine.args.max-num-batched-tokens, engine.args.tensor-",
    ),
    "incomplete": (
        SWEEP.replace("  baseline: {", "  baseline: {tensor-parallel-size: 4} #"),
        "s.yaml:9: variants.baseline: needs a value of engine.args.max-num-batched-tokens (allowed: 2048, 8192)",
    ),
    "twice": (SWEEP + "baseline: x\n", "s.yaml:10: baseline: is given twice: here and as variants.baseline"),
    "no list": (
        SWEEP.replace("[4, 8]", "4"),
        "s.yaml:8: variants.product.engine.args.tensor-parallel-size: must be a list of values, is 4 (",
    ),
    "the same value": (
        SWEEP.replace("[4, 8]", "[4, 4.0]"),
        "s.yaml:8: variants.product.engine.args.tensor-parallel-size.1: holds 4.0 twice",
    ),
    "no setting": (
        MINIMAL + "variants: {product: {tp: [1, 2]}}\n",
        "s.yaml:5: variants.product.tp: is no setting of a variant (a variant of one's own cannot be called product) ",
    ),
    "nothing": (MINIMAL + "variants:\n  product:\n", "s.yaml:6: variants.product: must be a mapping of settings "),
    "one in the other": (
        MINIMAL + "variants: {product: {engine.args: [{a: 1}], engine.args.b: [1, 2]}}\n",
        "s.yaml:5: variants.product.engine.args.b: and engine.args: one is part of the other",
    ),
    "name taken": (
        MINIMAL + "variants:\n  product: {engine.args.a: [1, 2]}\n  a=2: {}\n",
        "s.yaml:7: variants.a=2: is also the name of one of the product",
    ),
    "too many": (
        MINIMAL + f"variants: {{product: {{engine.args.a: {list(range(MAX_VARIANTS + 1))}}}}}\n",
        f"s.yaml:5: variants.product: has {MAX_VARIANTS + 1} combinations (allowed: {MAX_VARIANTS} at most)",
    ),
    "secret": (
        MINIMAL + "variants: {product: {engine.env.HF_TOKEN: [hf_abcdefgh, hf_ijklmnop]}}\n",
        "s.yaml:5: variants.product: would show a secret in the variants' names",
    ),
    "a value that its key refuses": (
        MINIMAL + "variants:\n  product:\n    engine.nice:\n      - 0\n      - 77\n    engine.args.a: [1, 2]\n",
        "s.yaml:9: variants.product.engine.nice.1: must be at most 19, is 77",
    ),
    "a key that is none": (
        MINIMAL + "variants:\n  product:\n    engine.nica: [1, 2]\n",
        "s.yaml:7: variants.product.engine.nica: unknown key, did you mean nice? ",
    ),
    "git without its repository": (
        MINIMAL + "variants:\n  product:\n    git.ref: [main, new]\n",
        "s.yaml:6: variants.product: is missing",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_in_a_product_is_one_line_with_its_place(text: str, message: str) -> None:
    problems = refused(text)
    assert len(problems) == 1, problems
    assert problems[0].startswith(message)


def test_set_changes_a_product() -> None:
    spec = load(SWEEP, "variants.product.engine.args.tensor-parallel-size=[1, 4]", "variants.product.engine.nice=[3]")
    assert [settings_of(name)["tensor-parallel-size"] for name in spec.variants] == ["1", "4", "1", "4"]
    assert {variant_spec(spec, name).engine.nice for name in spec.variants} == {3}
    spec = load(SWEEP, "variants.baseline.engine.args.tensor-parallel-size=8")
    assert spec.baseline == NAMES[3]
    assert len(load(MINIMAL, "variants.product.engine.args.a=[1, 2]").variants) == 2
    line = "--set variants.product.engine.args.tensor-parallel-size=8"
    assert refused(SWEEP, line[6:])[0].startswith(f"{line}: variants.product.engine.args.tensor-parallel-size: must be")


KEYS = ["engine.args.a", "engine.args.b-c", "engine.env.A", "engine.env.a", "engine.args.batch", "engine.nice"]
VALUES = st.one_of(
    st.integers(-9, 9), st.booleans(), st.none(), st.sampled_from([0.5, 1e-5]), st.text(max_size=60),
    st.lists(st.integers(0, 3), min_size=1, max_size=2),
)  # fmt: skip


def text_of(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


AXES = st.dictionaries(
    st.sampled_from(KEYS), st.lists(VALUES, min_size=1, max_size=3, unique_by=text_of), min_size=1, max_size=3
)


@settings(max_examples=50)  # each selects every variant among all
@given(AXES)
def test_every_combination_is_there_exactly_once_and_its_name_tells_it(axes: dict[str, list[Any]]) -> None:
    made = expanded({"variants": {"product": axes}}, FIELDS)
    if made.faults:  # a value that reads as a secret, or a long name
        assert {fault.loc for fault in made.faults} == {("variants", "product")}
        return
    variants = made.data["variants"]
    whole = [json.dumps(variant, sort_keys=True) for variant in variants.values()]
    assert len(set(whole)) == len(whole) == len(list(itertools.product(*axes.values())))
    for name, variant in variants.items():
        settings = settings_of(name)
        assert "/" not in name
        assert name.isprintable()
        assert name.isascii()
        assert len(settings) == len(axes)
        assert not settings.keys() & set(FIELDS)
        assert masked(name) == mask_text(name) == name
        for key, text in zip(axes, settings.values(), strict=True):
            here = variant
            for part in key.split("."):
                here = here[part]
            assert value_text(here) == text
        chosen = [other for other in variants if parse_selection(name, variants).matches({"variant": other})]
        exactly = [
            other for other in variants if parse_selection(f"variant={name}", variants).matches({"variant": other})
        ]
        assert exactly == [name]
        assert name in chosen


@given(AXES, st.data())
def test_the_baseline_names_one_of_them(axes: dict[str, list[Any]], data: st.DataObject) -> None:
    values = {key: data.draw(st.sampled_from(of_axis)) for key, of_axis in axes.items()}
    made = expanded({"variants": {"product": axes, "baseline": values}}, FIELDS)
    if not made.faults:
        variant = made.data["variants"][made.data["baseline"]]
        alone = expanded({"variants": {"product": {key: [value] for key, value in values.items()}}}, FIELDS)
        assert [variant] == list(alone.data["variants"].values())


def test_a_product_is_measured_compared_and_selected() -> None:
    options = "engine.options.max_num_batched_tokens"
    variants = {"product": {options: [4, 64], "engine.options.law.itl_s": [0.004, 0.008]}}
    baseline = {"max_num_batched_tokens": 4, "itl_s": 0.004}
    path = write_sweep(
        Path("s.yaml"), "", engine={"kind": "simulator"}, variants={**variants, "baseline": baseline},
        grid={"input": 8, "output": 6, "batch": [1, 2]}, rounds={"warmup": 1, "min": 2}, blocks=2,
    )  # fmt: skip
    plan = bench("sweep", path, "--dry-run", "--only", "itl_s=0.008")
    assert "4 starts" in plan.stdout
    result = bench("sweep", path, "--out", "run", "--no-plots", "--only", "itl_s=0.004")
    assert result.exit_code in CARRIED_OUT, result.stderr
    names = {f"max_num_batched_tokens={tokens},itl_s=0.004" for tokens in (4, 64)}
    assert {row["variant"] for row in summary(Path("run"))} == names
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert len(manifest["spec"]["variants"]) == 4
    assert manifest["spec"]["baseline"] == "max_num_batched_tokens=4,itl_s=0.004"
    assert {start["variant"] for start in manifest["starts"]} == names
    compared = bench("compare", "run")
    assert "max_num_batched_tokens=64,itl_s=0.004" in compared.stdout
    assert "max_num_batched_tokens=4,itl_s=0.004" in compared.stdout


def test_figures_write_what_differs() -> None:
    assert list(short_settings(NAMES, 24).values()) == [
        "mnbt=2048,tps=4",
        "mnbt=2048,tps=8",
        "mnbt=8192,tps=4",
        "mnbt=8192,tps=8",
    ]
    assert short_settings(NAMES[:2], 24)[NAMES[0]] == "tensor-parallel-size=4"
    assert short_settings([*NAMES[:2], "main"], 90)["main"] == "main"
    assert short_settings(NAMES[:1], 24) == {NAMES[0]: "mnbt=2048,tps=4"}
