import json

from loong_jax.evaluation.report import format_table, write_report


def test_table():
    rows = [{"name": "a", "psnr": 31.4159, "n": 3}, {"name": "longer", "n": 12}]
    assert format_table(rows, ["name", "psnr", "n"]) == "\n".join(
        [
            "| name   | psnr   | n  |",
            "| ------ | ------ | -- |",
            "| a      | 31.416 | 3  |",
            "| longer |        | 12 |",
        ]
    )


def test_report_reads_back(tmp_path):
    write_report(tmp_path / "deep" / "report.json", {"share": 0.5, "rows": [1, 2]})
    assert json.loads((tmp_path / "deep" / "report.json").read_text()) == {"share": 0.5, "rows": [1, 2]}
