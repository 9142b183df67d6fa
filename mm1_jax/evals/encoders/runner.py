"""Evaluates the encoder of a run, for `python -m mm1_jax evaluate_encoder`.

Several processes can evaluate one encoder together; the first of them writes the files.
"""

import hashlib
import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from mm1_jax.checkpoints.checkpoint_folder import checkpoints_of
from mm1_jax.checkpoints.trained_model import load_model, newest_step, placement_of, random_model
from mm1_jax.evals.encoders.attentive_probe import AttentiveProbe
from mm1_jax.evals.encoders.encoder_evaluator import EncoderEvaluator, EncoderInput, Report
from mm1_jax.evals.encoders.layouts import PictureFiles
from mm1_jax.evals.encoders.linear_probe import LinearProbe, ProbeFeatures
from mm1_jax.evals.encoders.pictures import Resize
from mm1_jax.evals.encoders.report import Row, markdown
from mm1_jax.evals.encoders.retrieval import Retrieval
from mm1_jax.evals.encoders.zero_shot import ZeroShot
from mm1_jax.launch.run_folder import load_experiment
from mm1_jax.multihost import distributed
from mm1_jax.multihost.agreement import agree, config_facts
from mm1_jax.overrides import apply_overrides
from mm1_jax.parallel.sharding import Placement, use_mesh
from mm1_jax.storage import write_whole
from mm1_jax.stored_config import flat_fields

PROBES = {"linear": LinearProbe, "attentive": AttentiveProbe}
MODEL, RANDOM, PIXELS = "model", "random", "pixels"


class Task:
    """An evaluator, and the model that it scores: trained, random, or none."""

    def __init__(self, key: str, evaluator: EncoderEvaluator, scored: str):
        self.key, self.evaluator, self.scored = key, evaluator, scored


def evaluate(flags: Namespace) -> dict[str, float]:
    """Evaluates the encoder of a run. Returns all scores by key.

    Raises:
        ValueError: A mistake that the user can fix, such as a wrong flag or a missing file.
    """
    folder = flags.checkpoint
    # If one process fails here, all must fail: the others would wait for it forever.
    with distributed.together():
        if not folder.is_dir():
            raise ValueError(f"--checkpoint={folder}: no such folder; give a run's output folder")
        cfg = load_experiment(folder)
        tasks = tasks_of(flags, cfg)
        step = newest_step(folder, cfg) if flags.step is None else flags.step
        identity: dict[str, Any] = {"step": step}
        manifest = checkpoints_of(folder) / str(step) / "manifest.json"
        if manifest.exists():
            identity["parameters"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    agree(
        {f"the checkpoint's {name}": value for name, value in identity.items()}
        | {f"data of {task.key}": task.evaluator.fingerprint() for task in tasks}
        | {
            f"{task.key}.{path}": value
            for task in tasks
            for path, value in config_facts(flat_fields(task.evaluator.config)).items()
        }
    )
    mesh = flags.mesh or (None if distributed.process_count() == 1 else "run")
    placement = None if mesh is None else placement_of(cfg, mesh)
    models = _Models(folder, cfg, step, placement, seed=flags.seed)
    output = flags.output or folder / "evaluation" / f"encoder_{step}"
    output.mkdir(parents=True, exist_ok=True)
    title = f"{folder.resolve().name}, step {step}"
    rows: list[Row] = []
    values: dict[str, float] = {}
    for task in tasks:
        start = time.monotonic()
        with use_mesh(placement and placement.mesh, placement and placement.rules):
            report = task.evaluator.report(models.get(task.scored))
        rows.append(_row(task, report))
        values = {key: x for row in rows for key, x in row.values().items()}
        if not distributed.is_first():
            continue
        print(f"{task.key}: {time.monotonic() - start:.1f} s", file=sys.stderr)
        # Rewritten after each evaluation, so that partial results can be read.
        text = markdown(rows, title=title)
        write_whole(output / "report.md", text)
        content = {
            "checkpoint": str(folder),
            **identity,
            "scores": values,
            "protocol": {row.key: row.protocol for row in rows},
        }
        write_whole(output / "report.json", json.dumps(content, indent=1) + "\n")
    if distributed.is_first():
        print(markdown(rows, title=title))
        print(f"{output / 'report.md'}", file=sys.stderr)
    return distributed.broadcast(values)


def _row(task: Task, report: Report) -> Row:
    data, protocol, *_ = task.key.split("/")
    return Row(
        data,
        protocol,
        task.scored,
        report,
        is_part=task.evaluator.config.num_pictures is not None,
    )


class _Models:
    """Loads the models that tasks score, each once."""

    def __init__(self, folder: Path, cfg: Any, step: Any, placement: Placement | None, seed: int):
        self._load = {
            MODEL: lambda: load_model(folder, cfg, step, placement=placement)[0],
            RANDOM: lambda: random_model(cfg, seed, placement=placement),
            PIXELS: lambda: None,
        }
        self._made: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        if name not in self._made:
            # Two models may not fit into memory.
            self._made = {name: self._load[name]()}
        return self._made[name]


def tasks_of(flags: Namespace, experiment: Any) -> list[Task]:
    """Builds all evaluators before the first one runs, so that mistakes surface early."""
    given = EncoderInput.of(experiment.input)
    has_text = hasattr(experiment.model.klass, "encode_text")
    own_probes = {} if flags.datasets else _own_probes(experiment)
    made: list[tuple[str, str, Any]] = []
    for name, source in _sources(flags, experiment).items():
        base = {"name": name, "data": source}
        if source.instantiate().has_captions:
            if not has_text:
                raise ValueError(
                    f"--datasets: {name} has captions, and the model of {flags.checkpoint} encodes "
                    "no text; give a data set with classes and --probe"
                )
            made.append((f"{name}/retrieval", MODEL, Retrieval.default_config().set(**base)))
            continue
        if has_text:
            made.append((f"{name}/zero_shot", MODEL, ZeroShot.default_config().set(**base)))
        probes = {kind: PROBES[kind].default_config().set(**base) for kind in flags.probe}
        for kind, probe in (probes | own_probes.get(name, {})).items():
            made.append((f"{name}/{kind}_probe", MODEL, probe))
            if RANDOM in flags.baselines:
                made.append((f"{name}/{kind}_probe/random", RANDOM, probe))
        if PIXELS in flags.baselines:
            probe = LinearProbe.default_config().set(features=ProbeFeatures.PIXELS, **base)
            made.append((f"{name}/linear_probe/pixels", PIXELS, probe))
    if not made:
        raise ValueError(
            f"--probe: the model of {flags.checkpoint} encodes no text, so only probes can score "
            "it; give --probe=linear or --probe=attentive"
        )
    return [
        Task(key, _with_flags(cfg, key, flags).instantiate(input=given), scored)
        for key, scored, cfg in made
    ]


def _sources(flags: Namespace, experiment: Any) -> dict[str, Any]:
    """Returns the configs of the data sets by name; those of the run's evals have its names."""
    own = {
        cfg.name: cfg.data
        for cfg in experiment.evals.values()
        if issubclass(cfg.klass, EncoderEvaluator)
    }
    if not flags.datasets:
        if not own:
            raise ValueError(
                "--datasets: required, as the run has no evaluators of encoders whose data could "
                "be used; give folders, such as --datasets=imagenet,coco"
            )
        return own
    found = {}
    for word in flags.datasets.split(","):
        name, equals, path = word.rpartition("=")
        if not equals and word in own:
            found[word] = own[word]
            continue
        name = name or Path(path).stem
        cfg = PictureFiles.default_config().set(
            path=path,
            class_names_file=flags.class_names,
            templates_file=flags.templates,
            key=name,
        )
        if not path or name in found or "/" in name:
            raise ValueError(
                f"--datasets={flags.datasets}: {word!r}: expected PATH or NAME=PATH, each name once"
            )
        found[name] = cfg
    return found


def _own_probes(experiment: Any) -> dict[str, dict[str, Any]]:
    """Returns the configs of the probes among the run's evaluators, by data set and kind."""
    found: dict[str, dict[str, Any]] = {}
    for cfg in experiment.evals.values():
        for kind, probe in PROBES.items():
            if cfg.klass is probe:
                found.setdefault(cfg.name, {})[kind] = cfg
    return found


def _with_flags(cfg: Any, key: str, flags: Namespace) -> Any:
    cfg = cfg.clone(seed=flags.seed)
    if flags.allow_bad_pictures:
        cfg.allow_bad_pictures = True
    if flags.resize is not None:
        cfg.preprocessing.resize = Resize(flags.resize)
    if flags.crop is not None:
        cfg.preprocessing.crop = flags.crop
    if flags.limit is not None:
        cfg.num_pictures = flags.limit
    if flags.batch_size is not None:
        cfg.batch_size = flags.batch_size
    kind = key.split("/")[1]
    for given in flags.set:
        path, equals, value = given.partition("=")
        own, _, field = path.partition(".")
        if not equals or not field or own not in ("zero_shot", "retrieval", *_PROBE_NAMES):
            names = ", ".join(("zero_shot", "retrieval", *_PROBE_NAMES))
            raise ValueError(f"--set={given}: expected NAME.FIELD=VALUE, NAME one of {names}")
        if own == kind:
            cfg = apply_overrides(cfg, {field: value}, types_from=cfg)
    return cfg


_PROBE_NAMES = tuple(f"{name}_probe" for name in PROBES)
