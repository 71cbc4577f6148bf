"""README and the pages of docs/: length, links, and tables that equal the JSON files of measurements."""

import json
import re
import statistics

import pytest
from conftest import ROOT
from pages import DOCS, PAGES

from experiments.benchmark.gpu_report import gpu_section
from experiments.embeddings.tables import clicks_table, planted_table, read
from experiments.evidence.ledger import ledger_table
from experiments.evidence.plan import read_experiment
from experiments.evidence.records import read_records
from experiments.evidence.report import markdown as report_of
from experiments.evidence.verdict import judge
from experiments.model_zoo import read_rows, zoo_commands, zoo_table
from experiments.sweep_report import compare_arms, markdown

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs/results.md").read_text()
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text()
EMBEDDINGS = (ROOT / "docs/embeddings.md").read_text()
TRAINING = (ROOT / "docs/training.md").read_text()
SWEEPS = ("camvid", "camvid_2160_steps")


def results(name):
    return read_rows([ROOT / f"results/{name}.json"])


def test_the_readme_has_at_most_150_lines_of_at_most_160_characters():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 160


def anchors(page):
    """Return the names by which a Git host links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page):
    names = re.findall(
        r"(?<![\w/.])(?:configs|scripts|docs|examples|tests|results|msctr_hf)/[\w/.]+\.\w+", page.read_text()
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_page_is_listed_in_the_readme():
    assert [page.name for page in DOCS[1:] if f"(docs/{page.name})" not in README] == []


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        code = re.findall(r"`([^`\n]+)`|^ {4}(.+)|^(make .+)", page.read_text(), re.M)
        for words in ("".join(parts).split("#")[0].split() for parts in code):
            if "make" in words:
                assert set(words[words.index("make") + 1 :]) <= targets, (page.name, words)


def test_the_test_command_of_the_readme_is_what_ci_runs():
    constraints, command = re.search(r'pip install -c (\S+) -e "\.\[dev\]" && (pytest .*)`', README).groups()
    ci = (ROOT / ".ci/run").read_text()
    assert f"tested={constraints}\n" in ci
    assert '"${constraints[@]}" ".[dev]"' in ci
    assert f"\n{command}\n" in ci


def test_the_table_and_the_commands_of_runs_equal_the_result_files():
    rows = [row for name in ("quickstart", "example", *SWEEPS) for row in results(name)]
    assert zoo_table(rows) in RESULTS
    assert zoo_commands(rows) in RESULTS


@pytest.mark.parametrize("name", SWEEPS)
def test_the_table_of_a_sweep_equals_its_result_file_which_has_three_seeds_of_every_arm(name):
    rows = results(name)
    assert len({row["max_steps"] for row in rows}) == 1
    seeds = {arm: {row["seed"] for row in rows if row["arm"] == arm} for arm in {row["arm"] for row in rows}}
    assert min(map(len, seeds.values())) >= 3
    assert len(set(map(frozenset, seeds.values()))) == 1
    assert markdown(compare_arms(rows, "ce")) in RESULTS


def test_the_ledger_of_experiments_on_test_splits_equals_its_file():
    assert ledger_table(json.loads((ROOT / "results/ledger.json").read_text())) in RESULTS


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_report_of_a_finished_experiment_is_what_its_records_say(path):
    experiment, folder = read_experiment(path), ROOT / "results" / path.stem
    written = [folder / name for name in ("verdict.json", "choice.json") if (folder / name).exists()]
    records = read_records(experiment, folder)
    verdict = judge(experiment, records, exploratory=(folder / "peeked.json").exists())
    if verdict is None:
        assert written == [], "a verdict needs every run"
        return
    assert json.loads(written[0].read_text()) == verdict
    assert report_of(experiment, records, verdict) in RESULTS


def test_the_result_rows_of_the_readme_equal_the_result_files():
    for name in ("camvid_46", "camvid_367"):
        experiment, folder = read_experiment(ROOT / f"experiments/plans/{name}.yaml"), ROOT / "results" / name
        records = read_records(experiment, folder)
        arms = [
            [record["mean_iou"] for key, record in records.items() if key[0] == arm] for arm in ("ce_time", "chosen")
        ]
        shown = [f"{100 * statistics.mean(scores):.2f} ± {100 * statistics.stdev(scores):.2f}" for scores in arms]
        primary = json.loads((folder / "verdict.json").read_text())["primary"]
        difference = f"{primary['mean']:+.2f} ({primary['low']:+.2f} to {primary['high']:+.2f})"
        assert f", {primary['n']} seeds | {shown[0]} | {shown[1]} | measured here, {difference} |" in README


def test_the_quickstart_score_in_the_readme_equals_the_result_file():
    assert f"(mIoU {100 * results('quickstart')[0]['mean_iou']:.1f} %)" in README


def test_the_table_of_the_quickstart_with_few_labels_equals_its_result_file_which_has_three_seeds_of_both_arms():
    rows = results("quickstart_few_labels")
    assert sorted((row["arm"], row["seed"]) for row in rows) == [
        (arm, seed) for arm in ("labels", "unlabeled") for seed in range(3)
    ]
    assert markdown(compare_arms(rows, "labels")) in TRAINING
    (steps,) = {row["max_steps"] for row in rows}
    assert f"\nmax_steps: {steps}\n" in (ROOT / "configs/quickstart_few_labels.yaml").read_text()
    alone = [line for line in TRAINING.splitlines() if "labels_only" in line or '"labels: ms_cs' in line]
    assert [f"--unlabeled_start_step {steps}" in line for line in alone] == [True, True]  # the others never join


def benchmark(name):
    return json.loads((ROOT / f"results/benchmark_{name}.json").read_text())["rows"]


def figure(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def ratio(value):
    return f"**{value:.1f}x**" if value < 10 else f"**{value:.0f}x**"


def test_the_benchmark_of_the_loss_equals_its_result_file():
    rows = {(row["term"], row["anchors"]): row for row in benchmark("loss") if row["classes"] == 19}
    lines = [line for line in BENCHMARKS.splitlines() if re.match(r"\| [\d,]+ \|", line)]
    assert len(lines) == len(rows) // 2
    for line in lines:
        anchors, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for term, time, memory in zip(("within", "across"), cells[::2], cells[1::2], strict=True):
            row = rows[term, int(anchors.replace(",", ""))]
            assert time == f"{figure(row['dense ms'])} / {figure(row['ours ms'])} ms = {ratio(row['speed-up'])}"
            shown = f"{figure(row['dense MB'])} / {figure(row['ours MB'])} MB"
            assert memory == (shown if row["memory ratio"] < 1.5 else f"{shown} = {row['memory ratio']:.0f}x")


@pytest.mark.parametrize("name", ["sampling", "together", "projection", "upsampling", "metric", "data"])
def test_the_benchmark_of_a_part_equals_its_result_file(name):
    lines = [line for line in BENCHMARKS.splitlines() if line.startswith(f"| `{name}`")]
    assert lines
    for line, row in zip(lines, benchmark(name), strict=name != "projection"):  # the page shows only two of its rows
        base = next(value for key, value in row.items() if key.endswith(" ms") and key != "ours ms")
        shown = f"| {figure(base)} ms | {figure(row['ours ms'])} ms | {ratio(row['speed-up'])} |"
        assert line.endswith(shown)


def test_the_tables_of_embeddings_equal_their_result_files():
    assert planted_table(read(ROOT / "results/planted_errors")) in EMBEDDINGS
    assert clicks_table(read(ROOT / "results/clicks")) in EMBEDDINGS


def test_the_time_of_a_search_equals_its_result_file():
    of_head, of_projections = benchmark("search")
    assert (
        f"{of_head['images']} images of 360x480 are ranked and masked in {of_head['search s']:.1f} s with "
        f"{of_head['channels']:,} channels (`--features decode_head`), in {of_projections['search s']:.1f} s with "
        f"{of_projections['channels']:,} (`projection`)"
    ) in EMBEDDINGS.replace("\n", " ")


def test_the_benchmark_of_options_equals_its_result_file():
    section = BENCHMARKS.split("\n## Options of the contrast\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if " ms = " in line]
    for line, row in zip(lines, benchmark("options"), strict=True):
        part, detail = row["part"].split(", ")
        size = f"{row['images']} images" if part == "objective" else f"{row['anchors']:,} anchors"
        assert part in line and detail in line and size in line
        shown = {"hard": "", "any": ""}
        for name in shown:
            if row[f"{name} ms"] is not None:
                shown[name] = f"{figure(row[f'{name} ms'])} ms = {row[f'{name} / default']:.2f}x"
        cells = (row["classes"], f"{figure(row['default ms'])} ms", shown["hard"], shown["any"])
        assert line.endswith(f"| {' | '.join(map(str, cells))} |")


def test_the_benchmark_of_large_images_equals_its_result_file():
    section = BENCHMARKS.split("\n## Large images\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(("| train |", "| predict |"))]
    for line, row in zip(lines, benchmark("large_images"), strict=True):
        speed = f"{row['images/s']:.2f}" if row["command"] == "train" else f"{row['images/s']:.4f}"
        relative = "" if row["images/s ratio"] is None else f"{row['images/s ratio']:.2f}"
        cells = (row["command"], row["images"], f"{row['peak MB']:,.0f} MB", speed, relative)
        assert line == f"| {' | '.join(cells)} |"


def test_the_comparison_with_other_libraries_equals_its_result_file():
    section = BENCHMARKS.split("\n## Beside other libraries\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if " ms = " in line]
    for line, row in zip(lines, benchmark("peers"), strict=True):
        time = f"{figure(row['peer ms'])} / {figure(row['ours ms'])} ms = {ratio(row['speed-up'])}"
        assert line.startswith(f"| {row['work']} | {row['peer']} | {time} |")
        if row["memory ratio"] is not None:
            memory = f"{figure(row['peer MB'])} / {figure(row['ours MB'])} MB = {row['memory ratio']:.1f}x"
            assert line.endswith(f"| {memory} |")


@pytest.mark.parametrize("name", ["step", "step_camvid"])
def test_the_benchmark_of_a_step_equals_its_result_file(name):
    for row in benchmark(name):
        parts = " | ".join(f"{row[f'{part} ms']:,.0f} ms" for part in ("forward", "loss", "backward", "optimizer"))
        assert f"| {row['mode']} | {parts} |" in BENCHMARKS


def test_the_benchmark_of_unlabeled_images_equals_its_result_file():
    section = BENCHMARKS.split("\n## A step with images without labels\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if " ms | " in line]
    measured = (ROOT / "results/benchmark_unlabeled.json").exists()
    assert ("Not measured yet." in section) != measured
    for line, row in zip(lines, benchmark("unlabeled") if measured else [], strict=True):
        cells = (
            row["step"], f"{row['step ms']:,.0f} ms", f"{row['time / ce']:.2f}", f"{row['MB']:,.0f} MB",
            f"{row['memory / ce']:.2f}",
        )  # fmt: skip
        assert line == f"| {' | '.join(cells)} |"


def test_the_section_about_gpus_equals_what_was_measured_on_them():
    section = gpu_section(sorted((ROOT / "results").glob("gpu_*.json")))
    assert BENCHMARKS.split("\n```\n")[-1].strip() == section, "python scripts/gpu_report.py prints the section"


def test_every_published_row_has_commands_for_1_and_4_gpus_with_its_global_batch_size():
    import yaml

    text = (ROOT / "docs/reproduce.md").read_text().replace("\\\n", " ")
    published = [
        path
        for path in sorted((ROOT / "configs").rglob("*.yaml"))
        if re.search(r"Published|Re-run", path.read_text().split("dataset:")[0])
        and "long schedule" not in path.read_text()
    ]
    assert len(published) == 13
    for path in published:
        recipe = yaml.safe_load(path.read_text())
        lines = [line for line in text.splitlines() if f"{path.relative_to(ROOT)} " in line]
        assert len(lines) == 2
        for line in lines:
            factors = re.findall(r"--(?:num_processes|gradient_accumulation_steps) (\d+)", line)
            assert [int(factor) * recipe["batch_size"] for factor in factors] == [recipe["global_batch_size"]]
