"""Records of the runs of an experiment."""

import subprocess

from conftest import ROOT


def test_records_can_be_committed_and_runs_cannot(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    paths = ["results/camvid_46/runs/ce_seed_0.json", "runs/camvid/run.json", "experiments/runs/run.json"]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=tmp_path, capture_output=True, text=True)
    assert ignored.stdout.split() == paths[1:]
