"""Stores that are partial, foreign or hostile: the page appears, says what it left out, and shows text as text."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import RunTag
from nbconvert.filters import markdown2html
from rich.console import Console

from bakeoff.errors import UserError
from bakeoff.mlflow_store import METRICS, Tracking, metrics_table
from bakeoff.report.__main__ import terminal_table
from bakeoff.report.completions import side_by_side
from bakeoff.report.matching import configuration, matched, mismatches
from bakeoff.report.output import replaced
from bakeoff.report.page import answer, heading, page_of, warnings
from bakeoff.report.pages import methods
from bakeoff.report.render import to_html
from bakeoff.report.setup import commands
from bakeoff.report.store import load_study
from bakeoff.report.study import read_study, write_study
from bakeoff.report.tables import as_text, estimates, markdown, shown
from benchmarks.synthetic import synthetic_store
from tests.commands import store_of
from tests.report.test_pages import params, run

pytestmark = pytest.mark.xdist_group("pages")
ARMS = ("ppo", "grpo")
SEEDS = (1, 2, 3)
ATTACKS = [
    "<script>evil()</script>",
    "</title></p></td><img src=evil onerror=evil()>",
    '" onclick="evil()',
    "[evil](javascript:evil()) ![evil](http://evil.example/e.png) <http://evil.example> www.evil.com",
    "# evil\n\n- evil\n\n    evil\n\n1. evil\n\n> evil\n\n***\n\n```\nevil\n```\n\n<evil>\n\n[evil]: http://evil.example",
    "- evil | evil || evil \\| evil\r\n| --- |",
    "`evil` **evil** *evil* _evil_ ~~evil~~ $evil$ $$evil$$ &lt;evil&gt; &#60;evil&#62; [^1] :evil: @evil #1",
    "[red]evil[/red] [link=http://evil.example]evil[/link] \x1b[31mevil \x07\x00\u202e",
    "\ud800evil\ufffe",
]


class Store:
    """A small store of one study, and a client to damage it with."""

    def __init__(self, folder: Path, arms=ARMS, seeds=SEEDS, series=lambda arm, seed: run(0.9 + seed / 1000)):
        given = {arm: params() | {"choice/algorithm": arm} for arm in arms}
        self.tracking = synthetic_store(store_of(folder), "methods", given, seeds, series)
        self.folder, self.client = folder, MlflowClient(tracking_uri=self.tracking.uri)
        self.experiment = self.client.get_experiment_by_name("bakeoff").experiment_id
        every = self.client.search_runs([self.experiment])
        (self.parent,) = [run for run in every if run.data.tags.get("kind") == "sweep"]
        self.runs = {run.info.run_name: run for run in every if run is not self.parent}

    def artifact(self, name: str) -> Path:
        return self.folder / "mlartifacts" / self.runs[name].info.run_id / "artifacts" / METRICS

    def rewrite(self, name: str, change):
        """Changes the metrics of a run: a function from and to a frame of metric, step and value."""
        frame = change(pq.read_table(self.artifact(name)).to_pandas().astype({"metric": str}))
        pq.write_table(metrics_table({(m, s): v for m, s, v in frame.itertuples(index=False)}), self.artifact(name))

    def tag(self, own: str, **tags: str):
        self.client.log_batch(self.runs[own].info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def completions(self, name: str, text: str):
        self.client.log_text(self.runs[name].info.run_id, text, "completions.json")

    def load(self):
        return load_study("methods", self.tracking)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def table_of(text: str, columns=("update", "prompt", "completion", "answer", "reward", "ended")) -> str:
    return json.dumps({"columns": list(columns), "data": [[1, text, text, text, 0.5, True]]})


def is_accuracy(frame: pd.DataFrame) -> pd.Series:
    return frame["metric"] == "eval/greedy_accuracy"


# a FINISHED run → what the page says that it lacks
INCOMPLETE = {
    "without its final accuracy": (
        lambda frame: frame[~(is_accuracy(frame) & (frame["step"] == 10))],
        "its last held-out accuracy is of update 5 of 10",
    ),
    "with half of its steps": (lambda frame: frame[frame["step"] <= 5], "it used 5 of 10 updates"),
    "whose accuracy is NaN": (
        lambda frame: frame.assign(value=frame["value"].mask(is_accuracy(frame), float("nan"))),
        "its held-out accuracy at update 0 is nan",
    ),
    "whose accuracy is infinite at its end": (
        lambda frame: frame.assign(value=frame["value"].mask(is_accuracy(frame) & (frame["step"] == 10), float("inf"))),
        "its held-out accuracy at update 10 is inf",
    ),
    "without accuracy": (lambda frame: frame[~is_accuracy(frame)], "it logged no held-out accuracy"),
    "without metrics": (lambda frame: frame[:0], "it logged no held-out accuracy"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_a_finished_run_that_lacks_its_end_is_named_and_not_counted(store, case, tmp_path):
    change, reason = INCOMPLETE[case]
    store.rewrite("ppo 2", change)
    study = store.load()
    assert list(zip(study.unfinished["name"], study.unfinished["seed"], strict=True)) == [("ppo", 2)]
    assert len(study.runs) == 5
    assert set(study.metrics["run"]) == set(study.runs["run"]) == set(study.params["run"])
    assert f"ppo seed 2 did not finish (incomplete): {reason}" in mismatches(study)
    assert "not matched" in matched(study)
    write_study(study, tmp_path)
    assert mismatches(read_study(tmp_path)) == mismatches(study)


@pytest.mark.parametrize(("unit", "limit"), [("updates", 20), ("sequences", 5120), ("tokens", 51200), ("seconds", 20)])
def test_a_budget_that_is_not_used_is_named_though_every_run_stops_there(tmp_path, unit, limit):
    budget = {"budget.unit": unit, "budget.limit": f"{limit:.1f}"}
    arms = {"ppo": params() | budget, "grpo": params() | budget | {"budget.limit": f"{limit / 2:.1f}"}}
    tracking = synthetic_store(store_of(tmp_path), "methods", arms, SEEDS, lambda arm, seed: run(0.9))
    study = load_study("methods", tracking)
    assert study.arms == ["grpo"]
    assert f"it used {limit / 2:g} of {limit:g} {unit}" in mismatches(study)[-1]


@pytest.mark.parametrize("tag", ["commit", "device", "torch"])
def test_runs_of_another_version_or_machine_are_named(store, tag):
    for name in store.runs:
        store.tag(name, **{tag: "one"})
    assert mismatches(store.load()) == []
    store.tag("grpo 3", **{tag: "two"})
    assert mismatches(store.load()) == [f"{tag} differs: two (grpo seed 3); one (the others)"]
    for seed in SEEDS:
        store.tag(f"grpo {seed}", **{tag: "two"})
    assert f"{tag} differs: one (ppo); two (grpo)" in mismatches(store.load())


def test_a_parameter_of_one_run_is_named_by_its_run(store):
    store.client.log_param(store.runs["ppo 2"].info.run_id, "batch.prompts", "7")
    assert mismatches(store.load()) == ["batch.prompts differs: 7 (ppo seed 2); none (the others)"]


def test_what_is_foreign_or_damaged_is_left_out_and_named(store):
    client = store.client
    client.delete_tag(store.runs["ppo 1"].info.run_id, "config_id")
    store.tag("ppo 2", seed="two")
    store.tag("grpo 1", overrides='["arm=grpo", "seed=')
    client.delete_run(store.runs["grpo 2"].info.run_id)
    foreign = client.create_run(store.experiment, tags={"mlflow.parentRunId": store.parent.info.run_id})
    client.set_terminated(foreign.info.run_id)
    store.artifact("grpo 3").write_bytes(b"PAR1 cut")
    store.completions("ppo 3", '{"columns": ["update"')
    store.completions("grpo 3", table_of("text", ("step", "prompt", "completion", "answer", "reward", "ended")))
    study = store.load()
    assert sorted(zip(study.runs["name"], study.runs["seed"], strict=True)) == [("grpo", 1), ("grpo", 3), ("ppo", 3)]
    left_out = "; ".join(study.left_out)
    for part in (
        "run ppo 1: it has no tag config_id",
        "run ppo 2: its seed is 'two', which is not a whole number",
        "the settings of grpo seed 1: the tag overrides is damaged",
        "run grpo 2: it is deleted",
        f"run {foreign.info.run_name}: it has no tag config_id and no tag algorithm and no tag seed",
        "the artifact metrics.parquet of run grpo 3: it is damaged",
        "the completions of ppo: completions.json is damaged",
        "the completions of grpo: completions.json is damaged",
    ):
        assert part in left_out
        assert part in "; ".join(warnings(study)["Left out"])


@pytest.mark.parametrize("tag", ["algorithm", "model", "task", "tuned", "start", "overrides", "study"])
def test_a_tag_that_every_run_lacks_costs_no_page(store, tag):
    for found in store.runs.values():
        store.client.delete_tag(found.info.run_id, tag)
    if tag == "algorithm":
        with pytest.raises(UserError, match="6 others cannot be read"):
            store.load()
        return
    study = store.load()
    assert heading(page_of("methods"), study)
    known = tag != "start" or "the start weights of ppo seed 1, ppo seed 2" in "; ".join(mismatches(study))
    assert known


def test_metrics_of_another_order_or_type_are_read_alike(store):
    before = store.load().metrics
    table = pq.read_table(store.artifact("ppo 1"))
    plain = table.set_column(0, "metric", table["metric"].cast(pa.string())).append_column("more", table["step"])
    pq.write_table(plain.take(list(range(len(plain)))[::-1]), store.artifact("ppo 1"))
    pd.testing.assert_frame_equal(store.load().metrics, before)


def test_of_two_runs_of_an_arm_and_seed_the_finished_one_counts(store):
    tags = {**store.runs["ppo 1"].data.tags, "mlflow.runName": "again"}
    failed = store.client.create_run(store.experiment, tags=tags)
    store.client.set_terminated(failed.info.run_id, "FAILED")
    study = store.load()
    assert len(study.runs) == 6
    assert study.left_out == ["1 run: another run of the same arm and seed is used"]


@pytest.mark.parametrize("arms", [("ppo",), ARMS])
@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_one_arm_and_one_seed_have_an_answer(tmp_path, arms, seeds):
    study = Store(tmp_path, arms, seeds).load()
    text = answer(page_of("methods"), study)
    assert "give no answer" not in text
    assert "1 seeds" not in text
    assert ("nothing is compared" in text) == (arms == ("ppo",))


def test_a_study_none_of_whose_runs_is_complete_says_so(tmp_path):
    nothing = Store(tmp_path, series=lambda arm, seed: run(float("nan"))).load()
    top = heading(page_of("methods"), nothing)
    assert "These runs give no answer" in top
    assert "<li>no run is complete</li><li>ppo seed 1 did not finish (incomplete)" in top


def test_completions_without_a_score_are_named(tmp_path):
    failed = {"ppo": 0.0, "grpo": 0.03}
    study = Store(
        tmp_path, series=lambda arm, seed: run(0.9) | {"reward/failed": {1: failed[arm], 2: failed[arm]}}
    ).load()
    assert warnings(study) == {"Not scored": ["3 % of grpo's completions"]}
    assert methods.table(study).set_index("method")["not scored"].fillna("").to_dict() == {"ppo": "", "grpo": "3 %"}


@pytest.mark.parametrize(("keys", "said"), [({"task.heldout": "24"}, True), ({"task.heldout": "128"}, False)])
def test_few_held_out_prompts_are_named_with_the_error_that_they_leave(keys, said, tmp_path):
    study = Store(tmp_path).load()
    params = [{"run": run, "key": key, "value": value} for run in study.runs["run"] for key, value in keys.items()]
    others = study.params[~study.params["key"].isin(["task.heldout", "evaluation.final"])]
    study = dataclasses.replace(study, params=pd.concat([others, pd.DataFrame(params)], ignore_index=True))
    sentence = "the last evaluation has 24 held-out prompts, the same for all seeds"
    assert (sentence in str(warnings(study))) is said
    assert ("may differ by ±0.2 (95 %)" in str(warnings(study))) is said


def test_the_interval_of_a_share_stays_within_0_and_1(tmp_path):
    study = Store(tmp_path, series=lambda arm, seed: run({1: 1.0, 2: 1.0, 3: 0.7}[seed])).load()
    for each in estimates(study, "eval/greedy_accuracy").values():
        assert 0 < each.low < each.value < each.high < 1
    assert "of shares on the logit scale, so within [0, 1]" in shown(methods.table(study)).to_html()


class Elements(HTMLParser):
    """Every element with the names of its attributes, and every value of one; hints for breaking a line left out."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.values, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag != "wbr":
            self.elements.append((tag, *(name for name, _ in attrs)))
            self.values += [str(value) for _, value in attrs]

    def handle_data(self, data):
        self.text += data


def written_with(folder: Path, texts: list[str]):
    """A study whose store has texts in every field that a person or a program can fill: one of them for each arm."""
    own = [text.encode("utf-8", "replace").decode() for text in texts]  # what a database takes
    keys = ("batch.prompts", "algorithm.loss", "budget.unit", "tuned.trials", "reward.process.verifier")
    arms = {f"arm{n}": params() | dict.fromkeys(keys, f"{n}{text}") for n, text in enumerate([*own, "lost", "odd"])}
    tracking = synthetic_store(store_of(folder), "methods", arms, (1,), lambda arm, seed: run(0.9))
    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name("bakeoff").experiment_id
    for found in client.search_runs([experiment]):
        if "arm" not in found.info.run_name:
            client.set_tag(found.info.run_id, "question", " ".join(own))
            client.set_tag(found.info.run_id, "command", " ".join(own))
            continue
        number = int(found.info.run_name.split()[0][3:])
        text, tag = texts[number % len(texts)], f"{number}{own[number % len(texts)]}"
        fields = ("algorithm", "tuned", "model", "task", "commit", "device", "torch", "kind", "name", "run", "status")
        tags = dict.fromkeys((*fields, "failure", "outcome", "start", "mlflow.runName"), tag)
        tags["overrides"] = json.dumps([f"arm={text} {number}", f"batch.size={text} {number}", "seed=1"])
        client.log_batch(found.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.log_text(found.info.run_id, table_of(f"{text} {number}"), "completions.json")
        if number == len(texts):
            client.set_terminated(found.info.run_id, "FAILED")
        elif number > len(texts):
            client.set_tag(found.info.run_id, "seed", tag)
    return load_study("methods", tracking)


def parts(study, folder: Path) -> tuple[str, str]:
    """All that a page shows of a study, as its HTML; its tables as .md shows them, as HTML too."""
    folder.mkdir()
    write_study(study, folder)
    study = read_study(folder)
    frames = [
        page_of("methods").table(study),
        methods.differences(study),
        configuration(study),
        study.completions[["name", "prompt", "completion", "answer", "reward"]],
    ]
    texts = [heading(page_of("methods"), study), matched(study)]
    outputs = [
        nbformat.v4.new_output("display_data", {kind: t}) for t in texts for kind in ("text/html", "text/markdown")
    ]
    tables = [shown(frame).to_html() for frame in frames]
    # An attack may have several lines, each of which a completion keeps: its line breaks are no elements of the page.
    tables.append(side_by_side(study).replace("<br>", ""))
    outputs += [nbformat.v4.new_output("display_data", {"text/html": table}) for table in tables]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    page = to_html(book, f"bakeoff: {study.question}", commands(study))
    return page, "".join(markdown2html(markdown(frame)) for frame in frames)


def test_no_element_and_no_attribute_comes_from_data(tmp_path):
    """A store of attacks has the elements of a store of words: in HTML, in Markdown, and in the tables of .md."""
    for folder in ("words", "attacks"):
        (tmp_path / folder).mkdir()
    words = parts(written_with(tmp_path / "words", [f"word{n}" for n in range(len(ATTACKS))]), tmp_path / "a")
    study = written_with(tmp_path / "attacks", ATTACKS)
    for text, harmless in zip(parts(study, tmp_path / "b"), words, strict=True):
        found = Elements(text)
        assert found.elements == Elements(harmless).elements
        assert not [value for value in found.values if "evil" in value]
        assert "<script>evil()</script>" in found.text
    assert not set("\x1b\x00\u202e\n") & set("".join([study.question, *study.arms, *study.left_out]))
    printed = Console(width=4000, force_terminal=True, color_system=None)
    with printed.capture() as captured:
        printed.print(terminal_table(as_text(methods.table(study)), study.question))
    assert "[red]evil[/red]" in captured.get()
    assert "\x1b[31m" not in captured.get()


def test_only_a_study_of_sweeps_has_a_page(tmp_path, monkeypatch):
    """A path in a store or in a folder of frames names no code."""
    monkeypatch.setenv("BAKEOFF_STUDIES", str(tmp_path / "a" / "b"))
    (tmp_path / "a" / "b" / "pages").mkdir(parents=True)
    (tmp_path / "x.py").write_text("raise SystemExit('executed')")
    for name in ("../../../x", "../x", "/x", "methods/../methods", "", "none"):
        assert page_of(name).code is methods, "the page of a study without code of its own"


def test_a_report_replaces_the_files_of_a_report_alone(tmp_path):
    def write(*names: str):
        with replaced(tmp_path, "mine") as made:
            for name in names:
                (made / name).write_text("report")

    (tmp_path / "mine").mkdir()
    kept = [tmp_path / "mine" / "notes.txt", tmp_path / "other.html", tmp_path / "mine" / "sub" / "deep.txt"]
    kept[2].parent.mkdir()
    for path in kept:
        path.write_text("user")
    write("mine.html", "mine/a.csv", "mine/b.csv")
    write("mine.html", "mine/a.csv")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".written.json", "a.csv", "notes.txt", "sub"]
    assert {path.read_text() for path in kept} == {"user"}
    elsewhere = ["../victim", "mine/../other.html", "other.html", "mine/sub"]
    (tmp_path / "mine" / ".written.json").write_text(json.dumps(elsewhere))
    (tmp_path / "mine" / "a.csv").write_text("user")
    with pytest.raises(UserError, match="would be replaced, but this report did not write it"):
        write("mine/a.csv")
    assert (tmp_path / "mine" / "a.csv").read_text() == "user"
    assert {path.read_text() for path in kept} == {"user"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.html", "other.html"], "nothing half made"


def test_a_folder_that_cannot_be_written_is_a_sentence(store, report, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracking.uri)
    (tmp_path / "file").touch()
    for out in ("file", "file/below", "/proc/reports", "/dev/full"):
        made = report("methods", "--out", out)
        assert made.returncode == 2
        assert "the report is not written" in made.stderr
        assert "--out DIR chooses another folder" in made.stderr


BROKEN = {
    "verdict": "from bakeoff.report.pages.methods import table\n\ndef verdict(study):\n    study['<evil>']\n",
    "importing": "raise SystemExit(3)\n",
}


def test_a_page_that_fails_costs_no_other_one(report, tmp_path, monkeypatch):
    """A user's page without a verdict, one that cannot be imported, and a study of ours without accuracies."""
    nothing = Store(tmp_path, series=lambda arm, seed: {"reward/mean": {1: float("inf")}})
    for name in BROKEN:
        synthetic_store(store_of(tmp_path), name, {"a": {}, "b": {}}, SEEDS, lambda arm, seed: run(0.9))
        for folder in ("sweeps", "pages", "analysis"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "sweeps" / f"{name}.yaml").touch()
        (tmp_path / "pages" / f"{name}.py").write_text(BROKEN[name])
        cells = [
            "folder = ''",
            "from IPython.display import HTML, display\nfrom bakeoff.report.page import heading, page_of\n"
            "from bakeoff.report.study import read_study\nstudy = read_study(folder)\n"
            "display(HTML(heading(page_of(study.name), study)))",
            "1 / 0",
        ]
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(book, tmp_path / "analysis" / f"{name}.ipynb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nothing.tracking.uri)
    monkeypatch.setenv("BAKEOFF_STUDIES", str(tmp_path))
    made = report("--all")
    assert made.returncode == 2
    assert "1 page of 3 failed" in made.stderr
    assert "pages/importing.py cannot be imported (SystemExit: 3)" in made.stderr
    page = (tmp_path / "reports" / "verdict.html").read_text()
    assert "These runs give no answer (KeyError" in page or "These runs give no answer (TypeError" in page
    assert "these runs lack its data (ZeroDivisionError: division by zero)" in page
    assert "left out: a part of" in made.stdout
    assert "<evil" not in page
    methods_page = (tmp_path / "reports" / "methods.html").read_text()
    assert "Left out:" in methods_page
    assert "Traceback" not in methods_page
    assert not (tmp_path / "reports" / "importing.html").exists()


def test_a_store_without_the_study_still_refuses(tmp_path):
    with pytest.raises(UserError, match="holds no run of the study"):
        load_study("methods", Tracking(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))
