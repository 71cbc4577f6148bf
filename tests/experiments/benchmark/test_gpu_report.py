import json

from experiments.benchmark.gpu_report import NOT_MEASURED, gpu_section, main

ROW = {
    "mode": "ms_cs", "precision": "bf16", "images": 12, "crop": [512, 1024], "forward ms": 100.0, "loss ms": 20.25,
    "backward ms": 210.0, "optimizer ms": 5.0, "step ms": 335.25, "images/s": 35.794, "peak GB": 61.5,
}  # fmt: skip
CE = {**ROW, "mode": "ce", "step ms": 298.0}
CARD = {
    "device": "NVIDIA H100 80GB HBM3", "memory_gb": 79.2, "driver": "580.1", "cuda": "13.0",
    "versions": {"torch": "2.11.0"},
    "parts": {
        "time_and_memory_of_a_training_step[hrnet_w48]": {
            "passed": True, "seconds": 40.0, "figures": {"rows": [CE, ROW]},
        },
        "time_of_the_six_terms": {
            "passed": False, "error": "TimeoutError: took longer", "seconds": 60.0,
            "figures": {
                "anchors": 10_000, "float32": {"ms": 18.04, "aim ms": 20.0, "reached": True},
                "float32 ms of 1000 anchors": 9.5,
            },
        },
        "onnx_computes_the_logits_of_the_network": {"passed": None, "skipped": "not installed", "figures": {}},
        "a_compiled_network_is_close": {"passed": None, "figures": {}},
    },
}  # fmt: skip


def test_without_a_file_the_section_says_that_nothing_was_measured():
    assert gpu_section([]) == NOT_MEASURED


def test_the_section_has_the_figures_of_every_part_that_has_some(tmp_path, capsys):
    file = tmp_path / "gpu_h100_80gb_hbm3.json"
    file.write_text(json.dumps(CARD))
    main([str(file)])
    text = capsys.readouterr().out
    assert "1 parts passed, 1 failed, 1 skipped. Failed: time_of_the_six_terms. Not finished: a_compiled_n" in text
    cells = "100.0 | 20.2 | 210.0 | 5.0 | 335.2 | 1.12 | 35.8 | 61.5"
    assert f"| HRNet-W48, 12 images of 512x1024 | ms_cs | bf16 | {cells} |" in text
    assert "| six terms with 10,000 anchors, gradients, float32 | 18.0 ms (0.9 times the aim of 20 ms) |" in text
    assert "| six terms with 1,000 anchors, gradients, float32 | 9.5 ms |" in text
