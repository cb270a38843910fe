import json

import pytest

from benchmarks import __main__ as harness
from benchmarks.rows import ROWS, add_row

ROW = {
    "work": "arxiv", "peer": "Trainer", "unit": "tokens/s", "ours": [300.0, 330.0, 240.0],
    "theirs": [200.0, 220.0, 120.0], "memory_shares": [0.5, 0.6, 0.7], "loss_difference": 1.2e-7, "load": "0.1 to 2.0",
}  # fmt: skip


def test_higher_speed_and_fewer_seconds_are_better():
    assert harness.ratios(ROW) == [1.5, 1.5, 2.0]
    assert harness.ratios({**ROW, "unit": "s"}) == pytest.approx([1 / 1.5, 1 / 1.5, 0.5])


def test_the_table_has_medians_spread_and_load():
    single = {**ROW, "ours": [5.8], "theirs": [42.2], "unit": "s", "memory_shares": [], "loss_difference": None}
    assert harness.table([ROW, single]).splitlines()[2:] == [
        "| arxiv | Trainer | 300 tokens/s | 200 tokens/s | 1.50 (1.50 to 2.00) | 0.60 | 1.2e-07 | 0.1 to 2.0 |",
        "| arxiv | Trainer | 5.8 s | 42.2 s | 7.28 |  |  | 0.1 to 2.0 |",
    ]


def test_rows_are_kept_where_they_are_asked_for(tmp_path, monkeypatch):
    values = {"peer": "Trainer", "unit": "s", "ours": [1.0], "theirs": (2.0,)}
    monkeypatch.delenv(ROWS, raising=False)
    add_row("nowhere", **values)
    monkeypatch.setenv(ROWS, str(tmp_path / "rows"))
    add_row("first", **values)
    add_row("second", **values)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["work"] for row in rows] == ["first", "second"]
    assert rows[0]["theirs"] == [2.0]


@pytest.mark.parametrize("quick", [True, False])
def test_every_experiment_has_a_benchmark(tmp_path, quick):
    lines = harness.commands(tmp_path, quick=quick)
    assert sorted(lines) == sorted(harness.EXPERIMENTS)
    for words in (words for several in lines.values() for words in several):
        assert (harness.Path(harness.__file__).parent / f"{words[0].removeprefix('benchmarks.')}.py").is_file()


def test_a_benchmark_that_fails_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    def run(command, **options):
        if "arxiv" in command[2]:
            add_row("arxiv", peer="Trainer", unit="s", ours=[1.0], theirs=[3.0])
        return type("Done", (), {"returncode": "gsm8k" in command[2]})

    monkeypatch.setattr(harness.subprocess, "run", run)
    monkeypatch.setattr(harness, "facts", lambda: {"cores": 2})
    monkeypatch.setenv(ROWS, "")
    monkeypatch.setattr("sys.argv", ["bench", "--only", "gsm8k", "arxiv", "--to", str(tmp_path / "new" / "b.json")])
    with pytest.raises(SystemExit, match="failed: gsm8k"):
        harness.main()
    written = json.loads((tmp_path / "new" / "b.json").read_text())
    assert written["machine"] == {"cores": 2}
    assert [row["work"] for row in written["rows"]] == ["arxiv"]
    assert "| arxiv | Trainer | 1 s | 3 s | 3.00 |" in capsys.readouterr().out
