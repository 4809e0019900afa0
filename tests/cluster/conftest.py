"""The study as the local launcher runs it, for every test of a session."""

from pathlib import Path

import pytest

from tests.cluster.study import STUDY, done


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder in which the local launcher has run the study."""
    cwd = tmp_path_factory.mktemp("local")
    done(cwd, "bakeoff", *STUDY, "hydra/launcher=two_jobs")
    return cwd
