"""A store that is locked, away, deleted or refuses something never ends a run, and gets everything when it is back."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from bakeoff import mlflow_store, outbox, tracking
from bakeoff.errors import UserError, redacted
from bakeoff.mlflow_store import Tracking, open_store
from bakeoff.outbox import LOG, as_line, read_entries
from bakeoff.report.store import run_metrics
from bakeoff.tracking import Tracker, send_unsent, start_run
from tests.commands import empty_store, store_of


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(outbox, "RETRY", 0.0)
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setattr(mlflow_store, "LOCKED", 0.1)


@pytest.fixture
def store(tmp_path) -> Tracking:
    (tmp_path / "store").mkdir()
    return Tracking(uri=f"sqlite:///{store_of(tmp_path / 'store')}")


def database(store):
    return store.uri.removeprefix("sqlite:///")


def run_in(store, tmp_path, **more) -> tuple[Tracker, list[str]]:
    messages: list[str] = []
    return start_run(store, "run", {}, tmp_path, report=messages.append, command="bakeoff more", **more), messages


def held(tracker) -> dict[tuple[str, int], float]:
    run = tracker.client.get_run(tracker.run_id)
    table = run_metrics(tracker.client, run).to_pandas()
    return {(row.metric, row.step): row.value for row in table.itertuples()}


def log_steps(tracker, first, last):
    for step in range(first, last):
        tracker.metrics({"a": float(step)}, step)
    return tracker.flush()


WHOLE = {("a", step): float(step) for step in range(6)}


def lock(store):
    holder = sqlite3.connect(database(store), timeout=0.1)
    holder.execute("BEGIN EXCLUSIVE")
    return holder.close


def move_away(store):
    path = Path(database(store))
    away = path.rename(path.with_suffix(".away"))
    return lambda: away.rename(path)


@pytest.mark.parametrize("outage", [lock, move_away])
def test_metrics_of_an_outage_wait_on_disk_and_are_sent_after_it(store, tmp_path, outage):
    tracker, messages = run_in(store, tmp_path)
    assert log_steps(tracker, 0, 2)
    end = outage(store)
    assert not log_steps(tracker, 2, 4)
    assert len(messages) == 1
    assert "training continues" in messages[0]
    assert read_entries(tmp_path / LOG)[-1]["metrics"][0][:2] == ["a", 3.0]
    end()
    with tracker.running():
        log_steps(tracker, 4, 6)
    assert held(tracker) == WHOLE
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("outage", [lock, move_away])
def test_what_is_unsent_at_the_end_is_named_and_sent_later(store, tmp_path, capsys, outage):
    tracker, _ = run_in(store, tmp_path)
    end = outage(store)
    with tracker.running():
        log_steps(tracker, 0, 6)
    assert "To send them, type: bakeoff more" in capsys.readouterr().err
    end()
    assert send_unsent(store, tmp_path) == 0
    again = Tracker(open_store(store)[0], tracker.run_id, tmp_path, store.uri)
    assert held(again) == WHOLE
    assert again.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_new_store_gets_all_that_a_deleted_one_had(store, tmp_path):
    first, _ = run_in(store, tmp_path)
    first.params({"lr": 0.1})
    log_steps(first, 0, 4)
    other = Tracking(uri=f"sqlite:///{shutil.copy(empty_store(), tmp_path / 'other.db')}")
    second, _ = run_in(other, tmp_path, resume=first.run_id)
    assert second.new
    with second.running():
        log_steps(second, 4, 6)
    assert held(second) == WHOLE
    assert second.client.get_run(second.run_id).data.params == {"lr": "0.1"}


def test_a_resumed_run_that_was_killed_in_an_outage_sends_what_it_had_logged(store, tmp_path):
    killed, _ = run_in(store, tmp_path)
    end = lock(store)
    log_steps(killed, 0, 4)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"metrics": [["a", 9')  # the kill came in the middle of a line
    end()
    resumed, _ = run_in(store, tmp_path, resume=killed.run_id)
    assert not resumed.new
    with resumed.running():
        log_steps(resumed, 4, 6)
    assert held(resumed) == WHOLE


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"columns": ["other"], "data": [[1]]}'])
def test_a_damaged_table_starts_anew(store, tmp_path, damage):
    tracker, _ = run_in(store, tmp_path)
    (tmp_path / "completions.json").write_text(damage)
    tracker.table([{"update": 1, "text": "a"}], "completions.json")
    tracker.table([{"update": 2, "text": "0123"}], "completions.json")
    assert tracker.flush()
    stored = tracker.client.download_artifacts(tracker.run_id, "completions.json", str(tmp_path / "store"))
    assert json.loads(Path(stored).read_text()) == {"columns": ["update", "text"], "data": [[1, "a"], [2, "0123"]]}


def test_a_refused_entry_and_a_lost_file_hold_up_nothing(store, tmp_path):
    tracker, messages = run_in(store, tmp_path)
    tracker.params({"lr": 1})
    tracker.params({"lr": 2})
    tracker.artifact(tmp_path / "absent")
    assert log_steps(tracker, 0, 6)
    assert held(tracker) == WHOLE
    assert any("refused" in message for message in messages)


def test_a_deleted_experiment_is_used_again(store, tmp_path):
    tracker, _ = run_in(store, tmp_path)
    client, experiment = open_store(store)
    client.delete_experiment(experiment)
    assert open_store(store)[1] == experiment
    assert log_steps(tracker, 0, 1)


def test_a_store_that_a_kill_left_half_made_is_made_again(store):
    Path(database(store)).unlink()
    Path(database(store)).with_name(f".mlflow.db.{1}").write_bytes(b"half")
    client, experiment = open_store(store)
    assert client.get_experiment(experiment).name == "bakeoff"


@pytest.mark.parametrize(
    "address",
    [
        *("http://me:{}@host:1/x", "postgresql://me:{}@host/db", "mysql+pymysql://u:{}@h:3306/d", "HTTPS://:{}@host"),
        *("http://h/?password={}", "postgresql:///db?host=h&sslpassword={}", "mssql+pyodbc://h/d?x=1;PWD={}"),
        *("https://h/mlflow?access_token={}", "host=h password={} user=me"),
    ],
)
def test_passwords_of_addresses_are_written_nowhere(address):
    for password in ("secret", "s:e@cret", "se/cret", "#cret", "%2Fcret", "cret" * 50):
        text = f"it is '{address.format(password)}', which fails"
        assert "cret" not in redacted(text), text
        assert "which fails" in redacted(text)


def test_an_address_that_does_not_answer_is_named_without_its_password(tmp_path):
    with pytest.raises(UserError, match=r"tracking.uri is 'http://me:\*\*\*@127.0.0.1:9'") as caught:
        start_run(Tracking(uri="http://me:secret@127.0.0.1:9"), "run", {}, tmp_path)
    assert "secret" not in str(caught.value)


def test_what_is_no_secret_stays():
    for text in (
        "postgresql://me@host/db",
        "http://127.0.0.1:5000/#/experiments/1",
        "eos_token=<|end|>",
        "a@b.c 1:2@3",
    ):
        assert redacted(text) == text
    assert redacted("https://hf_abc@host/x") == "https://***@host/x"


def test_a_file_that_waited_is_sent_from_where_the_runs_folder_is_now(store, tmp_path, monkeypatch):
    (first := tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path)
    tracker, _ = run_in(store, Path("first"))
    (first / "a.txt").write_text("a")
    end = lock(store)
    with tracker.running():
        tracker.artifact(Path("first/a.txt"), "kept")
        log_steps(tracker, 0, 6)
    end()
    first.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert send_unsent(store, tmp_path / "moved") == 0
    assert [each.path for each in tracker.client.list_artifacts(tracker.run_id, "kept")] == ["kept/a.txt"]
    assert held(tracker) == WHOLE


def test_a_strangers_log_sends_no_file_from_outside_of_its_folder(store, tmp_path):
    """Nor does it take the memory of the machine, nor end the run."""
    (tmp_path / "secret").write_text("secret")
    (folder := tmp_path / "run").mkdir()
    (folder / "in").mkdir()
    (folder / "in" / "link").symlink_to(tmp_path / "secret")
    tracker, _ = run_in(store, folder)
    paths = [str(tmp_path / "secret"), "../secret", "in", "in/link", "/", "/dev/zero", "\0"]
    entries = [{"artifact": [path, None]} for path in paths]
    entries += [{"metrics": points} for points in (1, "a", [1], [["a"]], [["a", "b", 1, 2]], [[1, 2.0, 3, 4]])]
    entries += [{"artifact": 1}, {"unknown": 1}, [1], 1, {"params": [1]}, {}]
    lines = [as_line(number, entry) for number, entry in enumerate(entries)]
    lines += [as_line(10**15, {"tags": {}}), as_line(-1, {"tags": {}}), as_line("x", {"tags": {}})]
    (folder / LOG).write_text("\n".join(lines) + "\n")
    again, _ = run_in(store, folder, resume=tracker.run_id)
    with again.running():
        again.metrics({"b": 1.0}, 1)
        again.flush(1)
        assert tracker.client.list_artifacts(tracker.run_id) == []
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_copy_of_a_folder_gets_a_run_of_its_own_and_a_moved_folder_keeps_its_run(store, tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    first, _ = run_in(store, original)
    log_steps(first, 0, 4)
    shutil.copytree(original, copied := tmp_path / "copied")
    of_copy, messages = run_in(store, copied, resume=first.run_id)
    log_steps(of_copy, 4, 6)
    assert of_copy.new
    assert f"the folder '{copied}' is a copy of '{original}'" in messages[0]
    assert (held(of_copy), held(first)) == (WHOLE, {key: value for key, value in WHOLE.items() if key[1] < 4})

    elsewhere = Tracking(uri=f"sqlite:///{database(store)}.copy")
    shutil.copy(database(store), f"{database(store)}.copy")
    of_copy, messages = run_in(elsewhere, copied, resume=first.run_id)
    assert (of_copy.new, messages) == (False, []), "the store was copied too, and has the run"

    original.rename(moved := tmp_path / "moved")
    of_moved, messages = run_in(store, moved, resume=first.run_id)
    assert (of_moved.run_id, messages) == (first.run_id, [])
    assert of_moved.client.get_run(of_moved.run_id).data.tags[tracking.FOLDER] == str(moved)
