"""What the sweeps of sweeps/h200 stand on: shapes, a tokenizer of one word per id, a plugin that vLLM finds."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest

from benchbench.model.roofline import platform_of, touched_bytes
from benchbench.model.served import served_models, served_on
from benchbench.spec import load_spec, make_plan, spec_from_mapping

H200 = Path(__file__).parent.parent / "sweeps" / "h200"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("file", sorted(H200.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variants_model_is_there_and_holds_the_longest_request(file: Path) -> None:
    for cell in make_plan(load_spec(file)).cells:
        if cell.engine.kind == "endpoint":
            continue
        args = cell.engine.model_dump()["args"]
        config = json.loads((H200.parent.parent / args["model"] / "config.json").read_text())
        assert cell.input + cell.output <= args["max-model-len"] <= config["max_position_embeddings"]
        assert cell.batch is not None
        assert cell.batch <= args["max-num-seqs"]
        assert cell.prompts.vocab is not None
        assert cell.prompts.vocab[1] <= min(config["bos_token_id"], config["eos_token_id"])


def test_variants_differ_in_their_quantisation_alone() -> None:
    plain = json.loads((H200 / "models/m2-bf16/config.json").read_text())
    for name in ("m2-int8-quark", "m2-int8-ct"):
        config = json.loads((H200 / "models" / name / "config.json").read_text())
        assert config.pop("quantization_config")
        assert config == plain
    whole = json.loads((H200 / "models/m2-int8-quark-62/config.json").read_text())
    part = json.loads((H200 / "models/m2-int8-quark/config.json").read_text())
    assert whole | {name: part[name] for name in ("num_hidden_layers", "attn_type_list")} == part
    assert whole["num_hidden_layers"] == len(whole["attn_type_list"]) == 62


def test_the_tokenizer_has_one_word_for_each_id(tmp_path: Path) -> None:
    shutil.copy(H200 / "models/llama8b/config.json", tmp_path)
    module(H200 / "tokenizer.py").write(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(128256))
    assert {word for word in vocabulary if not word.isalpha()} == {"<bos>", "<eos>", "<unk>"}
    assert (vocabulary["a"], vocabulary["ba"]) == (0, 26)


def test_vllm_finds_the_plugin() -> None:
    (plugin,) = distributions(path=[str(H200 / "plugin")])
    (entry,) = plugin.entry_points
    assert entry.group == "vllm.general_plugins"
    assert callable(getattr(module(H200 / "plugin" / f"{entry.module}.py"), entry.attr))


def test_each_variant_is_bounded_by_its_own_weights() -> None:
    spec = load_spec(H200 / "m2-int8.yaml")
    args = {"bf16": "m2-bf16", "int8": "m2-int8-quark"}
    given = {name: {"engine": {"args": {"model": str(H200 / "models" / model)}}} for name, model in args.items()}
    engine = spec.engine.model_dump(mode="json")
    engine["args"]["model"] = str(H200 / "models" / "m2-bf16")
    spec = spec_from_mapping({**spec.model_dump(mode="json"), "engine": engine, "variants": given})
    models = served_models(spec)
    manifest = {
        "model_facts": asdict(models[""]),
        "variant_model_facts": {"int8": asdict(models["int8"])},
        "accelerator": served_on(spec, []),
    }
    plain, int8 = platform_of(manifest, "bf16"), platform_of(manifest, "int8")
    assert models["bf16"] == models[""]
    assert (plain.model.weight_dtype, int8.model.weight_dtype) == ("bf16", "int8")
    assert touched_bytes(plain.model) > 1.5 * touched_bytes(int8.model)
