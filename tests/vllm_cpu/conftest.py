"""What the tests against a real vLLM share: the models, and the runs of one sweep by each kind of engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import PYTHON, ROOT, Swept, carry_out, write_sweep
from make_models import make_models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(2400))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.exit(f"{PYTHON.relative_to(ROOT)} is missing: make vllm", returncode=1)
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def same_sweep(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that each kind of engine carries out: token ids, and no tokenizer in the server."""
    flags = {"skip-tokenizer-init": True}
    prompts = {"kind": "token_ids", "vocab": [100, 700]}
    return write_sweep(
        tmp_path_factory.mktemp("same") / "same.yaml", models / "tiny-llama", flags=flags, prompts=prompts
    )


@pytest.fixture(scope="session")
def served(same_sweep: Path) -> Swept:
    return carry_out(same_sweep, same_sweep.parent / "served")


@pytest.fixture(scope="session")
def in_process(same_sweep: Path) -> Swept:
    return carry_out(same_sweep, same_sweep.parent / "in-process", "--set", "engine.kind=vllm_inprocess")
