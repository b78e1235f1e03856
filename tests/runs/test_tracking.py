import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from cases import each, small_files
from matplotlib.figure import Figure

from codeq.common.errors import CodeqError
from codeq.runs.tracking import Tracker


def test_every_epoch_adds_a_row_and_a_row_a_layer(tmp_path):
    tracker = Tracker(tmp_path)
    for epoch in range(3):
        layers = pd.DataFrame({"layer": ["conv1", "linear"], "bits": [8, 4 + epoch]})
        tracker.log_epoch({"epoch": epoch, "eval/accuracy": 0.1 + 0.2 * epoch}, layers)
    history = pd.read_csv(tmp_path / "metrics.csv")
    assert history["epoch"].tolist() == [0, 1, 2]
    assert history["eval/accuracy"].tolist() == [0.1, 0.1 + 0.2, 0.5]  # floats survive to the last bit
    table = pd.read_csv(tmp_path / "layers.csv")
    assert table["epoch"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["bits"].tolist() == [8, 4, 8, 5, 8, 6]


def test_a_table_that_an_earlier_version_began_keeps_its_columns(tmp_path):
    (tmp_path / "layers.csv").write_text("epoch,layer,alive,bits\n0,a,f0,8\n")
    layers = pd.DataFrame({"layer": ["a"], "alive": ["80"], "norms": ["AAAAPw=="], "bits": [4]})
    Tracker(tmp_path).log_epoch({"epoch": 1}, layers)
    assert (tmp_path / "layers.csv").read_text() == "epoch,layer,alive,bits\n0,a,f0,8\n1,a,80,4\n"


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log_epoch({"epoch": 0}, pd.DataFrame({"layer": ["a"]}))
    assert (tmp_path / "metrics.csv").read_text() == "epoch\n0\n"


def test_the_summary_replaces_an_earlier_one(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log_summary({"accuracy": 0.5})
    tracker.log_summary({"accuracy": 0.9})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"accuracy": 0.9}


def test_figures_become_pictures_in_the_plots_folder(tmp_path):
    from matplotlib.figure import Figure

    path = Tracker(tmp_path).log_figure("curve", Figure())
    assert path == tmp_path / "plots" / "curve.png"
    assert path.read_bytes()[1:4] == b"PNG"


def test_tables_are_written_in_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "layers.csv"
    write = f"from pathlib import Path; from codeq.runs.tracking import _append; _append(Path({str(path)!r}), "
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", write + r"[{'layer': 'gr\xf6\xdfe'}])"], env=os.environ | locale, check=True)
    assert path.read_text("utf-8") == "layer\ngröße\n"


def test_a_full_disk_is_one_message_with_the_file(tmp_path):
    tracker, row = Tracker(tmp_path), {"epoch": 0, "eval/accuracy": 0.5}
    layers = pd.DataFrame({"layer": ["conv1"]})
    writers = {
        "metrics.csv": lambda: tracker.log_epoch(row, layers),
        "steering.csv": lambda: tracker.log_steering(row),
        "summary.json": lambda: tracker.log_summary(row),
    }
    with small_files(8):
        for name, write in writers.items():
            with pytest.raises(CodeqError, match=rf"{name} cannot be written: File too large"):
                write()


@each("name", ["a/b", "../up", "a\\b", "", None, 3, "chart.png", "a\0b"])
def test_a_name_that_is_no_file_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(CodeqError, match=r"name=.*: must be the name of a file without its folder and without \.png"):
        Tracker(tmp_path).log_figure(name, Figure())
    assert not list(tmp_path.iterdir())


def test_what_is_no_figure_is_refused(tmp_path):
    for wrong in (None, Figure().subplots()):
        with pytest.raises(CodeqError, match=r"figure=.*: must be a Figure of matplotlib"):
            Tracker(tmp_path).log_figure("chart", wrong)
    assert Tracker(tmp_path).log_figure("version 0.5", Figure()).name == "version 0.5.png"
