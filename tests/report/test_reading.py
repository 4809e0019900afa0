"""What a reader of a page finds: its set-up and commands, completions side by side; and notebooks by hand."""

import json
import re
import shutil

import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient

from bakeoff.errors import UserError
from bakeoff.mlflow_store import COMPLETIONS, HELDOUT
from bakeoff.paths import ANALYSIS
from bakeoff.report.completions import side_by_side
from bakeoff.report.store import find_study, load_study
from benchmarks.synthetic import synthetic_store
from tests.commands import store_of
from tests.report.test_pages import params, run

pytestmark = pytest.mark.xdist_group("pages")
COLUMNS = ["update", "prompt", "completion", "answer", "reward", "ended"]
CONDITIONS = {"budget.limit": "2560", "budget.unit": "sequences"}


def filled(folder, seeds=(1, 2, 3)):
    """A store of two methods: PPO logged held-out completions over time, both logged completions of training."""
    given = {arm: params() | CONDITIONS | {"choice/algorithm": arm} for arm in ("ppo", "grpo")}
    tracking = synthetic_store(store_of(folder), "methods", given, seeds, lambda arm, seed: run(0.9 + seed / 1000))
    client = MlflowClient(tracking_uri=tracking.uri)
    for found in client.search_runs([client.get_experiment_by_name("bakeoff").experiment_id]):
        arm, _, seed = found.info.run_name.partition(" ")
        if seed:
            rows = [[10, f"train{n} {seed}", f"{arm} trains", "yes", 0.5, True] for n in range(4)]
            client.log_text(found.info.run_id, json.dumps({"columns": COLUMNS, "data": rows}), COMPLETIONS)
        if seed and arm == "ppo":
            rows = [
                [update, f"held{n}", f"<b>{update}</b>\nline two", "yes", update / 10, update > 0]
                for update in (0, 5, 10)
                for n in range(4)
            ]
            client.log_text(found.info.run_id, json.dumps({"columns": COLUMNS, "data": rows}), HELDOUT)
    return tracking


def test_a_report_of_one_run_has_every_part_its_set_up_and_its_command(report, tmp_path):
    filled(tmp_path, seeds=(1,))
    made = report("methods", "--where", "name == 'ppo'")
    assert made.returncode == 0, made.stderr
    assert "Only ppo finished, so nothing is compared" in made.stdout
    page = (tmp_path / "reports" / "methods.html").read_text()
    assert "one model and 1 seed." in page
    for key, value in {
        "task": "sort",
        "model": "tiny",
        "budget of a run": "2,560 sequences",
        "runs": "1 arm, 1 finished run",
        "seeds": "1; tuned on 100",
        "command of this page": "<code>bakeoff-report methods --where",
    }.items():
        assert f"<th>{key}</th><td>{value}" in page
    assert re.search(r"<th>date \(UTC\)</th><td>\d{4}-\d\d-\d\d</td>", page)
    assert "figures.plot_final(study)" in page
    assert "bakeoff-report methods --where" in (tmp_path / "reports" / "methods.md").read_text()
    for wrong in ("1 seeds", "Left out", "KeyError", ">inf<", ">nan<"):
        assert wrong not in page


def test_completions_of_one_prompt_stand_side_by_side_over_updates_and_by_arm(tmp_path):
    tracking = filled(tmp_path)
    study = load_study("methods", tracking)
    assert set(study.completions["seed"]) == {1}
    text = side_by_side(study)
    (table,) = re.findall(r"<strong>Prompt:</strong> held0.*?</table>", text)
    assert re.findall(r"<th>update (\d+)</th>", table) == ["0", "5", "10"]
    assert "<th>ppo</th><td>&lt;b&gt;0&lt;/b&gt;<br>line two<br><small>score 0, not ended</small></td>" in table
    assert "<th>grpo</th>" not in table, "it logged no held-out completions"
    old = side_by_side(load_study("methods", tracking, where="name == 'grpo'"))
    (trained,) = re.findall(r"<strong>Prompt:</strong> train0 1.*?</table>", old)
    assert "<th>grpo</th><td>grpo trains" in trained
    study.completions = study.completions[:0]
    assert "logged no completions" in side_by_side(study)


def test_a_notebook_started_in_its_own_folder_finds_the_store_beside_it(tmp_path, monkeypatch):
    """As Jupyter starts it: the working folder is analysis/, of the checkout or of a user's project."""
    folder = tmp_path / "analysis"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="holds no run of the study 'methods'"):
        find_study("reports/methods")
    assert not [*folder.iterdir()], "reading makes no store"
    filled(tmp_path)
    for name in ("methods", "claims"):
        shutil.copy(ANALYSIS / f"{name}.ipynb", folder)
    book = nbformat.read(folder / "methods.ipynb", as_version=4)
    del book.cells[4:]
    here = {"metadata": {"path": str(folder)}}
    NotebookClient(book, kernel_name="python3", resources=here).execute()
    shown = json.dumps(book.cells[1].outputs)
    assert "<h1>methods</h1>" in shown
    assert "2 arms, 6 finished runs" in shown
    assert {path.name for path in folder.iterdir()} == {"methods.ipynb", "claims.ipynb"}
