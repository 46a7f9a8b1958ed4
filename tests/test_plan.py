"""From a sweep to cells: the grid, overrides, selections, keys and order."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.spec import (
    ClosedLoad,
    OpenLoad,
    SelectionError,
    SpecError,
    load_spec,
    make_plan,
    parse_selection,
    spec_from_mapping,
)

HERE = Path(__file__).parent
BASE: dict[str, Any] = {
    "name": "s",
    "model": "m",
    "engine": {"kind": "endpoint", "url": "http://127.0.0.1:8000"},
    "grid": {"input": [8, 16], "output": 4, "batch": [1, 2, 4]},
    "order": "as_written",
}


def plan(only: str | None = None, **changes: Any) -> Any:
    return make_plan(spec_from_mapping(BASE | changes), only)


AXIS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(AXIS, AXIS, AXIS, st.integers(0, 5))
def test_the_grid_is_the_product_of_its_axes_each_point_once(
    inputs: list[int], outputs: list[int], batches: list[int], seed: int
) -> None:
    grid = {"input": inputs, "output": outputs, "batch": batches}
    points = list(dict.fromkeys(itertools.product(inputs, outputs, batches)))
    cells = plan(grid=[grid, {axis: values[0] for axis, values in grid.items()}]).cells
    assert [(cell.input, cell.output, cell.batch) for cell in cells] == points
    assert [cell.index for cell in cells] == list(range(len(points)))
    assert len({cell.key for cell in cells}) == len(points)
    shuffled = plan(grid=grid, order="random", seed=seed).cells
    assert [(cell.input, cell.output, cell.batch) for cell in sorted(shuffled, key=lambda cell: cell.index)] == points


@given(st.integers(2, 6), st.integers(1, 12), st.integers(0, 5))
def test_every_block_starts_each_variant_once_and_orders_are_balanced(count: int, blocks: int, seed: int) -> None:
    names = [f"v{k}" for k in range(count)]
    made = plan(variants={name: {"engine": {"url": f"http://h/{name}"}} for name in names}, blocks=blocks, seed=seed)
    starts = made.sessions
    assert [start.block for start in starts] == [block for block in range(blocks) for _ in names]
    orders = [[start.variant for start in starts if start.block == block] for block in range(blocks)]
    assert all(sorted(order) == names for order in orders)
    period = count if count % 2 == 0 else 2 * count
    whole = orders[: blocks // period * period]
    for pairs in ([(0, order[0]) for order in whole], [pair for order in whole for pair in itertools.pairwise(order)]):
        counts = {pair: pairs.count(pair) for pair in pairs}
        assert len(set(counts.values())) <= 1
    if count == 2:
        assert all(order == ["v0", "v1"][:: -1 if block % 2 else 1] for block, order in enumerate(orders))
    assert len(made.cells) == len({cell.key for cell in made.cells}) == 6 * count


def test_the_cells_of_a_block_are_in_one_order_for_all_variants_and_each_block_has_its_own() -> None:
    variants = {name: {"engine": {"url": f"http://h/{name}"}} for name in "ab"}
    made = plan(variants=variants, order="random", grid={"input": 8, "output": 4, "batch": [*range(1, 9)]}, blocks=4)
    orders = [[cell.batch for cell in start.cells] for start in made.sessions]
    assert orders[::2] == orders[1::2]
    assert len({tuple(order) for order in orders}) == 4
    few = plan("variant=a,batch=2", variants=variants)
    assert [(start.block, start.variant, len(start.cells)) for start in few.sessions] == [(b, "a", 2) for b in range(6)]
    assert {cell.engine.url for cell in few.cells} == {"http://h/a"}


def test_the_plan_of_the_published_grid() -> None:
    cells = make_plan(load_spec(HERE.parent / "sweeps" / "w7900d.yaml")).cells
    lines = [f"{cell.index} {cell.key} {cell.label} requests={cell.requests} tokens={cell.tokens}" for cell in cells]
    assert lines == (HERE / "golden" / "w7900d-plan.txt").read_text().splitlines()


def test_loads_give_requests_tokens_and_labels() -> None:
    assert [cell.requests for cell in plan().cells[:3]] == [1, 2, 4]
    closed = plan(load={"kind": "closed"}).cells[2]
    assert (closed.load, closed.requests, closed.tokens) == (ClosedLoad(kind="closed", requests=20), 20, 80)
    assert plan(load={"kind": "closed", "requests": 5}).cells[2].requests == 5
    points = [{"input": 1, "output": 3}, {"input": 1, "output": 3, "rate": 4}]
    opened = plan(load={"kind": "open", "rate": 2.5, "requests": 7}, grid=points)
    assert [(cell.rate, cell.batch, cell.label, cell.tokens) for cell in opened.cells] == [
        (2.5, None, "in=1 out=3 rate=2.5", 21),
        (4.0, None, "in=1 out=3 rate=4", 21),
    ]
    assert isinstance(opened.cells[1].load, OpenLoad)
    assert opened.cells[1].load.rate == 4.0


def test_an_open_load_needs_one_rate_for_each_cell() -> None:
    point = {"input": 1, "output": 1}
    for load, grid, message in [
        ({"kind": "open"}, point, "<spec>: grid.rate: is missing: an open load needs a rate here or in load.rate"),
        ({"kind": "open", "rate": 1}, point | {"rate": 2}, "<spec>: load.rate: is never used"),
        ({"kind": "closed"}, point, "<spec>: grid.batch: is missing: a closed load needs a batch"),
    ]:  # fmt: skip
        with pytest.raises(SpecError) as caught:
            plan(load=load, grid=grid)
        assert str(caught.value).startswith(message)


def test_overrides_merge_into_the_cells_they_select_and_later_ones_win() -> None:
    cells = plan(
        rounds={"min": 3, "max": 4},
        load={"kind": "closed", "requests": 100},
        engine=BASE["engine"] | {"extra_body": {"a": 1}},
        overrides=[
            {"when": "batch>=2", "rounds": {"min": 9}, "engine": {"extra_body": {"b": 2}}},
            {"when": "batch>=2,input=16", "rounds": {"warmup": 0, "max": 2}, "load": {"kind": "static"}},
        ],
    ).cells
    rounds = [(cell.rounds.min, cell.rounds.max, cell.rounds.warmup) for cell in cells]
    assert rounds == [(3, 4, "auto"), (9, 20, "auto"), (9, 20, "auto"), (3, 4, "auto"), (2, 2, 0), (2, 2, 0)]
    assert [cell.engine.extra_body for cell in cells[:2]] == [{"a": 1}, {"a": 1, "b": 2}]
    assert [cell.requests for cell in cells] == [100, 100, 100, 100, 2, 4]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"when": "batch>>1"}, "overrides.0.when: batch is compared with a number, not '>1' (allowed: fields input, "),
        ({"rounds": {}}, "overrides.0.when: is missing"),
        ({"when": "batch=1", "name": "x"}, "overrides.0.name: cannot differ between cells (allowed: model, engine, "),
        ({"when": "batch=1", "round": {}}, "overrides.0.round: unknown key, did you mean rounds? (allowed: model, "),
        ({"when": "batch=1", "engine": {"kind": "simulator"}}, "overrides.0.engine.kind: cannot differ between cells"),
        ({"when": "batch=1", "rounds": {"mim": 1}}, "overrides.0.rounds.mim: unknown key, did you mean min?"),
        ({"when": "batch=77", "rounds": {"min": 0}}, "overrides.0.rounds.min: must be at least 1, is 0"),
        ({"when": "batch=1", "load": {"kind": "open"}}, "overrides.0: an open load has no batch"),
        ({"when": "batch=1", "engine": {"api": "chat"}}, "overrides.0: the chat API takes no token ids"),
        ({"when": "batch=4", "load": {"kind": "closed", "requests": 3}}, "overrides: 3 requests cannot keep"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(override: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(overrides=[override])
    assert str(caught.value).startswith(f"<spec>: {message}")


def test_an_override_is_checked_although_the_rest_is_wrong() -> None:
    with pytest.raises(SpecError) as caught:
        plan(model=3, overrides=[{"when": "batch=1", "seed": -1}, {"when": "batch=1", "slo": {"ttft_ms": 0}}])
    assert [problem.path for problem in caught.value.problems] == [
        "model",
        "overrides.0.seed",
        "overrides.1.slo.ttft_ms",
    ]


def test_only_keeps_the_order_and_the_place_in_the_grid() -> None:
    whole = plan(order="random", seed=3).cells
    assert plan("batch>=2, input=8", order="random", seed=3).cells == tuple(
        cell for cell in whole if cell.batch >= 2 and cell.input == 8
    )
    assert [cell.index for cell in whole] != list(range(6))
    for only, message in [
        ("batch>8", "--only batch>8: selects none of the 6 cells"),
        ("size=8", "--only size=8: unknown field 'size' (allowed: fields input, output, batch, rate, variant; "),
        ("", "--only : cannot read '' as a condition like batch>=8 (allowed: fields "),
    ]:
        with pytest.raises(SpecError) as caught:
            plan(only)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("condition", "batches"),
    [
        ("batch=2", {2}),
        ("batch==2", {2}),
        ("batch!=2", {1, 3, 4}),
        ("batch<2", {1}),
        ("batch<=2", {1, 2}),
        ("batch>2", {3, 4}),
        ("batch>=2", {2, 3, 4}),
        ("batch<2.5", {1, 2}),
        ("batch>1e0", {2, 3, 4}),
        ("batch=-3", set()),
    ],
)
def test_each_operator_selects_what_it_says(condition: str, batches: set[int]) -> None:
    cells = [{"input": 8, "batch": batch} for batch in (1, 2, 3, 4)]
    assert {cell["batch"] for cell in cells if parse_selection(condition).matches(cell)} == batches
    assert not parse_selection(condition).matches({"input": 8, "batch": None}), "what a cell lacks is never selected"


CONDITION = st.builds(
    "{}{}{}".format,
    st.sampled_from(["input", "output", "batch", "rate"]),
    st.sampled_from(["=", "==", "!=", "<", "<=", ">", ">="]),
    st.integers(-3, 9) | st.sampled_from([0.5, 2.5, 1e3]),
)


@given(
    st.lists(CONDITION, min_size=1, max_size=4),
    st.fixed_dictionaries({name: st.none() | st.integers(1, 9) for name in ("input", "output", "batch", "rate")}),
    st.sampled_from(["", " ", "  "]),
)
def test_a_selection_is_the_conjunction_of_its_comparisons(
    conditions: list[str], cell: dict[str, int | None], space: str
) -> None:
    text = ",".join(f"{space}{condition}{space}" for condition in conditions)
    expected = all(parse_selection(condition).matches(cell) for condition in conditions)
    assert parse_selection(text).matches(cell) is expected


def test_a_selection_of_a_variant_compares_names() -> None:
    assert parse_selection("variant=int8-moe,batch>=8").matches({"variant": "int8-moe", "batch": 8})
    assert parse_selection("variant!=main").matches({"variant": ""})
    assert not parse_selection("variant=").matches({"variant": "main"})
    with pytest.raises(SelectionError, match=r"cannot order it \(allowed: = == !=\)"):
        parse_selection("variant<b")


@given(st.text(max_size=20) | st.text(alphabet="batchinput=<>!,.0123456789e- ", max_size=15))
def test_any_text_is_a_selection_or_a_selection_error(text: str) -> None:
    with contextlib.suppress(SelectionError):
        assert isinstance(parse_selection(text).matches({"batch": 1}), bool)


def test_one_key_never_changes() -> None:
    # A different key makes every stored run impossible to resume.
    assert plan().cells[0].key == "24234c39ecee2273"


def test_fresh_caches_are_another_cell_and_old_keys_stay() -> None:
    engine = {"kind": "vllm_serve"}
    without, off, on = (
        plan(engine=engine | more).cells[0].key for more in ({}, {"fresh_caches": False}, {"fresh_caches": True})
    )
    assert without == off == "b2a852ecefafcccc"
    assert on != off
    with pytest.raises(SpecError, match=r"fresh_caches: sets TRITON_CACHE_DIR itself: take it out of engine\.env"):
        plan(engine=engine | {"env": {"TRITON_CACHE_DIR": "/x"}, "fresh_caches": True})


CHANGES_NUMBERS: list[dict[str, Any]] = [
    {"model": "n"},
    {"seed": 1},
    {"output": "as_served"},
    {"speculative": True},
    {"speculative": {"method": "eagle3", "tokens": 3}},
    {"prompts": {"vocab": [1, 9]}},
    {"prompts": {"kind": "text"}},
    {"prompts": {"tokenizer": "t.json"}},
    {"load": {"kind": "closed"}},
    {"load": {"kind": "closed", "requests": 7}},  # not the default, 5 x batch
    {"grid": {"input": 8, "output": 5, "batch": 1}},
    {"grid": {"input": 9, "output": 4, "batch": 1}},
    {"grid": {"input": 8, "output": 4, "batch": 3}},
    {"engine": BASE["engine"] | {"url": "http://127.0.0.1:8001"}},
    {"engine": BASE["engine"] | {"proxy": "http://h:1"}},
    {"engine": BASE["engine"] | {"extra_body": {"temperature": 0}}},
    {"engine": BASE["engine"] | {"api": "chat"}, "prompts": {"kind": "text"}},
    {"engine": {"kind": "simulator"}},
    {"engine": {"kind": "simulator", "scale": 0.5}},
    {"engine": {"kind": "simulator", "profile": "w7900d"}},
    {"engine": {"kind": "simulator", "options": {"x": 1}}},
    {"grid": {"input": 8, "output": 4, "rate": 1}, "load": {"kind": "open"}},
    {"grid": {"input": 8, "output": 4, "rate": 2}, "load": {"kind": "open"}},
    {"grid": {"input": 8, "output": 4, "rate": 2}, "load": {"kind": "open", "arrival": "gamma"}},
    {"grid": {"input": 8, "output": 4, "rate": 2}, "load": {"kind": "open", "arrival": "gamma", "burstiness": 2}},
    {"grid": {"input": 8, "output": 4, "rate": 2}, "load": {"kind": "open", "max_concurrency": 2}},
    {"grid": {"input": 8, "output": 4, "rate": 2}, "load": {"kind": "open", "requests": 2}},
]
CHANGES_NONE: list[dict[str, Any]] = [
    {"name": "t"},
    {"order": "as_written"},
    {"rounds": {"min": 1, "max": 1, "warmup": 0, "rel_ci": 0.5}},
    {"timeouts": {"stall_s": 1}},
    {"slo": {"ttft_ms": 1}},
    {"validity": {"cached_tokens": 9}},
    {"hardware": {"name": "x", "tflop_s": {"int8": 9}, "bandwidth_gb_s": 9}},
    {"model_facts": {"parameters": "9B", "weight_dtype": "int8"}},
    {"cool_to": 3.0},
    {"speculative": False},
    {"load": {"kind": "static"}},
    {"grid": [{"input": 8, "output": 4, "batch": 1}]},
    {"overrides": [{"when": "batch=1", "rounds": {"min": 1}}]},
    {"engine": BASE["engine"] | {"api_key_env": "KEY", "headers_env": {"A": "B"}, "ca_file": "c", "insecure": True}},
    {"engine": BASE["engine"] | {"args": {"tensor-parallel-size": 8}, "port": 3}},
]


@given(st.sampled_from(CHANGES_NUMBERS), st.sampled_from(CHANGES_NUMBERS), st.lists(st.sampled_from(CHANGES_NONE)))
def test_the_key_changes_with_what_changes_numbers_and_with_nothing_else(
    one: dict[str, Any], two: dict[str, Any], harmless: list[dict[str, Any]]
) -> None:
    base, first, second = plan().cells[0].key, plan(**one).cells[0].key, plan(**two).cells[0].key
    assert base != first
    assert (first == second) == (one == two)
    together = {key: value for change in harmless for key, value in change.items() if key not in one}
    assert plan(**(together | one)).cells[0].key == first
    assert plan(**{key: value for change in harmless for key, value in change.items()}).cells[0].key == base
