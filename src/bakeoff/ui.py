"""Addresses in the MLflow UI: of a run, and of the curves of many, a line for each arm."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from urllib.parse import urlencode

from mlflow import MlflowClient

from bakeoff.errors import redacted
from bakeoff.mlflow_store import SQLITE, Tracking, open_store, store_uri

LOCAL_UI = "http://127.0.0.1:5000"  # where `make ui` and `mlflow ui` answer, unless they are given another port
BY_ARM = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}  # as the UI reads it
CURVES = "eval/greedy_accuracy|reward/mean|kl/reference_k3_per_sequence|memory/peak_mb"  # that its charts show first


def ui_page(uri: str, path: str, **query: str) -> str:
    """Address in the MLflow UI of a page below its experiments; a store in a file has the UI that `make ui` starts.

    MLflow 3 opens an experiment on traces of applications, unless its address says that models are trained in it.
    """
    server = redacted(uri).rstrip("/") if uri.startswith("http") else LOCAL_UI
    return f"{server}/#/experiments/{path}?{urlencode({'workflowType': 'machine_learning', **query})}"


def curves_page(client: MlflowClient, uri: str, experiment: str, key: str, runs: str = "") -> str:
    """Address of the curves of an experiment, or of those of its runs that a filter names; `key` names that view."""
    state = {"groupBy": BY_ARM, "chartsSearchFilter": CURVES} | ({"searchFilter": runs} if runs else {})
    with suppress(Exception):  # whatever the store is made of: the view is a convenience
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", json.dumps(state))
    return ui_page(uri, f"{experiment}/runs", viewStateShareKey=key, compareRunsMode="CHART")


def main() -> None:
    """Prints where the MLflow UI, on the port of the argument, shows the runs of this folder and their curves."""
    port = sys.argv[1] if len(sys.argv) > 1 else "5000"
    tracking = Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI", f"{SQLITE}mlflow.db"))
    client, experiment = open_store(tracking)
    uri = store_uri(tracking)
    runs, curves = ui_page(uri, f"{experiment}/runs"), curves_page(client, uri, experiment, "arms")
    print(f"runs:   {runs}\ncurves: {curves}".replace(":5000/", f":{port}/"), flush=True)


if __name__ == "__main__":
    main()
