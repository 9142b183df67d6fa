"""Imports checkpoints of other projects to start runs from; exports models for transformers.

    python -m mm1_jax convert_checkpoint import --source=Qwen3-1.7B --output=data/weights/qwen3_1p7b
    python -m mm1_jax convert_checkpoint export --checkpoint=runs/mm1_tiny --output=mm1_tiny_hf

A conversion ends by comparing outputs with those of the other implementation, and fails if they
differ.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path, local_text, number, whole

EPILOG = """\
import reads safetensors, in one file or in shards, of
  Llama, Mistral, Qwen 2 and 3, Mixtral     decoders, by their config.json
  CLIP, SigLIP                              vision encoders, alone or with their text towers
  open_clip                                 the same, by their open_clip_config.json
  AIM, AIMv2                                vision encoders, of transformers or apple/ml-aim
  LLaVA                                     encoder, connector and decoder
  PEFT (with --base)                        LoRA adapters, for trainer.initial_adapters
and writes a folder of weights for trainer.initial_weights. The tokenizer of a decoder or a text
tower is stored with them; the image token is added to it, and the embedding enlarged. Tensors that
the model has no place for (such as heads) are stored in the subfolder aside; with --vision_only,
everything of a CLIP but its vision tower is.

export writes a folder for transformers, open_clip or apple/ml-aim; --format chooses
  source     imported weights in their original format: every tensor bit for bit, and all files
  llava      a CLIP or SigLIP tower, an MLP over each patch, and a decoder of these families
  open_clip  a CLIP with its text tower, as open_clip_config.json and open_clip_model.safetensors
  mm1        an MM1, with the code that runs it (trust_remote_code=True)
  auto       a decoder alone as a Llama, Qwen or Mixtral; a CLIP as a CLIPModel or a SiglipModel,
             or else for open_clip; a tower alone as a CLIPVisionModel, SiglipVisionModel or
             Aimv2VisionModel, or for apple/ml-aim (AIM); an imported AIM or LLaVA as source; and
             every other MM1 as mm1

A CLIP is exported with its tokenizer and the settings of its processor. Runs of AIM and AIMv2 are
exported without the heads that only pre-training uses.

A run with LoRA is exported with its adapters merged into the kernels; --adapters=peft writes them
as a folder for PEFT, with everything that was trained beside them, and --adapters=base the model
without them.

If torch and transformers are installed (pip install 'mm1_jax[hf]'), logits for random tokens and
images are compared in float32; they may differ by 2e-5 of the largest. The comparison takes at most
--comparison_memory: larger decoders are compared in their first layers, and other larger models are
not compared, which the output says. The conversion takes twice the memory of the largest tensor and
some 800 MB.

examples:
  %(prog)s import --source=DFN5B-CLIP-ViT-H-14-378 \\
      --output=data/weights/dfn_vit_h14_378
  %(prog)s import --source=Meta-Llama-3-8B --output=data/weights/sparse \\
      --num_experts=8 --moe_every=2
  %(prog)s export --checkpoint=runs/mm1_7b --output=mm1_7b_hf \\
      --dtype=bfloat16
  %(prog)s export --checkpoint=runs/clip_vit_l14 --format=open_clip \\
      --output=clip_vit_l14
  %(prog)s export --checkpoint=data/weights/llava --format=source \\
      --output=llava_again
  %(prog)s export --checkpoint=runs/chat_lora --adapters=peft \\
      --output=chat_adapters
  %(prog)s import --source=chat_adapters --base=runs/mm1_7b \\
      --output=data/weights/chat_adapters

exit codes:
  0  done
  2  the command or the checkpoint must be changed; the message says how
"""
_GIB = 2**30


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("convert_checkpoint"),
        description="Imports checkpoints of other projects, and exports models for them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|export")

    importing = commands.add_parser(
        "import", help="checkpoint of another project -> folder of weights"
    )
    importing.add_argument(
        "--source",
        required=True,
        type=local_path,
        metavar="PATH",
        help="folder or file of the checkpoint",
    )
    importing.add_argument(
        "--tokenizer",
        type=local_text,
        metavar="PATH",
        help="tokenizer.model or tokenizer.json, or none; default: the one next to the decoder",
    )
    importing.add_argument(
        "--vocab_size", type=whole(), help="rows of the embedding (default: as many as needed)"
    )
    importing.add_argument(
        "--num_experts",
        type=whole(),
        help="upcycle: copy feed-forward layers into this many experts",
    )
    importing.add_argument(
        "--moe_every",
        type=whole(),
        default=1,
        help="upcycle every Nth layer (default: %(default)s)",
    )
    importing.add_argument(
        "--vision_only",
        action="store_true",
        help="import the vision tower of a CLIP without its text tower",
    )
    importing.add_argument(
        "--base",
        type=local_path,
        metavar="FOLDER",
        help="run or folder of weights that the adapters of a PEFT folder were trained on",
    )
    importing.add_argument(
        "--allow_pickle",
        action="store_true",
        help="also read files of torch.save, by torch.load(weights_only=True)",
    )

    exporting = commands.add_parser("export", help="trained model -> folder for other libraries")
    exporting.add_argument(
        "--checkpoint",
        required=True,
        type=local_path,
        metavar="FOLDER",
        help="output folder of a run, or folder of weights",
    )
    exporting.add_argument(
        "--step", type=whole(0), help="step of the checkpoint (default: the newest)"
    )
    exporting.add_argument(
        "--format",
        choices=("auto", "source", "llava", "open_clip", "mm1"),
        default="auto",
        help="see below (default: auto)",
    )
    exporting.add_argument(
        "--adapters",
        choices=("merge", "peft", "base"),
        help="of a run with LoRA: merge into the kernels (default), write alone, or leave out",
    )
    exporting.add_argument(
        "--base_name",
        default="",
        metavar="NAME",
        help="with --adapters=peft: exported base model that adapter_config.json names",
    )
    exporting.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the tensors (default: float32; --format=source keeps that of the source)",
    )
    exporting.add_argument(
        "--max_shard_gb",
        type=number(exclusive=True),
        default=5.0,
        help="most GB per file of tensors (default: %(default)s)",
    )
    exporting.add_argument(
        "--license", default="", metavar="NAME", help="license of the model, for its model card"
    )
    for each in (importing, exporting):
        each.add_argument(
            "--output", required=True, type=local_path, metavar="DIR", help="new folder"
        )
        each.add_argument("--skip_comparison", action="store_true", help="do not compare outputs")
        each.add_argument(
            "--comparison_memory",
            type=number(),
            default=16.0,
            metavar="GIB",
            help="most memory for the comparison; at most 0.8 of the free memory is used (default: "
            "%(default)s)",
        )
    return parser.parse_args(arguments)


def run_import(flags: argparse.Namespace) -> str:
    # Imported here, so that --help and errors in the options do not wait for jax.
    from mm1_jax.interop.clip import raise_if_texts_end_otherwise
    from mm1_jax.interop.families import Changes, image_token, num_rows, read_config
    from mm1_jax.interop.importer import import_checkpoint
    from mm1_jax.interop.tokenizers import ImportedTokenizer, import_tokenizer

    if flags.base is not None:
        return _import_adapters(flags)
    if (flags.source / "adapter_config.json").is_file():
        raise ValueError(
            f"{flags.source}: holds adapters of PEFT; name the run or the folder of weights that "
            "they were trained on by --base"
        )
    config = read_config(flags.source)
    rows, token = 0 if flags.vision_only else num_rows(config), image_token(config)
    tokenizer: ImportedTokenizer | None = None
    if flags.tokenizer not in (None, "none"):
        tokenizer = import_tokenizer(Path(flags.tokenizer), rows, token)
        if tokenizer is None:
            raise ValueError(f"--tokenizer={flags.tokenizer}: no such file")
    elif flags.tokenizer is None and rows:
        folder = flags.source if flags.source.is_dir() else flags.source.parent
        tokenizer = import_tokenizer(folder, rows, token)
    vocab_size, files, described = flags.vocab_size, {}, {}
    if tokenizer is not None:
        made: Any = tokenizer.cfg.instantiate()
        if rows:
            raise_if_texts_end_otherwise(config, made.eos, rows)
        vocab_size = max(vocab_size or 0, made.vocab_size, rows)
        files = tokenizer.files
        described["tokenizer"] = {
            "class": tokenizer.cfg.klass.__name__,
            "file": next(iter(files)),
            "vocab_size": vocab_size,
            "image_token": made.image_token,
        }
    imported = import_checkpoint(
        flags.source,
        flags.output,
        changes=Changes(
            vocab_size, flags.num_experts, flags.moe_every, vision_only=flags.vision_only
        ),
        allow_pickle=flags.allow_pickle,
        skip_comparison=flags.skip_comparison,
        comparison_bytes=int(flags.comparison_memory * _GIB),
        files=files,
        extra=described,
        watch=Display(),
    )
    peaks = ", ".join(f"{phase} with {n / _GIB:.2f}" for phase, n in imported.peaks.items())
    lines = [
        f"{flags.output}: {imported.num_parameters:,} parameters of {imported.num_tensors} "
        f"tensors; {imported.num_passthrough} more kept beside the weights",
        f"GiB of memory at most: {peaks}",
        _checked(imported),
        *(f"note: {note}" for note in (*imported.notes, *(tokenizer.notes if tokenizer else ()))),
    ]
    if tokenizer is not None:
        lines.append(
            f"tokenizer: {described['tokenizer']['class']} on {flags.output / next(iter(files))}, "
            f"image token {made.image_token}, {vocab_size} rows"
        )
    return "\n".join(lines)


def _import_adapters(flags: argparse.Namespace) -> str:
    from mm1_jax.checkpoints.weights_folder import StoredParams
    from mm1_jax.interop.exporter import parts_of_weights
    from mm1_jax.interop.mm1 import model_parts
    from mm1_jax.interop.peft_import import import_adapters
    from mm1_jax.launch.run_folder import load_experiment

    base = StoredParams(flags.base)
    if base.description is None:
        parts = model_parts(load_experiment(flags.base).model)
    else:
        parts = parts_of_weights(base)
    found = import_adapters(flags.source, flags.output, base=base, parts=parts)
    lines = [f"{flags.output}: {found.num_parameters:,} parameters; the model that reads them has"]
    for path, (rank, alpha) in found.layers.items():
        lines.append(f"  model.lora.adapters: {path}, rank {rank}, alpha {alpha:g}")
    if found.is_rank_stabilized:
        lines.append("  model.lora.rank_stabilized=True")
    if found.trained:
        lines.append(f"  model.lora.trained: {', '.join(found.trained)}")
    return "\n".join(lines)


def run_export(flags: argparse.Namespace) -> str:
    from mm1_jax.checkpoints.weights_folder import StoredParams
    from mm1_jax.data.input import chat_format, tiling_of
    from mm1_jax.interop import families
    from mm1_jax.interop.adapters import AdaptedModel, BaseParams, MergedParams, adapted_model
    from mm1_jax.interop.exporter import (
        Exported,
        ExportedTokenizer,
        export_mm1,
        export_native,
        export_source,
        facts_of_weights,
        parts_of_weights,
    )
    from mm1_jax.interop.model_card import model_card
    from mm1_jax.interop.native import (
        EncoderFacts,
        facts_of_run,
        native_llava,
        native_model,
        open_clip,
        parts_of_model,
    )
    from mm1_jax.interop.passthrough import Passthrough
    from mm1_jax.interop.peft import export_adapters
    from mm1_jax.interop.tokenizers import (
        export_text_tokenizer,
        export_tokenizer,
        stored_tokenizer,
    )
    from mm1_jax.launch.run_folder import load_experiment
    from mm1_jax.models.text_encoder import TextPooling

    stored = StoredParams(flags.checkpoint, flags.step)
    sizes = {
        "max_shard_bytes": int(flags.max_shard_gb * 1e9),
        "comparison_bytes": int(flags.comparison_memory * _GIB),
    }
    common = {**sizes, "skip_comparison": flags.skip_comparison, "watch": Display()}

    def report(exported: Exported) -> str:
        kind = f"{exported.num_parameters:,} parameters as a {exported.model_type}"
        return f"{flags.output}: {kind}\n{_checked(exported)}"

    needs_source = flags.format == "auto" and _needs_source_format(stored.description)
    if flags.format == "source" or needs_source:
        return report(export_source(stored, flags.checkpoint, flags.output, **common))
    fit, tiling, chat = "stretch", None, None
    adapted: AdaptedModel | None = None
    passthrough, facts = Passthrough(flags.checkpoint), EncoderFacts()
    if stored.description is None:
        cfg = load_experiment(flags.checkpoint)
        parts, image_token, tokenizer = parts_of_model(cfg.model), -1, None
        if "text_encoder" in parts:
            tokenizer = cfg.input.tokenizer.instantiate()
            facts = facts_of_run(cfg, tokenizer, flags.output.name)
        elif "decoder" in parts:
            image_token = cfg.model.image_token
            tokenizer = cfg.input.tokenizer.instantiate()
            fit, tiling = cfg.input.image_transform.fit.value, tiling_of(cfg.input)
            chat = chat_format(cfg.input, tokenizer)
            adapted = None if cfg.model.lora is None else adapted_model(cfg.model)
    else:
        parts = parts_of_weights(stored)
        tokenizer = stored_tokenizer(stored, flags.checkpoint)
        if "text_encoder" in parts:
            facts = facts_of_weights(stored, tokenizer, passthrough)
        own = families.image_token(stored.description["config"])
        image_token = -1 if own is None else own
        image_token = image_token if tokenizer is None else tokenizer.image_token
    if adapted is None and flags.adapters is not None:
        raise ValueError(f"--adapters={flags.adapters}: {flags.checkpoint} has no adapters")
    if adapted is not None:
        stored = MergedParams(flags.checkpoint, flags.step, adapted.layers)
        if flags.adapters == "base":
            stored = BaseParams(flags.checkpoint, flags.step)
    text: Any = parts.get("text_encoder")
    exported_tokenizer: ExportedTokenizer | None = None
    if tokenizer is not None and text is not None:
        padding = text.padding_token if text.pooling is TextPooling.LAST else None
        exported_tokenizer = export_text_tokenizer(
            tokenizer, max_length=text.max_length, padding_token=padding
        )
    elif tokenizer is not None and "decoder" in parts:
        exported_tokenizer = export_tokenizer(tokenizer, chat)
    options = {**common, "dtype": flags.dtype, "tokenizer": exported_tokenizer}
    if "decoder" not in parts and flags.format in ("llava", "mm1"):
        raise ValueError(
            f"--format={flags.format}: {flags.checkpoint} has no decoder; leave it out"
        )
    if text is None and flags.format == "open_clip":
        raise ValueError(f"--format=open_clip: {flags.checkpoint} has no text tower")
    if flags.format == "llava" and tiling is not None:
        raise ValueError("--format=llava: its processor shows no tiles; export as mm1")
    if flags.format == "llava":
        model = native_llava(parts, image_token)
    elif flags.format == "open_clip":
        model = open_clip(parts, facts)
    else:
        model = "" if flags.format == "mm1" else native_model(parts, passthrough.specs, facts)
    if isinstance(model, str) and "decoder" not in parts:
        raise ValueError(f"{flags.checkpoint}: {model}")
    if adapted is not None and flags.adapters == "peft":
        if flags.dtype != "float32":
            raise ValueError(f"--dtype={flags.dtype}: adapters are written in float32 only")
        return report(
            export_adapters(
                flags.checkpoint,
                flags.step,
                adapted,
                parts,
                flags.output,
                native=None if isinstance(model, str) else model,
                image_token=image_token,
                base=flags.base_name,
                skip_comparison=flags.skip_comparison,
                comparison_bytes=sizes["comparison_bytes"],
            )
        )
    options["model_card"] = model_card(
        flags.output.name,
        parts,
        library=None if isinstance(model, str) else model.library,
        license=flags.license,
        dtype=flags.dtype,
        is_chat=chat is not None,
    )
    if isinstance(model, str):
        exported = export_mm1(
            stored,
            parts,
            flags.output,
            image_token=image_token,
            fit=fit,
            tiling=None if tiling is None else tiling.exported(),
            **options,
        )
    else:
        exported = export_native(
            stored, model, parts, flags.output, passthrough=passthrough, **options
        )
    return report(exported)


def _needs_source_format(description: Mapping[str, Any] | None) -> bool:
    """Returns whether imported weights can only be exported in the format of their source."""
    if description is None or description["changes"]["num_experts"] is not None:
        return False
    config = description["config"]
    # apple/ml-aim has this model type for a layout of its own.
    is_original = config["model_type"] == "aimv2" and "hidden_size" in config
    return is_original or config["model_type"] in ("aim", "llava")


def _checked(result: Any) -> str:
    if result.comparison is None:
        return f"Logits were not compared: {result.not_compared}. Names and shapes fit."
    return f"Good. {result.comparison}"


class Display:
    """Prints how much is written, at most every ten seconds."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._bytes = 0

    def __call__(self, name: str, size: int) -> None:
        self._bytes += size
        now = time.monotonic()
        if now - self._last > 10:
            self._last = now
            print(
                f"{self._bytes / _GIB:.1f} GiB, {self._bytes / _GIB / (now - self._start):.2f} "
                f"GiB/s: {name}",
                file=sys.stderr,
                flush=True,
            )


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    start = time.monotonic()
    print((run_import if flags.command == "import" else run_export)(flags))
    seconds = time.monotonic() - start
    from mm1_jax.host_memory import peak_bytes

    print(f"{seconds:.0f} s; {peak_bytes() / _GIB:.2f} GiB of memory at most, checks included")
    return 0
