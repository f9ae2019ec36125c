"""Pages and the README's block agree with the summaries, and those of this project are up to date."""

import json
from pathlib import Path

from mlx_rtx import UserError

import pytest

from made_results import metric, write_final
from reproduction.rows import LONGER, ROWS, train_flags
from reproduction.summary import kept_folders, read_summary, summarise, write_summary
from reproduction.tables import BEGIN, END, TITLES, out_of_date, page, readme_block, write_tables

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "results"


@pytest.fixture
def project(tmp_path):
    """Return a project with a README with markers, and summaries of synthetic runs."""
    (tmp_path / "README.md").write_text(f"# Title\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    results = tmp_path / "results"
    for seed, share in enumerate((0.46, 0.45, 0.47)):
        write_final(results, "table2/recurrent:paper", seed, metric(share), chosen_on="test set")
    write_final(results, "table2/recurrent:default", 0, metric(0.5622, sequences=10000, answers=10000))
    scores = [metric(0.997, 0.001, 256, 4096), metric(0.957, 0.01, 256, 256)] + [metric(0.2)] * 2 * len(LONGER)
    write_final(results, "table4/selective-copy:default", 0, *scores, samples=787072)
    write_final(results, "retrieval/mqar-4:scalar", 0, metric(0.9), metric(0.8))
    write_final(results, "scale/recurrent-5m:gcide", 0, metric(3.5, 0.01), chosen_on="validation split")
    write_final(results, "lengths/length-64:repeats", 0, metric(1.5, 0.01), metric(1.4, None, 1))
    write_final(results, "table6/regular-6:paper", 0, metric(1.5151, 0.005), chosen_on="validation split")
    for table in TITLES:
        write_summary(results, table)
    return tmp_path


def test_a_page_agrees_with_its_summary(project):
    output = page("table2", read_summary(project / "results", "table2"))
    assert output.startswith("# Table 2: ")
    assert "## recurrent\n\n| recipe | `test_accuracy` | paper | seeds |" in output
    line = "| default | **56.22 %** (55.25 – 57.19) | 47.3 % | 0 | 600,000 | 53,665 | Some GPU, abc1234 |"
    assert line in output
    assert "| paper | **46.00 %** (43.52 – 48.48) | 47.3 % | 0, 1, 2 |" in output
    note = "selected on the test set that it is scored on, which makes the figure optimistic: recurrent paper."
    assert note in output
    assert "Student's t" in output
    assert "Wilson's" in output
    assert "python scripts/reproduce.py table2 --only recurrent:default" in output
    output = page("table4", read_summary(project / "results", "table4"))
    heads, _, values = (line.split(" | ") for line in output.splitlines() if line.startswith("|"))
    assert values[heads.index("`token_accuracy@1048544`")].startswith("**20.00 %**")
    assert values[heads.index("`sequence_accuracy`")].startswith("**95.70 %**")
    assert "| sequence_accuracy" not in output
    assert "optimistic" not in output
    output = page("table6", read_summary(project / "results", "table6"))
    assert "## regular-6" in output
    assert "| paper | **1.5151** (1.5053 – 1.5249) | 1.47 |" in output
    assert "regular-1" not in output  # it has no results
    output = page("lengths", read_summary(project / "results", "lengths"))
    assert "| repeats | **1.5000** (1.4804 – 1.5196) | **1.4000** | – | 0 |" in output  # one stream has no interval


def test_a_loss_that_is_not_finite(tmp_path):
    write_final(tmp_path, "table6/recurrent:paper", 0, metric(None, None))
    assert "| not finite | 1.47 |" in page("table6", summarise(tmp_path, "table6"))


def test_the_block_of_the_readme(project):
    summaries = {table: read_summary(project / "results", table) for table in TITLES}
    block = readme_block(summaries)
    assert "| image recurrent, paper\\* | 47.3 % | **46.00 %** (43.52 – 48.48) | 600,000 | 0, 1, 2 |" in block
    assert "| selective-copy, default | 99.4 % | **99.70 %** (" in block
    assert " of tokens; **95.70 %** (" in block
    assert "@" not in block
    assert "block-32" not in block  # belongs to the ablations
    assert "the test set or validation split that it is scored on" in block
    assert readme_block({"table4": summaries["table4"]}).count("\\*") == 0


def test_only_outdated_files_are_rewritten(project):
    readme, results = project / "README.md", project / "results"
    first = write_tables(project, results)
    assert {path.relative_to(project).as_posix() for path in first} == {
        "README.md", *(f"results/{table}/README.md" for table in TITLES),
    }  # fmt: skip
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n| model, recipe |")
    assert text.endswith(f"optimistic.\n{END}\n\nThe rest.\n")
    assert write_tables(project, results) == out_of_date(project, results) == []
    readme.write_text(text.replace("46.00 %", "47.00 %"))
    assert out_of_date(project, results) == [readme]
    assert write_tables(project, results) == [readme]
    assert readme.read_text() == text
    summary = results / "table2" / "summary.json"
    entries = json.loads(summary.read_text())
    summary.write_text(json.dumps([{**entry, "mean": entry["mean"] + 0.01} for entry in entries]))
    assert out_of_date(project, results) == [results / "table2" / "README.md", readme]


def test_a_readme_without_markers_is_not_changed(project):
    (project / "README.md").write_text("# Title\n")
    assert project / "README.md" not in write_tables(project, project / "results")
    (project / "README.md").write_text(f"{BEGIN}\n")
    with pytest.raises(UserError, match="once each"):
        write_tables(project, project / "results")
    (project / "README.md").write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(UserError, match="no summary yet"):
        write_tables(project, project / "nothing")


def test_the_projects_own_tables_are_up_to_date():
    assert out_of_date(ROOT, RESULTS) == []


def test_the_projects_own_summaries_agree_with_its_runs():
    for table in TITLES:
        if entries := summarise(RESULTS, table):
            assert read_summary(RESULTS, table) == entries
    for row in (row for row in ROWS if not row.home):
        for path in kept_folders(RESULTS, row):
            final = json.loads((path / "final.json").read_text())
            assert final["flags"] == train_flags(row, final["seed"])
            assert (path / "config.json").exists()
            assert (path / "metrics.jsonl").exists()
