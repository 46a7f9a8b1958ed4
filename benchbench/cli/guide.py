"""What the help shows besides options: headings, commands in the order of use, examples."""

from __future__ import annotations

import click

# Heading -> command -> what for, and how it is used.
GUIDE: dict[str, dict[str, tuple[str, ...]]] = {
    "Begin": {
        "demo": ("Sweep the embedded simulator: half a minute, no GPU", "bench demo"),
        "init": ("Write a commented sweep file", "bench init", "bench init w7900d --out mine.yaml"),
        "validate": (
            "Check sweep files without running them",
            "bench validate mine.yaml other.yaml",
            "bench validate mine.yaml --set rounds.max=5",
        ),
        "check": (
            "Is the server what a sweep needs? Error of the instrument",
            "bench check mine.yaml",
            "bench check --self --streams 64",
        ),
    },
    "Measure": {
        "sweep": (
            "Measure every cell of a grid, and print the table",
            "bench sweep --url http://127.0.0.1:8000 --model NAME --input 128,1024 --batch 1,8,32",
            "bench sweep mine.yaml --only 'batch>=8,input=128' --set rounds.max=5",
            "bench sweep mine.yaml --resume",
        ),
        "capacity": (
            "The largest load of each shape that meets the SLO",
            "bench capacity mine.yaml --set slo.ttft_ms=500 --set 'grid.batch=[1, 256]'",
            "bench capacity mine.yaml --resume",
            "bench capacity runs/mine-20260102-030405",
        ),
        "noise": ("Measure a build against itself (A/A)", "bench noise mine.yaml --blocks 6"),
        "profile": (
            "Which kernels make the difference of two builds?",
            "bench profile branches.yaml runs/branches-20260102-030405",
        ),
        "eval": ("Accuracy of each variant, by lm-eval", "bench eval branches.yaml --task gsm8k --limit 200"),
    },
    "Look and compare": {
        "table": (
            "The table of a run, or of several",
            "bench table runs/a runs/b",
            "bench table runs/a --pivot batch:sys_tok_s",
            "bench table runs/a --by-replica",
            "bench table runs/a --fail-on 'ttft_ms_p99>500'",
        ),
        "plot": ("The figures of a run", "bench plot runs/a --out figures --format svg"),
        "explain": ("Why a cell is valid, suspect or invalid", "bench explain runs/a 'batch>=8'"),
        "compare": (
            "Is one build faster than another?",
            "bench compare runs/branches-20260102-030405",
            "bench compare runs/a runs/b --fail-on 'slower>1%'",
        ),
        "bisect": (
            "Which commit made it slower?",
            "bench bisect branches.yaml --good v0.31 --bad main --only 'batch=16'",
            "bench bisect branches.yaml --good v0.31 --bad main --path csrc/moe --metric tpot",
        ),
        "best": (
            "Which of many settings is best?",
            "bench best settings.yaml --out runs/settings",
            "bench best runs/settings --metric tpot",
        ),
        "history": (
            "Since when is a cell slower? Steps over stored runs",
            "bench history nightly/",
            "bench history nightly/ --only 'batch=16' --metric sys_tok_s --fail-on 'step>1%'",
        ),
        "import": ("Results of other tools, as a run", "bench import guidellm.json --out runs/theirs"),
    },
    "Show others": {
        "publish": (
            "The table in a model card",
            "bench publish runs/a --card README.md --after '## Performance'",
            "bench publish runs/a --card README.md --check",
        ),
        "export": (
            "A run as files that other tools read",
            "bench export runs/a --format vllm",
            "bench export runs/a --format llm-d --out reports",
        ),
        "report": ("All of a run as one HTML page", "bench report runs/a -o report.html"),
        "audit": ("Which published numbers are impossible?", "bench audit README.md"),
    },
    "Beside": {
        "env": ("What a run records of its surroundings", "bench env mine.yaml"),
        "sim": ("Serve the simulator until Ctrl-C", "bench sim --profile w7900d --port 8000"),
        "schema": ("The JSON Schema of sweep files, for editors", "bench schema > sweep.schema.json"),
        "completion": ("The script that completes commands in a shell", "bench completion bash"),
    },
}
COMMANDS = {name: texts for commands in GUIDE.values() for name, texts in commands.items()}
FIRST = (COMMANDS["demo"][1], COMMANDS["sweep"][1], COMMANDS["compare"][2])


def write_commands(formatter: click.HelpFormatter) -> None:
    """The commands under their headings, in the order of use."""
    width = max(map(len, COMMANDS))
    for heading, commands in GUIDE.items():
        with formatter.section(heading):
            formatter.write_dl([(name.ljust(width), texts[0]) for name, texts in commands.items()])


def explain(group: click.Group) -> None:
    """Give the commands their examples."""
    for name, (_, *examples) in COMMANDS.items():
        group.commands[name].epilog = examples_of(*examples)


def examples_of(*examples: str) -> str:
    """The end of a help text: command lines to copy, each on one line however narrow the terminal."""
    return "\n".join(["\b", "Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)])
