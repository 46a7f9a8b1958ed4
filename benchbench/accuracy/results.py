"""Results of lm-eval (EleutherAI's lm-evaluation-harness) as it writes them: scores, and who answered what right."""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

MANIFEST = "eval-manifest.json"  # of a folder that bench eval writes
NAMES = {"mmlu": "MMLU", "gsm8k": "GSM8K"}  # as published; any other task is called as lm-eval calls it
_PUBLISHED = re.compile(
    r"(?P<task>.+?)\s*(?:\((?P<shots>\d+)-shot\))?\s*=\s*(?P<score>\d+(?:\.\d+)?)\s*%?\s*(?:,\s*n\s*=\s*(?P<n>\d+))?\s*"
)

Question = tuple[str, int, str]  # task, number of the document in it, hash of the document


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One benchmark's score of one model: the share of right answers.

    `metric` is lm-eval's, with its filter (`exact_match,strict-match`); `stderr` its standard error of `point`; `n`
    counts questions. `samples`: the score of each question, where lm-eval logged them. `text`: how somebody else
    published it, empty for results of lm-eval. `lm_eval`, `version`: of the tool, and of the task in it.
    """

    task: str
    shots: int | None
    point: float
    metric: str = ""
    stderr: float | None = None
    n: int | None = None
    version: str = ""
    lm_eval: str = ""
    chat: bool = False
    text: str = ""
    samples: Mapping[Question, float] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return NAMES.get(self.task, self.task)

    @property
    def label(self) -> str:
        """As published: `MMLU (5-shot)`."""
        return self.name if self.shots is None else f"{self.name} ({self.shots}-shot)"


def read_scores(path: Path, metrics: Mapping[str, str] | None = None) -> list[Score]:
    """Scores in a file of results or in a folder of them, of each task and number of shots the latest one.

    Of a group (mmlu) its own score counts, not those of its parts. `metrics` names the metric of a task
    (`{"gsm8k": "exact_match,flexible-extract"}`); else it is the first that lies between 0 and 1. Raises ValueError
    with the file's name for what is not there or is not lm-eval's.
    """
    files = _files(path)
    scores: dict[tuple[str, int | None], Score] = {}
    for file in files:
        try:
            data = orjson.loads(file.read_bytes())
            scores |= {(score.task, score.shots): score for score in _scores(data, file, metrics or {})}
        except OSError as error:
            raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a file of lm-eval's results ({type(error).__name__}: {error})") from None
    return list(scores.values())


def published(text: str) -> Score:
    """A score from elsewhere: `MMLU (5-shot)=86.2`, in percent; with `,n=14042` where the number of questions is known.

    Raises ValueError.
    """
    match = _PUBLISHED.fullmatch(text)
    if match is None or not float(match["score"]) <= 100:
        raise ValueError(f"--published {text}: not understood (allowed: as 'MMLU (5-shot)=86.2' or 'gsm8k=92,n=1319')")
    shots, n = (int(match[key]) if match[key] else None for key in ("shots", "n"))
    return Score(task=match["task"], shots=shots, point=float(match["score"]) / 100, n=n, text=match["score"])


def copy_results(path: Path, into: Path) -> None:
    """Copy results (a file or a folder of them) and the samples beside them. Raises ValueError and OSError."""
    for file in _files(path):
        folder = into / (file.parent.relative_to(path) if path.is_dir() else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, folder / (file.name if file.name.startswith("results") else f"results_{file.name}"))
        for samples in file.parent.glob(f"samples_*_{glob.escape(_date(file))}.jsonl"):
            shutil.copy2(samples, folder)


def _files(path: Path) -> list[Path]:
    """Files of results, the latest last."""
    files = sorted(path.rglob("results*.json"), key=_date) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no results of lm-eval (results_*.json) in it")
    return files


def _date(path: Path) -> str:
    return path.stem.rpartition("_")[2]


def _scores(data: Mapping[str, Any], file: Path, metrics: Mapping[str, str]) -> Iterator[Score]:
    groups: Mapping[str, list[str]] = data.get("group_subtasks") or {}
    parts = {part for group in groups.values() for part in group}
    for task, values in data["results"].items():
        if task in parts:
            continue
        shares = [name for name, value in values.items() if _is_share(name, value)]
        metric = metrics.get(task) or next(iter(shares), "")
        if metric not in shares:
            named, allowed = f" as {metric}" if metric else "", ", ".join(shares) or "none of its metrics"
            raise ValueError(f"{file}: {task} has no share of right answers{named} (allowed: {allowed})")
        leaves = list(_leaves(task, groups))
        name, _, chosen = metric.partition(",")
        stderr = values.get(f"{name}_stderr,{chosen}")
        shots = {data.get("n-shot", {}).get(leaf) for leaf in leaves}
        yield Score(
            task=task,
            shots=shots.pop() if len(shots) == 1 else None,
            point=float(values[metric]),
            metric=metric,
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            n=sum(_counted(data, leaf) for leaf in leaves) or None,
            version=str(data.get("versions", {}).get(task, "")),
            lm_eval=str(data.get("lm_eval_version", "")),
            chat=bool(data.get("chat_template")) or data.get("config", {}).get("model") == "local-chat-completions",
            samples={key: value for leaf in leaves for key, value in _samples(file, leaf, name, chosen)},
        )


def _is_share(name: str, value: object) -> bool:
    known = "," in name and "_stderr," not in name
    return known and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _leaves(task: str, groups: Mapping[str, list[str]]) -> Iterator[str]:
    for part in groups.get(task) or ():
        yield from _leaves(part, groups)
    if not groups.get(task):
        yield task


def _counted(data: Mapping[str, Any], leaf: str) -> int:
    effective = data.get("n-samples", {}).get(leaf, {}).get("effective")
    return int(effective or data["results"].get(leaf, {}).get("sample_len") or 0)


def _samples(file: Path, leaf: str, metric: str, chosen: str) -> Iterator[tuple[Question, float]]:
    """What --log_samples wrote beside the results, under the same date; nothing where it is not there."""
    path = file.with_name(f"samples_{leaf}_{_date(file)}.jsonl")
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            sample = orjson.loads(line)
            if sample.get("filter", chosen) == chosen and isinstance(sample.get(metric), int | float):
                yield (leaf, sample["doc_id"], sample.get("doc_hash", "")), float(sample[metric])
