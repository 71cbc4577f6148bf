import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SWIN_TINY
from layouts import write_folder
from local_hub import TOKEN, LocalHub
from peft import LoraConfig, get_peft_model
from small_run import flags
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from msctr_hf import ContrastiveAdapter, MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError
from msctr_hf.hub import upload
from msctr_hf.hub.model_card import write_model_card
from msctr_hf.hub.publishing import Destination, Publisher, publish, spec_of_run, take_snapshot
from msctr_hf.training.interruption import EXIT_INTERRUPTED
from msctr_hf.training.run_folder import save_model, write_json

REPOSITORY = "someone/network"
READ = """
import sys, torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
name, folder, saved, again = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
with torch.no_grad():
    torch.save(model(torch.load(folder + "/pixel_values.pt")).logits, saved)
model.push_to_hub(again)
processor.push_to_hub(again)
"""
PUSH_ADAPTER = """
import sys
from transformers import SegformerForSemanticSegmentation
from msctr_hf import ContrastiveAdapter
folder, name = sys.argv[1:]
model = SegformerForSemanticSegmentation.from_pretrained(folder)
adapter = ContrastiveAdapter(model, projection_dim=6)
adapter.save_pretrained(folder, push_to_hub=True, repo_id=name, commit_message="Segments streets", private=True)
adapter.push_to_hub("someone/second")
"""
PUBLISH = """
import os, sys
from msctr_hf.errors import UsageError
from msctr_hf.hub.publishing import Destination, publish
folder, name, *tokens = sys.argv[1:]
for token in tokens:
    os.environ["HF_TOKEN"] = token
    try:
        print(publish(folder, None, Destination(name)))
    except UsageError as error:
        print(error)
"""


def results_of(step):
    scores = {"sky": 0.1 * step, "road": 0.2}
    means = {"mean_iou": 0.1 * step, "mean_accuracy": 0.5, "overall_accuracy": 0.6}
    return {"step": step, **means, "per_category_iou": scores, "per_category_accuracy": scores}


@pytest.fixture
def hub():
    local = LocalHub()
    yield local
    local.close()


@pytest.fixture
def folder(tmp_path, tiny_config):
    """Save a small network with results, and its logits for a random input."""
    folder = tmp_path / "network"
    model = MsctrForSemanticSegmentation(tiny_config("fcn", backbone=SWIN_TINY, num_labels=9)).eval()
    model.save_pretrained(folder)
    MsctrImageProcessor().save_pretrained(folder)
    write_json(folder / "results.json", results_of(step=3))
    write_json(folder / "run.json", {"settings": {"seed": 7, "data_dir": "/home/someone/secret"}})
    torch.save(torch.randn(1, 3, 64, 96), tmp_path / "pixel_values.pt")
    with torch.no_grad():
        torch.save(model(torch.load(tmp_path / "pixel_values.pt")).logits, tmp_path / "logits.pt")
    return folder


@pytest.fixture
def publisher(hub, monkeypatch, tmp_path):
    """Build a publisher whose uploads go to the local Hub, with short pauses and timeouts."""

    def build(token=None, **options):
        environment = (
            hub.environment(tmp_path / "home") if token is None else hub.environment(tmp_path / "home", token)
        )
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(upload, "PAUSES", (0.05, 0.05))
        monkeypatch.setattr(upload, "TIMEOUT", 3.0)
        return Publisher(get_dataset_spec("synthetic_scenes"), Destination(REPOSITORY, **options), longest_wait=300)

    return build


def push(publisher, folder):
    publisher(folder)
    publisher.finish()


def process(hub, tmp_path, *command):
    environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)


def test_a_network_is_the_same_after_two_round_trips(hub, publisher, folder, tmp_path):
    push(publisher(), folder)
    for source, target in ((REPOSITORY, "someone/second"), ("someone/second", "someone/third")):
        run = process(hub, tmp_path, "-c", READ, source, tmp_path, tmp_path / "read.pt", target)
        assert run.returncode == 0, run.stderr
        torch.testing.assert_close(torch.load(tmp_path / "read.pt"), torch.load(tmp_path / "logits.pt"))
    weights = [hub.repositories[name]["files"]["model.safetensors"] for name in (REPOSITORY, "someone/third")]
    assert weights[0] == weights[1]


def test_an_adapted_model_is_pushed_with_its_projection_head_in_one_commit(hub, tmp_path):
    folder = tmp_path / "segformer"
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **sizes)).save_pretrained(folder)
    (folder / "notes.txt").write_text("private")
    run = process(hub, tmp_path, "-c", PUSH_ADAPTER, folder, REPOSITORY)
    assert run.returncode == 0, run.stderr
    pushed = hub.repositories[REPOSITORY]
    assert set(pushed["files"]) == {"config.json", "model.safetensors", "projection_head.safetensors", "README.md"}
    assert all((folder / name).read_bytes() == content for name, content in pushed["files"].items())
    assert pushed["private"]
    assert pushed["messages"] == ["Segments streets"]
    assert hub.repositories["someone/second"]["files"].keys() == pushed["files"].keys()


def test_a_published_folder_is_complete_and_holds_no_path_of_this_machine(hub, publisher, folder):
    (folder / "predictions.png").write_bytes(b"image")
    (folder / "not_finite.json").write_text("{}")
    push(publisher(), folder)
    files = hub.repositories[REPOSITORY]["files"]
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "modeling_msctr.py", "README.md"} <= set(
        files
    )
    assert {"results.json", "predictions.png"} <= set(files)  # images that a program draws may be shown
    assert not {"run.json", "not_finite.json"} & set(files)
    assert not any(b"/home/someone" in content for content in files.values())
    assert hub.repositories[REPOSITORY]["messages"] == ["Model of step 3: validation mIoU 30.00 %"]
    assert not (folder / ".pushed").exists()


def adapted(folder):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes))
    save_model(ContrastiveAdapter(model, projection_dim=6), SegformerImageProcessor(), folder)
    assert (folder / "projection_head.safetensors").exists()


def sharded(folder):
    model = MsctrForSemanticSegmentation(MsctrConfig(backbone_config=SWIN_TINY, decode_head="fcn", num_labels=3))
    model.save_pretrained(folder, max_shard_size="100KB")
    MsctrImageProcessor().save_pretrained(folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1


def with_lora(folder):
    adapted(folder)
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("save", [adapted, sharded, with_lora])
def test_all_that_is_saved_for_a_model_is_published_and_nothing_else(tmp_path, save):
    folder = tmp_path / "network"
    folder.mkdir()
    save(folder)
    saved = {path.name for path in folder.iterdir()}
    write_json(folder / "results.json", results_of(step=3))
    private = ("bank.safetensors", "model-00009-of-00009.safetensors", "trainer_state.json", "labels.json", "run.json")
    scripts = ("download_data.py", "configuration_old.py")
    others = ("not_finite.json", "suspects.csv", "predictions.png", "optimizer.bin", "log.jsonl")
    for name in (*private, *scripts, *others):
        (folder / name).write_text("{}")
    (folder / "package.py").mkdir()
    snapshot = take_snapshot(folder, None, Destination(REPOSITORY))
    assert {path.name for path in snapshot.iterdir()} == saved | {"README.md", "results.json"}


def test_of_code_only_what_a_configuration_names_and_imports_is_published(tmp_path):
    model = SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=3, hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4)
    )
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    code = {
        "auto_map": {"AutoConfig": "configuration_mine.Mine", "AutoModel": "someone/other--elsewhere.Other"},
        "custom_pipelines": {"mine": {"impl": "labeling.Labeling", "pt": ["AutoModel"], "type": "image"}},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    processor = {"image_processor": {"auto_map": {"AutoImageProcessor": ["preparing.Slow", None]}}}
    write_json(tmp_path / "processor_config.json", processor)
    contents = {
        "configuration_mine": "from .layers import (\n    A,\n)\n", "layers": "def f():\n    from .ops import g\n",
        "ops": "from .layers import A\nfrom .missing import B\nimport notes\n", "labeling": "", "preparing": "",
    }  # fmt: skip
    for name, text in {**contents, "notes": "", "elsewhere": "", "image": "", "AutoModel": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    snapshot = take_snapshot(tmp_path, None, Destination(REPOSITORY))
    assert {path.stem for path in snapshot.glob("*.py")} == set(contents)


@pytest.mark.parametrize("in_training", [True, False])
def test_a_push_leaves_nothing_of_an_earlier_one_but_files_of_the_user(hub, publisher, folder, tmp_path, in_training):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    adapted(earlier)
    for each in (earlier, folder):
        (each / "predictions.png").write_bytes(b"image")
    push(publisher(show_images=True), earlier)
    files = hub.repositories[REPOSITORY]["files"]
    assert {"projection_head.safetensors", "predictions.png"} < files.keys()

    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]  # of a larger network
    files.update(dict.fromkeys([*shards, "model.safetensors.index.json", "adapter_config.json"], b"{}"))
    theirs = ["own.py", "notes/results.json", "model-a/b-of-c.safetensors", ".gitattributes", "figure.png"]
    files.update(dict.fromkeys(theirs, b"theirs"))
    if in_training:
        push(publisher(show_images=False), folder)
    else:
        run = process(hub, tmp_path, "-c", PUBLISH, folder, REPOSITORY, TOKEN)
        assert "/commit/" in run.stdout, run.stderr
    published = take_snapshot(folder, None, Destination(REPOSITORY, show_images=False))
    assert files.keys() == {path.name for path in published.iterdir()} | {*theirs}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("has_processor", [True, False])
def test_an_image_processor_that_was_pushed_by_itself_stays_unless_the_folder_has_one(
    hub, publisher, folder, has_processor
):
    push(publisher(), folder)
    files = hub.repositories[REPOSITORY]["files"]
    for name in ("preprocessor_config.json", "processor_config.json"):
        files.pop(name, None)
        (folder / name).unlink(missing_ok=True)
    files["preprocessor_config.json"] = b"theirs"
    if has_processor:
        write_json(folder / "processor_config.json", {})
    push(publisher(), folder)
    expected = {"processor_config.json"} if has_processor else {"preprocessor_config.json"}
    assert {name for name in hub.repositories[REPOSITORY]["files"] if "processor_config" in name} == expected


def test_a_folder_of_relative_links_is_published_as_files(tmp_path):
    snapshot = tmp_path / "cache/snapshots/abc"  # as in the cache of the Hub
    for directory in (snapshot, tmp_path / "cache/blobs"):
        directory.mkdir(parents=True)
    adapted(tmp_path / "cache")
    for path in list((tmp_path / "cache").glob("*.*")):
        path.rename(tmp_path / "cache/blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    published = take_snapshot(snapshot, None, Destination(REPOSITORY))
    assert {"config.json", "model.safetensors"} < {path.name for path in published.iterdir()}
    for path in published.iterdir():
        assert path.is_file()
        assert not path.is_symlink()
    blob = tmp_path / "cache/blobs/model.safetensors"
    assert (published / "model.safetensors").read_bytes() == blob.read_bytes()


def test_results_of_an_evaluation_in_the_folder_are_neither_published_nor_in_the_card(hub, publisher, folder):
    evaluated = {name: value for name, value in results_of(step=3).items() if name != "step"}
    write_json(folder / "results.json", {**evaluated, "model": str(folder), "split": "test"})
    push(publisher(), folder)
    files = hub.repositories[REPOSITORY]["files"]
    assert "results.json" not in files
    assert not any(str(folder).encode() in content for content in files.values())
    assert hub.repositories[REPOSITORY]["messages"] == ["Model"]
    card = (folder / "README.md").read_text()
    assert "## Results" not in card
    assert "model-index" not in card
    assert "This folder has no results" in card


def test_images_of_restricted_data_sets_are_not_published(folder):
    (folder / "predictions.png").write_bytes(b"image")
    for allowed in (None, True):
        destination = Destination(REPOSITORY, show_images=allowed)
        snapshot = take_snapshot(folder, get_dataset_spec("cityscapes"), destination)
        assert (snapshot / "predictions.png").exists() == bool(allowed)


def test_the_card_in_the_folder_names_the_repository_only_once_the_model_is_there(hub, publisher, folder):
    def named():
        return REPOSITORY in (folder / "README.md").read_text()

    hub.faults.append(403)
    run = publisher()
    push(run, folder)
    assert (folder / "README.md").exists()
    assert not named()
    for step in (4, 4):  # the second push finds the model on the Hub
        write_json(folder / "results.json", results_of(step))
        push(run, folder)
        assert named()
        assert (folder / "README.md").read_bytes() == hub.repositories[REPOSITORY]["files"]["README.md"]
    hub.faults.append(403)
    write_json(folder / "results.json", results_of(5))
    push(run, folder)
    assert not named()  # the repository has an older model, whose scores are not those of the card


@pytest.mark.parametrize("card", [None, "my own card", "written"])
def test_a_failed_push_leaves_the_card_of_the_folder_as_it_was(folder, monkeypatch, card):
    def fail(**arguments):
        raise upload.UploadError("refused")

    def succeed(folder, **arguments):
        published.append((Path(folder) / "README.md").read_text())

    if card == "written":
        write_model_card(folder)
    elif card is not None:
        (folder / "README.md").write_text(card)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(upload, "upload", fail)
    with pytest.raises(UsageError, match="refused"):
        publish(folder, None, Destination(REPOSITORY))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    published = []
    monkeypatch.setattr(upload, "upload", succeed)
    publish(folder, None, Destination(REPOSITORY))
    assert published == [(folder / "README.md").read_text()]
    assert (REPOSITORY in published[0]) == (card != "my own card")


def test_a_private_repository_cannot_be_read_with_another_token(hub, publisher, folder, tmp_path):
    push(publisher(private=True), folder)
    assert hub.repositories[REPOSITORY]["private"]
    hub.repositories["someone/target"] = {"private": False, "files": {}, "messages": []}
    environment = hub.environment(tmp_path / "other_home", token="hf_wrong")
    run = subprocess.run(
        [sys.executable, "-c", READ, REPOSITORY, tmp_path, tmp_path / "read.pt", "someone/target"],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode != 0
    assert "401" in run.stderr
    assert not (tmp_path / "read.pt").exists()


@pytest.mark.parametrize("fault", [500, 503, 429, "hang", "cut before", "cut after"])
def test_transient_errors_are_retried(hub, publisher, folder, capfd, fault):
    hub.faults.append(fault)
    push(publisher(), folder)
    assert "model.safetensors" in hub.repositories[REPOSITORY]["files"]
    assert "warning" not in capfd.readouterr().err


def test_a_refused_token_is_reported_once_and_not_retried(hub, publisher, folder, capfd):
    refused = publisher(token="hf_wrong")
    push(refused, folder)
    write_json(folder / "results.json", results_of(step=4))
    push(refused, folder)
    error = capfd.readouterr().err
    assert error.count("Not logged in to the Hub; run `hf auth login`") == 1
    assert "Traceback" not in error
    assert hub.attempts == 0


@pytest.mark.parametrize(("fault", "attempts"), [(403, 1), (500, 3)])
def test_permanent_errors_are_reported_in_one_sentence(hub, publisher, folder, capfd, fault, attempts):
    hub.faults.extend([fault] * 50)
    push(publisher(), folder)
    assert capfd.readouterr().err.count("The run is not affected. Push later with `msctr push`.") == 1
    assert hub.attempts >= attempts
    assert (hub.attempts == 1) == (fault == 403)  # a refusal is permanent, so it is not retried
    assert "model.safetensors" not in hub.repositories[REPOSITORY]["files"]


def test_a_hub_that_cannot_be_reached_is_reported_in_one_sentence(hub, publisher, folder, capfd, monkeypatch):
    unreachable = publisher()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    push(unreachable, folder)
    assert f"{REPOSITORY} could not be pushed" in capfd.readouterr().err


def test_training_does_not_wait_for_uploads_and_the_newest_model_is_pushed_last(hub, publisher, folder):
    hub.faults.append("hang")
    patient = publisher()
    hub.seconds_hung = upload.TIMEOUT = 300.0
    for step in (4, 5, 6):
        write_json(folder / "results.json", results_of(step))
        patient(folder)
    assert hub.repositories.get(REPOSITORY, {"messages": []})["messages"] == []  # the first upload still hangs
    hub.released.set()
    patient.finish()
    assert json.loads(hub.repositories[REPOSITORY]["files"]["results.json"])["step"] == 6
    assert len(hub.repositories[REPOSITORY]["messages"]) == 2  # the model in between was skipped


def test_a_model_is_pushed_once_and_a_better_one_again_even_with_a_custom_card(hub, publisher, folder):
    (folder / "README.md").write_text("my own card")
    once = publisher()
    for step in (4, 4, 5):
        write_json(folder / "results.json", results_of(step))
        push(once, folder)
    assert len(hub.repositories[REPOSITORY]["messages"]) == 2
    assert hub.repositories[REPOSITORY]["files"]["README.md"] == b"my own card"


def test_an_upload_that_hangs_is_stopped(hub, publisher, folder, capfd):
    hub.faults.extend(["hang"] * 50)
    impatient = publisher()
    upload.TIMEOUT = 60.0
    impatient.longest_wait = 3
    push(impatient, folder)
    assert "took too long and was stopped" in capfd.readouterr().err


def test_a_run_pushes_its_best_model_and_continues_if_the_hub_fails(hub, publisher, run_script, tmp_path):
    publisher()
    data = write_folder(tmp_path / "data", num_train=6, num_validation=3)
    options = {"backbone_config": json.dumps(SWIN_TINY), "push_to_hub": "true", "hub_model_id": REPOSITORY}
    arguments = flags(data, tmp_path / "run")
    arguments += [word for name, value in options.items() for word in (f"--{name}", value)]
    hub.faults.extend([403] * 50)
    code, _, err = run_script("train.py", *arguments)
    assert code == 0, err
    assert (tmp_path / "run/checkpoints/step_4").exists()
    assert "model.safetensors" not in hub.repositories[REPOSITORY]["files"]

    hub.faults.clear()
    push = [ROOT / "scripts/push_to_hub.py", "--model", tmp_path / "run", "--hub_model_id", REPOSITORY]
    run = process(hub, tmp_path, *push)
    assert run.returncode == 0, run.stderr
    assert f"{hub.url}/{REPOSITORY}/commit/" in run.stdout
    hub.repositories.clear()
    code, _, err = run_script("train.py", *arguments, "--overwrite_output_dir", "true")
    assert code == 0, err
    files = hub.repositories[REPOSITORY]["files"]
    assert files["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()
    assert json.loads(files["results.json"]) == json.loads((tmp_path / "run/results.json").read_text())


@pytest.mark.parametrize("text", ["", "some words\nMemoryError: too large\n"])
def test_an_upload_process_that_crashes_is_reported_with_all_it_wrote(
    hub, publisher, folder, capfd, monkeypatch, tmp_path, text
):
    crashing = tmp_path / "crashing.py"
    crashing.write_text(f"import sys\nsys.stderr.write({text!r})\nsys.exit(1)\n")
    monkeypatch.setattr(upload, "__file__", str(crashing))
    push(publisher(), folder)
    error = capfd.readouterr().err
    reason = ": MemoryError: too large" if text else " without a message."
    assert f"warning: The upload process failed{reason}" in error
    assert text in error


def test_an_error_in_the_card_is_reported_with_its_traceback_and_the_run_continues(folder, capfd, monkeypatch):
    def fail(*arguments, **options):
        raise KeyError("planted")

    monkeypatch.setattr("msctr_hf.hub.publishing.write_model_card", fail)
    publisher = Publisher(get_dataset_spec("synthetic_scenes"))
    for _ in range(2):
        publisher(folder)
    error = capfd.readouterr().err
    assert error.count("The model card could not be written") == error.count("Traceback") == 1
    assert "in fail" in error


def test_a_folder_that_cannot_be_written_is_a_usage_error_and_a_run_continues(hub, publisher, folder, capfd):
    (folder / ".pushed").write_text("a file where a folder should be made")
    in_training = publisher()
    push(in_training, folder)
    assert capfd.readouterr().err.count("The push could not be started") == 1
    with pytest.raises(UsageError, match=f"{folder} cannot be written: .*File exists"):
        publish(folder, None, Destination(REPOSITORY))
    assert hub.attempts == 0


def test_publishing_raises_a_usage_error_when_the_hub_refuses(hub, folder, tmp_path):
    hub.faults.extend([403, 400])
    run = process(hub, tmp_path, "-c", PUBLISH, folder, REPOSITORY, "hf_wrong", TOKEN, TOKEN)
    assert run.returncode == 0, run.stderr
    unknown, refused, bad = run.stdout.splitlines()
    assert unknown == f"Not logged in to the Hub; run `hf auth login` or set HF_TOKEN to push to {REPOSITORY}."
    assert refused == f"Your token may not write to {REPOSITORY}; use one with write access."
    assert bad.startswith(f"{REPOSITORY} could not be pushed: ")
    assert "fault 400" in bad  # the message of the Hub
    assert hub.attempts == 2
    assert not (folder / ".pushed").exists()


def test_a_bug_in_an_upload_keeps_its_traceback(folder, monkeypatch):
    def fail(*arguments, **options):
        raise TypeError("planted")

    monkeypatch.setattr(upload.HfApi, "create_repo", fail)
    with pytest.raises(TypeError, match="planted"):
        publish(folder, None, Destination(REPOSITORY))
    assert not (folder / ".pushed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [4, 100_000], ids=["after the last step", "between steps"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stops_at_a_signal_even_if_the_hub_hangs(hub, tmp_path, max_steps, number):
    hub.faults.extend(["hang"] * 50)
    hub.seconds_hung = 300
    data = write_folder(tmp_path / "data", num_train=6, num_validation=3)
    options = {"backbone_config": json.dumps(SWIN_TINY), "max_steps": max_steps, "validation_steps": 2}
    arguments = [*flags(data, tmp_path / "run", checkpointing_steps=100_000), "--hub_model_id", REPOSITORY]
    arguments += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(ROOT / "scripts/train.py"), *map(str, arguments), "--push_to_hub", "true"]
    run = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not hub.attempts or (max_steps == 4 and not (tmp_path / "run/last/model.safetensors").exists()):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2.0)  # long enough for the last save, of a small network, to end
    uploads = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(run.pid, number)
    start = time.monotonic()
    error = run.communicate(timeout=60)[1]
    assert run.returncode == EXIT_INTERRUPTED, error
    assert time.monotonic() - start < 10
    assert "--resume auto" in error
    assert "Traceback" not in error
    assert uploads
    assert not any(os.path.exists(f"/proc/{process}") for process in uploads)
    assert not list((tmp_path / "run").glob(".pushed*"))

    hub.faults.clear()
    hub.seconds_hung = 0
    if max_steps == 4:  # the same command resumes and pushes
        resumed = subprocess.run([*command, "--resume", "auto"], env=environment, cwd=tmp_path, capture_output=True)
        assert resumed.returncode == 0, resumed.stderr
        files = hub.repositories[REPOSITORY]["files"]
        assert files["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["network", "some one/network", "a/b/c", "-x/y"])
def test_an_invalid_repository_name_is_refused_before_training(run_script, tmp_path, name):
    code, _, err = run_script(
        "train.py", "--output_dir", tmp_path / "run", "--push_to_hub", "true", f"--hub_model_id={name}"
    )
    assert code == 2
    assert "--hub_model_id" in err
    assert not (tmp_path / "run").exists()


def test_pushing_needs_the_name_of_a_repository(run_script):
    code, _, err = run_script("train.py", "--push_to_hub", "true")
    assert code == 2
    assert "--push_to_hub needs --hub_model_id USER/NAME" in err


def test_a_push_from_where_the_data_set_is_not_found_says_that_the_card_lacks_it(tmp_path, capsys):
    write_json(tmp_path / "run.json", {"settings": {"dataset": "folder", "data_dir": "data/mine"}})
    assert spec_of_run(tmp_path) is None
    out = capsys.readouterr().out
    assert "the card will say nothing about the data set of the run" in out
    assert "data/mine/dataset.yaml does not exist" in out
    write_json(tmp_path / "run.json", {"settings": {"dataset": "camvid"}})
    assert spec_of_run(tmp_path) == get_dataset_spec("camvid")
    assert not capsys.readouterr().out
