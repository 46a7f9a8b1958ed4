"""The way in: a sweep from options, from standard input, from what is shipped, and all of that from a wheel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from driving import CARRIED_OUT, bench, records, sweeping

from benchbench.cli.main import main
from benchbench.cli.starting import NAMES
from benchbench.engines.simulator import SimulatorProcess
from benchbench.spec import load_spec, make_plan

ROOT = Path(__file__).parents[1]
ENDPOINT = "http://127.0.0.1:9"
FAST = ("--input", "16,24", "--output", "4", "--batch", "1,2", "--set", "rounds.min=1", "--set", "rounds.max=1")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with SimulatorProcess("fixed", models=["my-org/My-Model"]) as server:
        yield server.url


def piped(text: str, *words: str) -> tuple[int, str]:
    """`bench WORDS < TEXT`: exit code, and what stdout and stderr said."""
    result = CliRunner().invoke(main, list(words), input=text, prog_name="bench")
    return result.exit_code, result.output


def manifest(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "manifest.json").read_text()))


# ---- One line without a file ----------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_one_line_measures_a_server_exactly_and_keeps_its_sweep(url: str, api: str) -> None:
    words = ["sweep", "--url", url, "--model", "my-org/My-Model", "--api", api, *FAST, "--no-plots", "--out", "run"]
    result = bench(*words)
    assert result.exit_code in CARRIED_OUT, result.stderr
    sent = {(row["asked_input_tokens"], row["input_tokens"], row["status"]) for row in records(Path("run"))}
    assert sent == {(16, 16, "ok"), (24, 24, "ok")}
    text = Path("run/sweep.yaml").read_text()
    assert text in result.stderr
    data = yaml.safe_load(text)
    assert data["engine"] == {"kind": "endpoint", "url": url, "api": api}
    assert data["grid"] == {"input": [16, 24], "output": [4], "batch": [1, 2]}
    assert data["name"] == "My-Model"
    # Resumed by the kept file or by the same options: the same prompts, hence nothing left to do.
    for again in (["sweep", "run/sweep.yaml", "--out", "run", "--no-plots"], words):
        result = bench(*again, "--resume")
        assert "nothing left to do" in result.stdout, result.stderr
    assert manifest(Path("run"))["sets"] == ["rounds.min=1", "rounds.max=1"]
    assert yaml.safe_load(Path("run/sweep.yaml").read_text())["seed"] == data["seed"]


def test_two_runs_have_prompts_of_their_own() -> None:
    words = ["sweep", "--url", ENDPOINT, "--model", "m", "--dry-run", "--save"]
    assert bench(*words, "a.yaml").exit_code == 0
    first = load_spec("a.yaml")
    assert first.seed > 1_700_000_000
    assert len(make_plan(first).cells) == 6
    assert (first.prompts.kind, first.engine.kind) == ("text", "endpoint")


def test_what_options_say() -> None:
    words = ["--api", "chat", "--rate", "0.5, 2", "--key-env", "KEY", "--input", "8", "--save", "a.yaml", "--dry-run"]
    assert bench("sweep", "--url", f"{ENDPOINT}/v4", "--model", 'x/"ä"', *words).exit_code == 0
    data = yaml.safe_load(Path("a.yaml").read_text())
    assert data["engine"] == {"kind": "endpoint", "url": f"{ENDPOINT}/v4", "api": "chat", "api_key_env": "KEY"}
    assert data["grid"] == {"input": [8], "output": [128], "rate": [0.5, 2]}
    assert (data["load"], data["prompts"], data["model"]) == ({"kind": "open"}, {"kind": "text"}, 'x/"ä"')
    several = bench("sweep", "--url", ENDPOINT, "--url", f"{ENDPOINT}/v1", "--model", "x", "--dry-run")
    assert (several.exit_code, f'url: ["{ENDPOINT}", "{ENDPOINT}/v1"]' in several.stderr) == (0, True)
    served = bench("sweep", "--url", ENDPOINT, "--model", "x", "--as-served", "--dry-run")
    assert "\noutput: as_served\n" in served.stderr
    ids = bench("sweep", "--url", ENDPOINT, "--model", "x", "--prompts", "token_ids", "--dry-run")
    assert "prompts: {kind: token_ids}" in ids.stderr
    assert "6 cells" in ids.stdout


def test_save_replaces_no_file() -> None:
    Path("a.yaml").write_text("mine")
    result = bench("sweep", "--url", ENDPOINT, "--model", "m", "--save", "a.yaml", "--dry-run")
    assert (result.exit_code, result.stderr) == (2, "bench sweep: --save a.yaml: exists already, and stays as it is\n")
    assert Path("a.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a sweep FILE (bench init writes one), or --url and --model"),
        (["--batch", "1"], "it needs --url and --model"),
        (["--url", ENDPOINT], "it needs --model"),
        (["x.yaml", "--url", ENDPOINT], "FILE or --url, one of them"),
        (["-", "--key-env", "K"], "FILE or --key-env, one of them"),
        (["--url", ENDPOINT, "--model", "m", "--rate", "1", "--batch", "1"], "--batch or --rate, one of them"),
        (["--url", "host:1", "--model", "m"], "--url: engine.url: needs a scheme"),
        (["--url", ENDPOINT, "--model", "m", "--input", "8,x"], "--input: grid.input.1: must be a whole number"),
        (["--url", ENDPOINT, "--model", "m", "--output", ""], '--output: grid.output.0: must be a whole number, is ""'),
        (["--url", ENDPOINT, "--model", "m", "--api", "chat", "--prompts", "token_ids"], "takes no token ids"),
        (["--url", ENDPOINT, "--model", "m", "--key-env", "sk-123"], "--key-env: engine.api_key_env: must be the name"),
        (["--url", ENDPOINT, "--model", "m", "--key-env", "NO_SUCH_KEY_"], "variable NO_SUCH_KEY_ is not set"),
        (["--url", f"{ENDPOINT}?api-key=abcdefgh", "--model", "m", "--save", "s.yaml"], "the url holds a secret"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(words: list[str], said: str) -> None:
    result = bench("sweep", *words)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if said in line]
    assert len(lines) == 1, result.stderr
    assert "sk-123" not in result.output
    assert "abcdefgh" not in result.output
    assert not Path("s.yaml").exists()


def test_a_secret_in_the_url_is_neither_shown_nor_kept(url: str) -> None:
    words = ["--url", f"{url}?api-key=abcdefgh", "--model", "my-org/My-Model", *FAST, "--out", "run", "--no-plots"]
    result = bench("sweep", *words)
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert "abcdefgh" not in result.output
    assert not Path("run/sweep.yaml").exists()


# ---- Standard input -------------------------------------------------------------------------------------


def test_a_sweep_on_standard_input_is_kept_word_for_word_and_resumed(url: str) -> None:
    text = f"""# mine
name: t
model: my-org/My-Model
engine: {{kind: endpoint, url: "{url}"}}
grid: {{input: 8, output: 4, batch: [1, 2]}}
rounds: {{warmup: 0, min: 1, max: 1}}   # few
prompts: {{vocab: [1000, 30000]}}
"""
    code, said = piped(text, "sweep", "-", "--out", "run", "--no-plots", "--only", "batch=1")
    assert code in CARRIED_OUT, said
    assert Path("run/sweep.yaml").read_text() == text
    code, said = piped(text, "sweep", "-", "--out", "run", "--no-plots", "--resume")
    assert code in CARRIED_OUT, said
    assert len(records(Path("run"))) == 1 + 2
    assert "nothing left to do" in bench("sweep", "run/sweep.yaml", "--out", "run", "--resume").stdout
    # Begun anew by the text that the run keeps: that stays.
    result = bench("sweep", "run/sweep.yaml", "--out", "run", "--overwrite", "--no-plots")
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert Path("run/sweep.yaml").read_text() == text


def test_an_interrupted_sweep_of_standard_input_says_how_to_go_on(url: str) -> None:
    text = f'{{name: t, model: my-org/My-Model, engine: {{kind: endpoint, url: "{url}"}}, '
    text += "grid: {input: 8, output: 5000, batch: 1}, prompts: {vocab: [1000, 30000]}}"
    with sweeping("-", "--out", "run", stdin=subprocess.PIPE) as sweep:
        assert sweep.process.stdin is not None
        sweep.process.stdin.write(text)
        sweep.process.stdin.close()
        sweep.process.stdin = None
        assert sweep.process.stderr is not None
        assert "to measure, into run" in sweep.process.stderr.readline()
        sweep.process.terminate()
        _, _, said = sweep.end()
    assert "continue with: bench sweep run/sweep.yaml --resume --out run" in said or "bench sweep - --resume" in said


@pytest.mark.parametrize("command", ["validate", "sweep", "check", "env", "noise"])
def test_what_is_wrong_on_standard_input_has_its_line(command: str) -> None:
    text = "name: t\nmodel: x\nengine: {kind: simulator}\ngrid: {input: 8, output: 4, bach: 1}\n"
    code, said = piped(text, command, "-")
    assert code == 2
    assert "<stdin>:4: grid.bach: unknown key, did you mean batch?" in said


# ---- What is shipped ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_init_writes_a_valid_file_once(name: str) -> None:
    result = bench("init", name)
    assert (result.exit_code, result.stderr) == (0, "")
    file = Path(f"{name}.yaml")
    assert bench("validate", file).exit_code == 0
    text = file.read_text()
    assert text.count("#") > 5
    assert "sweeps/" not in text
    file.write_text("mine")
    assert bench("init", name).exit_code == 2
    assert file.read_text() == "mine"
    assert bench("init", name, "--out", "-").stdout == text
    assert bench("init", name, "--out", "other.yaml").exit_code == 0
    assert Path("other.yaml").read_text() == text.replace(f"{name}.yaml", "other.yaml")
    assert "bench init --out mine.yaml writes it" in bench("init", "mine.yaml").stderr


def test_init_without_a_name_is_the_endpoint() -> None:
    assert bench("init", "--out", "-").stdout == bench("init", "endpoint", "--out", "-").stdout


@pytest.mark.slow
def test_a_wheel_has_all_that_it_needs(tmp_path: Path, url: str) -> None:
    """Installed without its sources; its dependencies are those of this environment."""
    wheels, target = tmp_path / "wheels", tmp_path / "installed"
    build = f"import os, hatchling.build as b; os.chdir({str(ROOT)!r}); print(b.build_wheel({str(wheels)!r}))"
    wheels.mkdir()
    made = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=False)
    if "No module named 'hatchling'" in made.stderr:
        pytest.skip("needs hatchling")
    assert made.returncode == 0, made.stderr
    import zipfile

    zipfile.ZipFile(next(wheels.glob("benchbench_llm-*.whl"))).extractall(target)

    def installed(*words: str) -> str:
        code = f"import sys; sys.path.insert(0, {str(target)!r}); from benchbench.cli.entry import run; run()"
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode in CARRIED_OUT, done.stderr
        return done.stdout

    where = "import benchbench, importlib.metadata as m; print(benchbench.__file__, m.version('benchbench-llm'))"
    code = f"import sys; sys.path.insert(0, {str(target)!r}); {where}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(str(target))
    every = f"[main.main(['init', name], standalone_mode=False) for name in {NAMES!r}]"
    code = f"import sys; sys.path.insert(0, {str(target)!r}); from benchbench.cli.main import main; {every}"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    for name in NAMES:
        assert Path(f"{name}.yaml").read_text() == bench("init", name, "--out", "-").stdout
    words = ("--url", url, "--model", "my-org/My-Model", *FAST, "--out", "run", "--no-plots")
    assert "Run: run" in installed("sweep", *words)
    few = ("--set", "grid.batch=8", "--set", "rounds.min=1", "--set", "rounds.max=1")
    assert "Sys tok/s" in installed("demo", "--out", "demo", *few, "--no-plots")
    assert yaml.safe_load(Path("demo/sweep.yaml").read_text())["name"] == "quickstart"
    assert (Path("demo/sweep.yaml").read_text()) == (ROOT / "sweeps/quickstart.yaml").read_text()
