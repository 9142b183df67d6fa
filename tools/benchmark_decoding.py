"""Benchmarks greedy decoding against transformers' `generate`, with equal weights and prompts.

    python tools/benchmark_decoding.py

Both run in this process by turns, on the same number of threads, and no answer ends early. Weights
are random, and reach transformers by the export that users run. Another summation order may swap
nearly equal logits, so wherever answers differ, the gap between the top two logits is printed.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole

VOCAB_SIZE = 32_000
# No logit has this id, so it ends no answer early.
NO_TOKEN = -1
EPILOG = """\
columns:
  prefill   seconds until the first token of every row
  decode    tokens per second after that: (new tokens - 1) x rows / (whole - prefill)
  whole     new tokens per second of the whole call, including prefill
  CPU       seconds of CPU time of the whole call, on all threads; least disturbed by other load on
            the machine, though threads that spin while they wait count as well
  speed-up  of ours over transformers'

example:
  python tools/benchmark_decoding.py --size=85m --batch_sizes=1,16 --json=decoding.json
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_decoding.py",
        description="Benchmarks greedy decoding against transformers' generate, on the CPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="85m", help="size of the decoder; default: %(default)s")
    parser.add_argument(
        "--batch_sizes", default="1,16", metavar="B[,B]", help="default: %(default)s"
    )
    for name, default, text in (
        ("prompt_length", 512, "tokens of each prompt"),
        ("new_tokens", 128, "tokens to generate"),
        ("repeats", 5, "turns, of which the median is printed"),
        ("threads", 2, "threads of each"),
    ):
        help = f"{text}; default: %(default)s"
        parser.add_argument(f"--{name}", type=whole(), default=default, metavar="N", help=help)
    parser.add_argument(
        "--cache_dtype",
        help="float32, bfloat16 or int8, for ours only; default: the model's, float32",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the figures to this file"
    )
    flags = parser.parse_args(arguments)
    if flags.new_tokens < 2:
        parser.error(
            f"--new_tokens={flags.new_tokens}: must be at least 2, to time tokens after the first"
        )
    sizes = flags.batch_sizes.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        parser.error(f"--batch_sizes={flags.batch_sizes}: expected numbers of rows, such as 1,16")
    flags.batch_sizes = [int(size) for size in sizes]
    return flags


def models(flags: argparse.Namespace) -> tuple[Any, Any]:
    """Returns our model and transformers', with the same random weights."""
    import jax
    import numpy as np
    from flax import nnx
    from transformers import LlamaForCausalLM

    from experiments.sizes import DECODERS, decoder
    from mm1_jax.interop.convert import export_params
    from mm1_jax.interop.llama import hf_config
    from mm1_jax.interop.llama_tensors import decoder_entries
    from mm1_jax.models.mm1 import MM1

    if flags.size not in DECODERS:
        raise ValueError(f"--size={flags.size}: expected one of {', '.join(DECODERS)}")
    cfg = MM1.default_config().set(
        vision_encoder=None,
        connector=None,
        decoder=decoder(flags.size).set(vocab_size=VOCAB_SIZE),
        image_token=VOCAB_SIZE - 1,
    )
    ours = jax.jit(lambda key: cfg.instantiate(rngs=nnx.Rngs(params=key)))(jax.random.key(0))
    params = {
        "/".join(map(str, path)): np.asarray(variable.get_value())
        for path, variable in nnx.to_flat_state(nnx.state(ours))
    }
    with tempfile.TemporaryDirectory() as folder:
        entries = decoder_entries(cfg.decoder)
        export_params(
            entries, lambda path, index: params[path][index], Path(folder), dtype=np.dtype("f4")
        )
        Path(folder, "config.json").write_text(json.dumps(hf_config(cfg.decoder)))
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype="float32").eval()
    return ours, theirs


def measure(flags: argparse.Namespace, ours: Any, theirs: Any, batch_size: int) -> dict[str, Any]:
    """Returns the figures of one batch size."""
    import numpy as np
    import torch

    from mm1_jax.decoding.generate import generate
    from mm1_jax.decoding.options import DecodingOptions
    from mm1_jax.interop.compare import one_document_rows

    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB_SIZE - 2, (batch_size, flags.prompt_length)).astype(np.int32)
    no_images = np.zeros((batch_size, 1, 1, 3), np.uint8)
    batch, prompts = one_document_rows(tokens, no_images), torch.from_numpy(tokens).long()
    # Both models suppress these ids, so no answer ends early.
    pad, eos = 0, VOCAB_SIZE - 1

    def run_ours(number: int) -> np.ndarray:
        answers = generate(
            ours,
            batch,
            DecodingOptions(
                number,
                eos=NO_TOKEN,
                pad=pad,
                forbidden=(eos,),
                cache_dtype=flags.cache_dtype,
            ),
        )
        return np.asarray(answers)

    def run_theirs(number: int) -> np.ndarray:
        with torch.inference_mode():
            answers = theirs.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=number,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=pad,
                suppress_tokens=[pad, eos],
            )
        return answers[:, flags.prompt_length :].numpy()

    ways = {"ours": run_ours, "transformers": run_theirs}
    # Warm-up: ours compiles for each number of tokens, torch prepares once for any.
    for number in (1, flags.new_tokens):
        run_ours(number)
    run_theirs(2)
    answers: dict[str, np.ndarray] = {}
    times: dict[tuple[str, int], list[float]] = {}
    cpu_times: dict[str, list[float]] = {}
    for _ in range(flags.repeats):
        for number in (1, flags.new_tokens):
            for name, run in ways.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                answers[name] = run(number)
                times.setdefault((name, number), []).append(time.perf_counter() - start)
                cpu_times.setdefault(name, []).append(time.process_time() - cpu_start)
    figures: dict[str, Any] = {"batch_size": batch_size}
    for name in ways:
        prefill = statistics.median(times[name, 1])
        whole = statistics.median(times[name, flags.new_tokens])
        # Other load on the machine may delay the prefill by more than the rest takes.
        rest = whole - prefill if whole > prefill else math.nan
        figures[name] = {
            "prefill_seconds": prefill,
            "decode_tokens_per_second": (flags.new_tokens - 1) * batch_size / rest,
            "whole_tokens_per_second": flags.new_tokens * batch_size / whole,
            # Each turn adds two times: of the prefill, then of the whole call.
            "cpu_seconds": statistics.median(cpu_times[name][1::2]),
        }
    figures["differences"] = differences(theirs, prompts, *answers.values())
    return figures


def differences(theirs: Any, prompts: Any, ours: Any, others: Any) -> list[dict[str, Any]]:
    """Returns where each differing row first differs, and the gap of the top two logits there."""
    import numpy as np
    import torch

    found = []
    for row in np.flatnonzero((ours != others).any(axis=1)):
        step = int(np.argmax(ours[row] != others[row]))
        read = torch.cat([prompts[row], torch.from_numpy(others[row, :step])])
        with torch.inference_mode():
            best = theirs(read[None]).logits[0, -1].topk(2).values
        found.append({"row": int(row), "step": step, "gap": float(best[0] - best[1])})
    return found


def lines(figures: dict[str, Any]) -> list[str]:
    columns = {
        "prefill": "prefill_seconds",
        "decode": "decode_tokens_per_second",
        "whole": "whole_tokens_per_second",
        "CPU": "cpu_seconds",
    }
    shown = [f"batch of {figures['batch_size']:<5}" + "".join(f"{name:>10}" for name in columns)]
    for name in ("ours", "transformers"):
        values = "".join(f"{figures[name][key]:>10.2f}" for key in columns.values())
        shown.append(f"  {name:<12}" + values)
    ours, theirs = figures["ours"], figures["transformers"]
    ratios = [
        theirs[key] / ours[key] if key.endswith("_seconds") else ours[key] / theirs[key]
        for key in columns.values()
    ]
    shown.append(f"  {'speed-up':<12}" + "".join(f"{ratio:>10.2f}" for ratio in ratios))
    found = figures["differences"]
    shown.append(f"  rows that differ: {len(found)}")
    for one in found:
        shown.append(
            f"    row {one['row']}, first at step {one['step']}, where the top two logits are "
            f"{one['gap']:.2g} apart"
        )
    return shown


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # XLA starts a thread for each core that the process may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(f"{error}; pip install torch transformers") from error
    torch.set_num_threads(flags.threads)
    transformers.utils.logging.set_verbosity_error()
    ours, theirs = models(flags)
    figures = []
    for batch_size in flags.batch_sizes:
        figures.append(measure(flags, ours, theirs, batch_size))
        print("\n".join(lines(figures[-1])), flush=True)
    if flags.json is not None:
        from mm1_jax.storage import write_whole

        write_whole(flags.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
