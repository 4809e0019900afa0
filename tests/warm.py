"""What every command would do again: the process behind `tests/commands.py` imports this once, before it forks.

It imports what a run imports late, lets libraries build their tables, and takes all that out of the garbage collector,
which would otherwise copy the memory of each fork to look through it.
"""

import gc
import importlib

from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from sqlalchemy.orm import configure_mappers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import bakeoff.command  # noqa: F401  it registers the schema
from bakeoff.validation import compose

for name in (
    *("bakeoff.job", "bakeoff.sweep", "bakeoff.predict_command", "bakeoff.reward_model", "bakeoff.model.cache"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_workspace_store"),
    *("transformers.models.llama.modeling_llama", "alembic.command", "sqlalchemy.dialects.sqlite"),
    *("pyarrow.pandas_compat", "torch.profiler._cupti_monitor"),
):
    importlib.import_module(name)
configure_mappers()
get_checkpoint_conversion_mapping("llama")  # a thousand regular expressions, which saving a model asks for
Plugins.instance()
compose(["++model.architecture.num_hidden_layers=1"])  # parsers remember what they have seen, and a check its model
GlobalHydra.instance().clear()
gc.collect()
gc.freeze()
