"""Where the difference of two builds is, by vLLM's own profiler."""

from __future__ import annotations

from pathlib import Path

from driving import bench
from launching import carry_out, write_sweep

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def test_the_kernels_of_two_dtypes_are_told_apart(models: Path, tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "s.yaml",
        models / "tiny-llama",
        flags={"skip-tokenizer-init": True},
        prompts={"kind": "token_ids", "vocab": [100, 700]},
        grid={"input": 64, "output": 16, "batch": 2},
        variants={
            "bf16": {"engine": {"args": {"dtype": "bfloat16"}}},
            "fp32": {"engine": {"args": {"dtype": "float32"}}},
        },
        blocks=1,
    )
    swept = carry_out(sweep, tmp_path / "run")
    assert swept.code in (0, 3), swept.said
    profiled = bench("profile", sweep, swept.run)
    assert profiled.exit_code == 0, profiled.stderr
    assert "# fp32 against bf16" in profiled.stdout
    assert "(only fp32)" in profiled.stdout  # the matrix product of one dtype is not the other's
    assert len(list((swept.run / "profiles").glob("*-0/*/*.json.gz"))) == 2
    assert (swept.run / "profile.md").read_text().strip() == profiled.stdout.strip()
