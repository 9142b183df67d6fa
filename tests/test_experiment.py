import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.mixtures import embedded
from experiments.pretrain import mm1_tiny
from experiments.sizes import language_model
from experiments.tiny_encoders import aim_tiny, clip_tiny
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    Required,
    config_class,
    is_derived,
    missing_fields,
)
from mm1_jax.data.chat_formats.hf import HFChatFormat
from mm1_jax.data.chat_formats.llava import LLaVAChatFormat
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources.array_record import ArrayRecordSource
from mm1_jax.data.tiling import Tiling
from mm1_jax.evals.benchmarks.families import question_benchmark
from mm1_jax.evals.prompts import ChatTask
from mm1_jax.evals.scoring.exact_match import accuracy
from mm1_jax.experiment import Experiment
from mm1_jax.launch.named_configs import named_configs
from mm1_jax.layers.moe import MoE
from mm1_jax.models.decoder import num_non_embedding_parameters
from mm1_jax.models.mm1 import MM1
from mm1_jax.stored_config import flat_fields
from mm1_jax.train.optimizers.learning_rate import mm1_learning_rate
from mm1_jax.train.trainer import Trainer


@pytest.fixture
def cfg():
    model = MM1.default_config()
    model.vision_encoder.set(
        image_size=24, patch_size=8, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
    )
    model.connector.num_image_tokens = 9
    model.decoder.set(model_dim=8, num_layers=2, num_heads=2, hidden_dim=16)
    return Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=[], batch_size=2, max_sequence_length=32, max_images=2
        ),
        trainer=Trainer.default_config().set(max_steps=30),
    )


def test_the_chat_format_is_chosen_once(cfg):
    """Documents, tasks and nested parts take it, unless they have one of their own."""
    source = ArrayRecordSource.default_config().set(path="chats")
    corpora = [
        Corpus.default_config().set(name=name, source=source, to_document=to_document)
        for name, to_document in (
            ("chats", ConversationDocument.default_config()),
            (
                "other",
                ConversationDocument.default_config().set(
                    chat_format=LLaVAChatFormat.default_config()
                ),
            ),
        )
    ]
    entries = [CorpusWeight().set(corpus=corpus, weight=1) for corpus in corpora]
    cfg.input.streams = [Stream.default_config().set(name="chats", corpora=entries)]
    cfg.evals = {"asked": question_benchmark("asked", source, accuracy)}
    cfg.evals["asked"].corpus.to_document = ChatTask.default_config()
    unset = Experiment.resolve(cfg)
    assert unset.evals["asked"].corpus.to_document.chat_format is None
    cfg.input.chat_format = HFChatFormat.default_config().set(folder="chat")
    resolved = Experiment.resolve(cfg.clone())
    mine, other = (e.corpus.to_document.chat_format for e in resolved.input.streams[0].corpora)
    asked = resolved.evals["asked"].corpus.to_document.chat_format
    assert mine == asked == resolved.input.chat_format
    assert mine.data_dir == cfg.input.data_dir
    assert other == LLaVAChatFormat.default_config()


def test_dependent_fields_are_filled_in(cfg):
    resolved = Experiment.resolve(cfg)
    tokenizer = cfg.input.tokenizer.instantiate()
    assert resolved.model.decoder.vocab_size == tokenizer.vocab_size
    assert resolved.model.image_token == tokenizer.image_token
    assert (resolved.input.num_image_tokens, resolved.input.image_size) == (9, 24)
    optimizer = resolved.trainer.optimizer
    num_parameters = num_non_embedding_parameters(cfg.model.decoder)
    assert optimizer.learning_rate == mm1_learning_rate(num_parameters)
    assert optimizer.decay_steps == 30


@pytest.mark.parametrize("name", ["mm1_tiny", "mm1_7b_moe", "llama2_7b", "mm1_tiny_easy_vqa"])
def test_all_filled_in_fields_are_marked_as_derived(name):
    cfg = named_configs()[name]()
    resolved = Experiment.resolve(cfg)
    before, after = flat_fields(cfg), flat_fields(resolved)
    derived: dict[str, bool] = {}

    def enter(path, value, children):
        if isinstance(value, ConfigBase):
            for field in value.keys():  # noqa: SIM118
                derived[f"{path}.{field}" if path else field] = is_derived(value, field)
        return children

    resolved.visit(lambda path, value: None, enter)
    filled = {path for path in after if after[path] != before.get(path)}
    assert filled and not before.keys() - after.keys()
    assert [path for path in sorted(filled) if not derived[path]] == []


def test_resolving_keeps_set_fields_and_its_argument(cfg):
    cfg.trainer.optimizer.set(learning_rate=0.5, decay_steps=7)
    before = cfg.clone()
    resolved = Experiment.resolve(cfg)
    assert cfg == before != resolved
    optimizer = resolved.trainer.optimizer
    assert (optimizer.learning_rate, optimizer.decay_steps) == (0.5, 7)
    assert Experiment.resolve(resolved) == resolved


@pytest.mark.parametrize(
    ("path", "value", "source"),
    [
        ("input.num_image_tokens", 4, "model.connector.num_image_tokens"),
        ("input.image_size", 32, "model.vision_encoder.image_size"),
        ("model.decoder.vocab_size", 10, "input.tokenizer"),
        ("model.image_token", 1, "input.tokenizer"),
    ],
)
def test_values_that_disagree_name_both_paths(cfg, path, value, source):
    cfg.set_recursively(path.split("."), value=value)
    with pytest.raises(ValueError, match=f"{path} is {value}, but {source} makes it"):
        Experiment.resolve(cfg)


def test_data_in_a_store_is_refused(cfg):
    cfg.input.data_dir = "gs://bucket/data"
    with pytest.raises(ValueError, match="input.data_dir=gs://bucket/data: expected a local path"):
        Experiment.resolve(cfg)
    cfg.input.data_dir = "data"
    cfg.trainer.checkpointer.location = "gs://bucket/checkpoints"
    cfg.trainer.initial_weights = {"decoder": InitialWeights.default_config().set(path="s3://a/b")}
    with pytest.raises(ValueError, match=r"initial_weights\['decoder'\].path=s3://a/b: "):
        Experiment.resolve(cfg)


def test_all_missing_fields_are_named_at_once(cfg):
    assert missing_fields(cfg) == []
    cfg.model.decoder.set(num_heads=REQUIRED, hidden_dim=REQUIRED, moe=MoE.default_config())
    cfg.model.vision_encoder.patch_size = REQUIRED
    cfg.trainer.max_steps = REQUIRED
    cfg.input.streams = [Stream.default_config()]
    with pytest.raises(ValueError, match="required fields are not set") as error:
        Experiment.resolve(cfg)
    paths = str(error.value).partition(": ")[2].partition(";")[0].split(", ")
    assert sorted(paths) == [
        "input.streams[0].corpora",
        "input.streams[0].name",
        "model.decoder.hidden_dim",
        "model.decoder.moe.num_experts",
        "model.decoder.num_heads",
        "model.vision_encoder.patch_size",
        "trainer.max_steps",
    ]


@pytest.mark.parametrize(("name", "value"), [("num_heads", 0), ("num_kv_heads", -1)])
def test_a_size_that_is_not_positive_is_named(cfg, name, value):
    cfg.model.decoder.set(**{name: value})
    with pytest.raises(ValueError, match=f"model.decoder.{name}={value}: expected at least 1"):
        Experiment.resolve(cfg)


# Overrides for a small `mm1_tiny`: most corpora are left out, the others are short.
SMALL = [
    "--config.input.streams.0.weight=0",
    "--config.input.streams.1.weight=0",
    "--config.input.streams.2.corpora.0.corpus.source.num_records=8",
    "--config.input.streams.2.corpora.1.corpus.source.num_records=8",
]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_step=1", "did you mean trainer.max_steps?"),
        ("model.decoder.num_heads=0", "model.decoder.num_heads=0: expected at least 1"),
        ("model.connector.num_image_tokens=5", "num_image_tokens"),
        ("model.vision_encoder.patch_size=7", "patch_size"),
        ("model.vision_encoder.num_heads=5", "num_heads"),
        ("trainer.optimizer.warmup_steps=9000", "optimizer.warmup_steps=9000"),
    ],
)
def test_an_invalid_config_is_an_error_before_devices_are_used(tmp_path, override, said):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mm1_jax.launch", "--config=mm1_tiny"),
            *(f"--output_dir={tmp_path}", *SMALL, f"--config.{override}"),
        ],
        cwd=Path(__file__).parent.parent,
        # No such device exists, so touching any would raise another error.
        env=os.environ | {"JAX_PLATFORMS": "nonexistent"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert "nonexistent" not in result.stderr and "Traceback" not in result.stderr


class FakePart(Configurable):
    """Keeps the arguments that an input, an evaluator or a trainer is built with."""

    takes_objective = False

    @config_class
    class Config(Configurable.Config):
        name: Required[str] = REQUIRED
        max_sequence_length: int = 32  # A field of inputs.
        max_steps: int = 7  # A field of trainers.

    def __init__(self, cfg: Config, **runtime):
        super().__init__(cfg)
        self.runtime = runtime

    def run(self):
        return self.config.name


class FakeLoss(FakePart):
    """An evaluator that is built with the objective, too."""

    takes_objective = True

    @config_class
    class Config(FakePart.Config):
        pass


def test_an_experiment_assembles_its_parts(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "resolve", staticmethod(lambda cfg: cfg))
    # There is nothing to check in fakes.
    for name in ("check", "check_parts"):
        monkeypatch.setattr(Experiment, name, staticmethod(lambda *parts: None))
    objective = staticmethod(lambda cfg: ("objective", cfg.model))
    monkeypatch.setattr(Experiment, "objective", objective)
    part = FakePart.default_config()
    # Set here, as resolving would do.
    cfg.model.decoder.vocab_size = 64
    cfg.set(
        input=part.clone(name="input"),
        evals={
            "digits": part.clone(name="digits"),
            "loss": FakeLoss.default_config().set(name="loss"),
        },
        trainer=part.clone(name="trainer"),
    )
    experiment = cfg.instantiate(output_dir=tmp_path)
    trainer = experiment.trainer.runtime
    assert trainer["input"] is experiment.input and trainer["output_dir"] == tmp_path
    assert trainer["objective"] == ("objective", cfg.model)
    assert list(trainer["evaluators"]) == ["digits", "loss"]
    assert trainer["evaluators"]["digits"].runtime == {"input": experiment.input}
    assert trainer["evaluators"]["loss"].runtime == {
        "input": experiment.input,
        "objective": trainer["objective"],
    }
    assert experiment.input.runtime["split"] == "train"
    assert experiment.input.runtime["num_steps"] == 7
    assert experiment.input.runtime["quarantine_path"].parent == tmp_path
    assert experiment.run() == "trainer"


def test_an_experiment_without_a_model_names_the_missing_part(tmp_path):
    with pytest.raises(ValueError, match="input, model, trainer"):
        Experiment.default_config().instantiate(output_dir=tmp_path)


def test_a_model_without_an_encoder_is_trained_on_text(tmp_path, with_few_records):
    """Launches train text-only models, too: batches without pictures, on eight devices."""
    cfg = mm1_tiny()
    cfg.model = language_model(cfg.model.decoder.set(num_layers=1))
    cfg.input.set(streams=embedded()[2:], max_images=0, max_sequence_length=64)
    with_few_records(cfg.input.streams)
    cfg.trainer.set(max_steps=2)
    cfg.trainer.optimizer.warmup_steps = 1
    cfg.evals = {"held_out_loss": cfg.evals["held_out_loss"].clone()}
    cfg.evals["held_out_loss"].run.n = 2
    cfg.instantiate(output_dir=tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["images"] == 0 and line["loss"] > 0 for line in lines)


def test_images_and_a_text_only_model_are_an_error(cfg, tmp_path, with_few_records):
    cfg.model.set(vision_encoder=None, connector=None)
    with pytest.raises(ValueError, match="input.max_images is 2.*model.vision_encoder=None"):
        Experiment.resolve(cfg)
    cfg.model.connector = mm1_tiny().model.connector
    with pytest.raises(ValueError, match="model.vision_encoder is None: set both"):
        Experiment.resolve(cfg)
    cfg = mm1_tiny()
    cfg.model = language_model(cfg.model.decoder)
    cfg.input.set(streams=embedded()[2:], max_images=0)
    tiling = Tiling.default_config().set(rule=FixedGrid.default_config())
    with pytest.raises(ValueError, match="input.tiling: the model reads no images"):
        Experiment.resolve(cfg.clone(input=cfg.input.clone(tiling=tiling)))
    with_few_records(cfg.input.streams)
    with pytest.raises(ValueError, match="benchmark 'digits_vqa' shows images.*reads none"):
        cfg.instantiate(output_dir=tmp_path)


def _parts(cfg, *metrics):
    """Makes an input without a snapshot, and evaluators with these metrics, for `check_parts`."""
    tokenizer = SimpleNamespace(
        vocab_size=cfg.model.decoder.vocab_size, image_token=cfg.model.image_token
    )
    evaluators = {
        str(i): SimpleNamespace(metric_names=lambda names=names: names)
        for i, names in enumerate(metrics)
    }
    return SimpleNamespace(tokenizer=tokenizer, snapshot=None), evaluators


def test_an_unknown_metric_is_named_with_similar_ones(cfg):
    cfg = Experiment.resolve(cfg)
    cfg.trainer.checkpointer.best_metric = "digits_vqa/0/acuracy"
    known = ["digits_vqa/0/accuracy", "held_out_loss/0/text"]
    with pytest.raises(ValueError, match="no evaluator reports it, expected one of digits_vqa/0/a"):
        Experiment.check_parts(cfg, *_parts(cfg, known))
    with pytest.raises(ValueError, match="expected None, as there are no evals"):
        Experiment.check_parts(cfg, *_parts(cfg))
    # An evaluator that does not name its metrics may report any.
    Experiment.check_parts(cfg, *_parts(cfg, known, None))
    cfg.trainer.checkpointer.best_metric = known[0]
    Experiment.check_parts(cfg, *_parts(cfg, known))


def test_a_snapshot_that_ends_before_the_training_is_refused(cfg):
    cfg = Experiment.resolve(cfg)
    input, evaluators = _parts(cfg)
    input.snapshot = SimpleNamespace(folder="rows", num_steps=29)
    with pytest.raises(ValueError, match="'rows' has 29 steps, and trainer.max_steps is 30"):
        Experiment.check_parts(cfg, input, evaluators)
    input.snapshot.num_steps = 30
    Experiment.check_parts(cfg, input, evaluators)


def test_a_tokenizer_must_match_its_vocabulary(cfg):
    cfg = Experiment.resolve(cfg)
    input, evaluators = _parts(cfg)
    input.tokenizer.vocab_size = 64
    with pytest.raises(ValueError, match="has vocab_size=64, and its `vocabulary` says 704"):
        Experiment.check_parts(cfg, input, evaluators)


@pytest.mark.parametrize(("make", "loss"), [(clip_tiny, "SoftmaxLoss"), (aim_tiny, "AIMLoss")])
def test_vision_encoders_are_not_trained_on_packed_rows(make, loss):
    cfg = make()
    cfg.input = mm1_tiny().input
    with pytest.raises(ValueError, match=f"packs rows, and trainer.loss={loss} .*a PairInput"):
        Experiment.resolve(cfg)


@pytest.mark.parametrize("make", [clip_tiny, aim_tiny])
def test_a_law_for_decoders_gives_no_learning_rate_of_vision_encoders(make):
    cfg = make()
    cfg.trainer.optimizer.learning_rate_law = "law.json"
    with pytest.raises(ValueError, match="learning_rate_law=law.json: a law is by the size of a"):
        Experiment.resolve(cfg)
