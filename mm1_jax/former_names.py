"""Imports of moved modules by their former names, for code outside of this repository."""

import importlib
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

MOVED = {
    "mm1_jax.agreement": "mm1_jax.multihost.agreement",
    "mm1_jax.checkpoint_folder": "mm1_jax.checkpoints.checkpoint_folder",
    "mm1_jax.chips": "mm1_jax.parallel.chips",
    "mm1_jax.cluster": "mm1_jax.multihost.cluster",
    "mm1_jax.data.hf_tokenizer": "mm1_jax.data.tokenizers.hf",
    "mm1_jax.data.ingest.formats.compressed": "mm1_jax.data.readers.compressed",
    "mm1_jax.data.ingest.formats.image_files": "mm1_jax.data.readers.image_files",
    "mm1_jax.data.ingest.formats.json_files": "mm1_jax.data.readers.json_files",
    "mm1_jax.data.ingest.formats.markup": "mm1_jax.data.readers.markup",
    "mm1_jax.data.ingest.formats.parquet": "mm1_jax.data.readers.parquet",
    "mm1_jax.data.ingest.formats.source_files": "mm1_jax.data.readers.source_files",
    "mm1_jax.data.ingest.formats.tar": "mm1_jax.data.readers.tar",
    "mm1_jax.data.ingest.formats.url_index": "mm1_jax.data.readers.url_index",
    "mm1_jax.data.parquet_source": "mm1_jax.data.sources.parquet",
    "mm1_jax.data.seqio_tokenizer": "mm1_jax.data.tokenizers.seqio",
    "mm1_jax.data.tfds_source": "mm1_jax.data.sources.tfds",
    "mm1_jax.data.tokenizer": "mm1_jax.data.tokenizers.sentencepiece",
    "mm1_jax.data.webdataset_source": "mm1_jax.data.sources.webdataset",
    "mm1_jax.distributed": "mm1_jax.multihost.distributed",
    "mm1_jax.evals.predictions.records": "mm1_jax.evals.predictions.entries",
    "mm1_jax.files": "mm1_jax.storage",
    "mm1_jax.generate": "mm1_jax.decoding.generate",
    "mm1_jax.interop.aside": "mm1_jax.interop.passthrough",
    "mm1_jax.layers.saved_names": "mm1_jax.parallel.rematerialisation",
    "mm1_jax.lmms_eval_model": "mm1_jax.evals.adapters.lmms_eval",
    "mm1_jax.named_configs": "mm1_jax.launch.named_configs",
    "mm1_jax.parallelism": "mm1_jax.parallel.parallelism",
    "mm1_jax.rendezvous": "mm1_jax.multihost.rendezvous",
    "mm1_jax.run_folder": "mm1_jax.launch.run_folder",
    "mm1_jax.sharding": "mm1_jax.parallel.sharding",
    "mm1_jax.supervisor": "mm1_jax.launch.supervisor",
    "mm1_jax.train.anomalies": "mm1_jax.train.guards.anomalies",
    "mm1_jax.train.checkpoint": "mm1_jax.checkpoints.checkpointer",
    "mm1_jax.train.commit_barrier": "mm1_jax.checkpoints.commit_barrier",
    "mm1_jax.train.corruption": "mm1_jax.train.guards.corruption",
    "mm1_jax.train.goodput": "mm1_jax.train.logs.goodput",
    "mm1_jax.train.initial_weights": "mm1_jax.checkpoints.initial_weights",
    "mm1_jax.train.json_lines": "mm1_jax.train.logs.json_lines",
    "mm1_jax.train.manifest": "mm1_jax.checkpoints.manifest",
    "mm1_jax.train.parameter_paths": "mm1_jax.layers.parameter_paths",
    "mm1_jax.train.profile": "mm1_jax.train.logs.profile",
    "mm1_jax.train.progress": "mm1_jax.train.logs.progress",
    "mm1_jax.train.report": "mm1_jax.train.logs.report",
    "mm1_jax.train.run_log": "mm1_jax.train.logs.run_log",
    "mm1_jax.train.sample_pictures": "mm1_jax.train.logs.sample_pictures",
    "mm1_jax.train.stop": "mm1_jax.train.guards.stop",
    "mm1_jax.train.summaries": "mm1_jax.train.logs.summaries",
    "mm1_jax.train.utilisation": "mm1_jax.train.logs.utilisation",
    "mm1_jax.train.wandb_run": "mm1_jax.train.logs.wandb_run",
    "mm1_jax.train.watchdog": "mm1_jax.train.guards.watchdog",
    "mm1_jax.trained_model": "mm1_jax.checkpoints.trained_model",
    "mm1_jax.weights_folder": "mm1_jax.checkpoints.weights_folder",
}


class FormerNames:
    """Loads a moved module by its former name, with a warning; the last finder in sys.meta_path."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        loader: Any = self
        return importlib.machinery.ModuleSpec(name, loader) if name in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        present = MOVED[spec.name]
        warnings.warn(f"{spec.name} has moved to {present}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(present)
        # The import system will overwrite the spec with that of the former name.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        former: Any = module.__spec__
        module.__spec__ = former.loader_state


def install() -> None:
    """Adds the finder to sys.meta_path, once."""
    if not any(isinstance(each, FormerNames) for each in sys.meta_path):
        sys.meta_path.append(FormerNames())
