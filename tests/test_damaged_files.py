"""Files of a run that were damaged, copied or renamed: one line that names the file, never another number."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from driving import bench
from runs_made import BRANCHES, made_run

from benchbench import open_run
from benchbench.analysis.summary import UNITS
from benchbench.errors import RunError
from benchbench.fidelity.stored_answers import read_answers
from benchbench.store.parquet_files import parquet_bytes, read_parquet
from benchbench.store.run_directory import RunDirectory

STORED = Path(__file__).parent / "data" / "stored-run"  # of a version without checksums
SMALL = {**BRANCHES, "variants": {}, "blocks": None, "grid": {"input": 128, "output": 8, "batch": [1, 4]}}
ONE = {name: value for name, value in SMALL.items() if value is not None}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_run(tmp_path / "run", ONE, lambda *_: (50.0, 10.0))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    shutil.copytree(STORED, tmp_path / "stored")
    return tmp_path / "stored"


def a_record(run: Path) -> Path:
    return min(run.glob("records/*.parquet"))


def damages(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The bytes with one bit flipped, or cut off, or with a part that is another."""
    random_ = random.Random(seed)
    for k in range(count):
        place = random_.randrange(len(data))
        if k % 8 == 0:
            yield data[:place]
        elif k % 8 == 1:
            yield data[:place] + random_.randbytes(4) + data[place + 4 :]
        else:
            yield data[:place] + bytes([data[place] ^ 1 << random_.randrange(8)]) + data[place + 1 :]


def one_line(run: Path, *names: str) -> None:
    """`bench table` refuses, in one line with these names, and says what to do."""
    result = bench("table", run)
    assert result.exit_code == 2, result.stdout
    (line,) = result.stderr.splitlines()
    assert all(name in line for name in names), line
    assert "remove it" in line or "put back a copy" in line


def test_no_damaged_record_is_read(run: Path) -> None:
    file = a_record(run)
    for damaged in damages(file.read_bytes(), 400, seed=1):
        file.write_bytes(damaged)
        with pytest.raises(RunError) as refusal:
            read_parquet(file, "remove it")
        assert str(refusal.value).startswith(f"{file}: damaged")
        assert "\n" not in str(refusal.value)
    one_line(run, file.name, "bench sweep --resume")


def test_pages_have_checksums_that_other_readers_can_check(run: Path) -> None:
    file = a_record(run)
    data = bytearray(file.read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(0).column(20)
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(data)), page_checksum_verification=True).read()


def test_a_damaged_file_of_an_old_run_ends_in_no_traceback(stored: Path) -> None:
    file = a_record(stored)
    data = file.read_bytes()
    for number, damaged in enumerate(damages(data, 32, seed=2)):
        file.write_bytes(damaged)
        result = bench("table", stored)
        assert result.exit_code in {0, 2}, number
        if result.exit_code:
            assert file.name in result.stderr
            assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["manifest.json", "journal.jsonl"])
def test_a_damaged_manifest_or_journal_ends_in_no_traceback(run: Path, name: str) -> None:
    RunDirectory(run).journal("round_begun", cell="a", phase="measured", round=0)
    file = run / name
    data = file.read_bytes()
    for damaged in damages(data, 96, seed=3):
        file.write_bytes(damaged)
        result = bench("table", run)
        assert result.exit_code in {0, 2}
        assert len(result.stderr.splitlines()) <= 1


def test_a_record_of_another_round_or_cell_is_refused(run: Path) -> None:
    first, *_, last = sorted(run.glob("records/*.parquet"))
    shutil.copy(first, last)
    one_line(run, last.name, "holds another round", first.stem.split("-")[0])
    assert first.stem.split("-")[0] != last.stem.split("-")[0]


def test_files_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    """Also of the same sweep: its cells have the same keys, and its rounds nothing else that tells them apart."""
    other = made_run(tmp_path / "other", ONE, lambda *_: (60.0, 12.0))
    file = a_record(run)
    own = file.read_bytes()
    shutil.copy(other / "records" / file.name, file)
    one_line(run, file.name, "of run ")
    file.write_bytes(own)
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({b"benchbench": table.schema.metadata[b"benchbench"]}), file)
    one_line(run, file.name, "a file of another tool")
    file.write_bytes(own)
    for folder in (run, other):
        rows = open_run(folder).rows
        RunDirectory(folder).write_summary(rows, UNITS)
        shutil.rmtree(folder / "records")
    assert bench("table", run).exit_code == 0
    shutil.copy(other / "summary.parquet", run)
    one_line(run, "summary.parquet", "not the summary that this run has written")


def test_a_manifest_that_was_edited_is_said_wherever_its_numbers_stand(run: Path, tmp_path: Path) -> None:
    path, card = run / "manifest.json", tmp_path / "card.md"
    card.write_text("## Performance\n")
    said = "manifest.json was changed after it was written"
    publish = ("publish", run, "--card", card, "--after", "## Performance", "--dry-run")
    for command in (("table", run), publish):
        assert said not in bench(*command).stdout
    manifest = orjson.loads(path.read_bytes())
    manifest["plan"][0]["validity"]["foreign_tokens"] = 10**6
    path.write_bytes(orjson.dumps(manifest))
    for command in (("table", run), publish):
        assert said in bench(*command).stdout
    manifest["run"] = ""
    path.write_bytes(orjson.dumps(manifest))
    one_line(run, "holds another round")


FOREIGN: dict[str, Callable[[Path], bytes]] = {
    "another schema": lambda _: parquet_bytes(pa.table({"a": [1]})),
    "another type": lambda file: parquet_bytes(
        (table := pq.read_table(file)).set_column(
            table.schema.get_field_index("sent_ns"), "sent_ns", pa.array(["x"] * len(table))
        )
    ),
    "empty": lambda _: b"",
    "a text": lambda _: b"<html>not found</html>",
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_no_record_is_named(run: Path, make: Callable[[Path], bytes]) -> None:
    file = a_record(run)
    file.write_bytes(make(file))
    one_line(run, file.name, "bench sweep --resume")


def test_copies_beside_the_records_are_not_read_and_said(run: Path) -> None:
    before = open_run(run).rows
    file = a_record(run)
    for name in (f"._{file.name}", f"{file.stem} (1).parquet", "x.parquet"):
        shutil.copy(file, file.with_name(name))
    result = bench("table", run)
    assert result.exit_code == 0
    assert open_run(run).rows == before
    assert f"Not read: records/._{file.name} (not the name of a record: remove it)." in result.stdout.replace("\\", "")
    assert f"records/{file.stem} (1).parquet" in result.stdout.replace("\\", "")


def test_bad_telemetry_is_a_note(stored: Path) -> None:
    rows = open_run(stored).rows
    good, *others = sorted((stored / "telemetry").glob("*.parquet"))
    others[0].write_bytes(others[0].read_bytes()[:-20])
    others[1].write_bytes(parquet_bytes(pa.table({"a": [1]})))
    shutil.copy(good, good.with_name("._0000.parquet"))
    others[2].write_bytes(parquet_bytes(pa.table({"a": [1]}).replace_schema_metadata({"benchbench": json.dumps({
        "first_ns": 0, "last_ns": 2**63 - 1
    })})))  # fmt: skip
    result = bench("table", stored)
    assert result.exit_code == 0
    assert [row["ttft_ms"] for row in open_run(stored).rows] == [row["ttft_ms"] for row in rows]
    for file in others:
        assert f"Not read: telemetry/{file.name}" in result.stdout


def test_damaged_answers_are_named(run: Path) -> None:
    folder = run / "fidelity"
    folder.mkdir()
    (folder / "main-0.parquet").write_bytes(b"PAR1")
    (folder / "main-0 (1).parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"main-0.parquet: damaged.*remove it, and these answers are not compared"):
        read_answers(RunDirectory(run), "main")
