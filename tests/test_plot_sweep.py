import csv

import cv2
import pytest

from tools import plot_sweep


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "masks", "seed", "segm/B/AP"])
        writer.writerows(rows)


def test_scores_are_read_by_row_and_number_of_classes(tmp_path):
    write(
        tmp_path / "a.csv",
        [
            ("fig3/transfer", "random(1,20)", 0, "0.1"),
            ("fig3/transfer", "random(1,20)", 1, "0.2"),
            ("fig3/transfer", "voc", 0, "0.9"),
            ("fig3/transfer", "random(1,40)", 0, ""),
        ],
    )
    values = plot_sweep.read([tmp_path / "a.csv"])
    assert values == {"fig3/transfer": {20: [10.0, 20.0]}}
    plot_sweep.main([f"--table={tmp_path}/a.csv", f"--output={tmp_path}/plot.png"])
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 0


def test_a_table_without_such_classes_is_refused(tmp_path):
    write(tmp_path / "a.csv", [("fig3/transfer", "voc", 0, "0.9")])
    with pytest.raises(ValueError, match=r"no run with masks random\(trial,number\) in .*a.csv"):
        plot_sweep.read([tmp_path / "a.csv"])
