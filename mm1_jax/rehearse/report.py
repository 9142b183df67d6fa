"""Reports of rehearsals, as plain data for JSON and as text for the terminal.

A report is a dict with the parts below. Parts that are unknown are missing, if only HLO text is
given or the program does not fit. Bytes and seconds are per device and step.

    config, overrides, topology, num_chips, num_devices, mesh, parallelism
    memory        arguments, temporaries, outputs, aliased, code, total, peak, hbm, free, fits
    flops         model, executed, ratio, low: those of executed with 8-bit operands, by their
                  type; over all devices
    collectives   kind -> count in the text, executions, bytes sent
    host_copies   the same for copies to and from the host's memory
    parts         part of the model -> seconds of its compute, executed FLOPs over all devices
    step          seconds of matrix, vector, kernel, transfer (hidden or not), exposed, total
    mfu           model FLOPs / FLOPs of all chips at their peak during the predicted step
    predictor     version of the model of step times; 1 if missing
    alternatives  other assumption -> total seconds of the step under it
    earlier       older version of the predictor -> total seconds of the step by it
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mm1_jax.parallel.chips import GIB
from mm1_jax.parallel.device_memory import bytes_text
from mm1_jax.rehearse.links import Places, places_in
from mm1_jax.rehearse.predict import (
    ALTERNATIVES,
    KERNEL_EFFICIENCY,
    PREDICTOR,
    Traffic,
    costs_by_part,
    flops,
    low_flops,
    predict,
    traffic,
)
from mm1_jax.rehearse.program import HloProgram
from mm1_jax.rehearse.topologies import Topology
from mm1_jax.rehearse.transfers import Route

# Share of memory that should stay free for fragmentation and the runtime itself.
FREE_SHARE = 0.05
# Parts of the model with a smaller share of the step are not shown.
_LEAST_SHOWN = 0.005


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs that the model needs per step, and the number of images counted."""

    total: float
    num_images: float | None = None


def program_report(
    text: str, topology: Topology, model: ModelFlops | None, places: Places | None = None
) -> dict[str, Any]:
    """Returns the parts of a report that follow from a program's HLO text alone.

    Args:
        places: Places of the program's devices; defaults to those that its text names.

    Raises:
        ValueError: The text is not HLO, or was compiled for another number of devices.
    """
    program = HloProgram.parse(text)
    # The program for several slices is the program of one slice.
    expected = topology.num_devices // topology.num_slices
    if program.module.num_devices != expected:
        raise ValueError(
            f"the program was compiled for {program.module.num_devices} devices of a slice, and "
            f"{topology.name} has {expected}; give the topology that it was compiled for"
        )
    schedule = program.schedule()
    places = places or places_in(text)
    times = predict(schedule, topology, places)
    warnings = list(program.warnings)
    if places is None and topology.is_tpu and traffic(schedule, Route.LINKS):
        warnings.append(
            "the text does not tell where its devices are, so every group of them has the links of "
            "all axes; give --config, or a text of --save_hlo"
        )
    executed = flops(schedule) * topology.num_devices
    low = {each.value: n * topology.num_devices for each, n in low_flops(schedule).items()}
    report: dict[str, Any] = {
        "flops": {"executed": executed, **({"low": low} if low else {})},
        "collectives": _as_dicts(traffic(schedule, Route.LINKS, Route.NETWORK)),
        "host_copies": _as_dicts(traffic(schedule, Route.HOST)),
        "step": {**asdict(times), "total": times.step},
        "parts": {
            part: {"seconds": seconds, "flops": number * topology.num_devices}
            for part, (seconds, number) in costs_by_part(schedule, topology).items()
        },
        "warnings": warnings,
        "assumptions": assumptions(topology) | {f"peak_{x}": topology.chip.peak(x) for x in low},
        "predictor": PREDICTOR,
        "alternatives": {
            name: predict(schedule, topology, places, rules).step
            for name, rules in ALTERNATIVES.items()
        },
    }
    if model is not None:
        report["flops"] |= {"model": model.total, "ratio": executed / model.total}
        if model.num_images is not None:
            report["flops"]["images"] = model.num_images
        peak = topology.num_chips * topology.chip.peak_flops
        report["mfu"] = model.total / (times.step * peak) if times.step else 0.0
    return report


def repredicted(stored: Mapping[str, Any], prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored report with a new prediction of its program, beside the earlier steps.

    Raises:
        ValueError: The prediction is of another program.
    """
    executed, expected = (each["flops"]["executed"] for each in (prediction, stored))
    if not math.isclose(executed, expected, rel_tol=1e-3):
        raise ValueError(
            f"the report of {stored['config']} on {stored['topology']} is of another program: it "
            f"runs {expected:.6g} FLOPs, and this one {executed:.6g}"
        )
    earlier = dict(stored.get("earlier", {}))
    if (version := stored.get("predictor", 1)) != PREDICTOR:
        earlier[str(version)] = stored["step"]["total"]
    return {
        **stored,
        **prediction,
        "flops": {**stored["flops"], **prediction["flops"]},
        **({"earlier": earlier} if earlier else {}),
    }


def step_by(report: Mapping[str, Any], version: int) -> float | None:
    """Returns the step's seconds by a version of the predictor; None if it was not asked."""
    if report.get("predictor", 1) == version:
        return report["step"]["total"]
    return report.get("earlier", {}).get(str(version))


def memory_report(memory: Any, needed: float | None, topology: Topology) -> dict[str, Any]:
    """Compares a program's memory with the memory of a device.

    Args:
        memory: A `device_memory.Memory`; None if the program does not fit.
        needed: Bytes needed by a program that does not fit, if known.
    """
    hbm = topology.chip.hbm_bytes
    if memory is None:
        return {"hbm": hbm, "fits": False, **({} if needed is None else {"total": int(needed)})}
    total = memory.total_with_code
    return {
        **asdict(memory),
        "total": memory.total,
        "hbm": hbm,
        "free": 1 - total / hbm,
        "fits": total <= hbm,
    }


def assumptions(topology: Topology) -> dict[str, Any]:
    chip = topology.chip
    return {
        "peak_flops": chip.peak_flops,
        "clock": chip.clock,
        "link_bandwidth": chip.link_bandwidth,
        "axes": sum(dim > 1 for dim in topology.shape) if topology.is_tpu else 1,
        "network_bandwidth": chip.network_bandwidth,
        "host_bandwidth": chip.host_bandwidth,
        "kernel_efficiency": KERNEL_EFFICIENCY,
        "vector_rate": chip.vector_rate,
        "source": chip.source,
    }


def advice(cfg: Any, report: Mapping[str, Any]) -> list[str]:
    """Returns changes that let a program fit, the cheapest first."""
    lines = []
    mesh, chosen = report["mesh"], report["parallelism"]
    copies = mesh.get("data", 1)
    if copies > 1:
        lines.append(
            f"shard parameters and optimizer state over the {copies} devices that hold copies of "
            "them: --config.trainer.parallelism.data=1 --config.trainer.parallelism.fsdp=-1"
        )
    for part in ("decoder", "vision_encoder", "text_encoder"):
        if getattr(cfg.model, part, None) is None:
            continue
        default = cfg.get_recursively(("model", part, "stack", "remat")).value
        less = None
        if chosen.get(f"{part}_remat", default) != "full":
            less = f"{part}_remat=FULL"
        elif chosen.get(f"{part}_saved_names", "()") != "()":
            less = f"{part}_saved_names=()"
        if less is not None:
            lines.append(f"save less for the backward pass: '--config.trainer.parallelism.{less}'")
    batch_shards = math.prod(mesh.get(axis, 1) for axis in ("data", "expert", "fsdp"))
    micro_batches = 2 * int(chosen.get("gradient_accumulation", 1))
    if cfg.input.batch_size % (batch_shards * micro_batches) == 0:
        lines.append(
            "use smaller micro-batches, which halve the saved activations: "
            f"--config.trainer.parallelism.gradient_accumulation={micro_batches}"
        )
    lines.append(
        "shard matrices and activations: "
        f"--config.trainer.parallelism.model={2 * mesh.get('model', 1)}"
    )
    lines.append("use more chips: a larger --topology")
    return lines


def render(report: Mapping[str, Any]) -> str:
    """Formats a report as text."""
    parts = [_title(report)]
    if "memory" in report:
        parts.append(_memory(report))
    if "step" in report:
        parts += [_step(report), _flops(report), _transfers("collectives", report["collectives"])]
        if report.get("host_copies"):
            parts.append(_transfers("copies to the host", report["host_copies"]))
        if "alternatives" in report:
            parts.append(_alternatives(report))
        parts.append(_assumptions(report))
    if report.get("warnings"):
        parts.append("\n".join(f"warning: {each}" for each in report["warnings"]))
    if "versions" in report:
        known = ", ".join(f"{name} {v}" for name, v in report["versions"].items() if v)
        compiled = report.get("compile")
        seconds = (
            f"lowered in {compiled['lower_seconds']:.0f} s, compiled in "
            f"{compiled['compile_seconds']:.0f} s; "
            if compiled
            else ""
        )
        parts.append(f"{seconds}{known}")
    return "\n\n".join(parts)


def _title(report: Mapping[str, Any]) -> str:
    mesh = "".join(f" {axis}={size}" for axis, size in report.get("mesh", {}).items())
    overrides = "".join(f"\n  {path}={text}" for path, text in report.get("overrides", {}).items())
    chosen = ", ".join(f"{name} {text}" for name, text in report.get("parallelism", {}).items())
    overrides += f"\n  parallelism: {chosen}" if chosen else ""
    return (
        f"{report.get('config') or report.get('hlo')} on {report['topology']} "
        f"({report['num_chips']} chips{', mesh' + mesh if mesh else ''}){overrides}"
    )


def _memory(report: Mapping[str, Any]) -> str:
    memory = report["memory"]
    hbm = memory["hbm"]
    if memory["fits"]:
        tight = f"; less than {FREE_SHARE:.0%} is tight" if memory["free"] < FREE_SHARE else ""
        verdict = f"fits: {memory['free']:.1%} of {bytes_text(hbm)} free{tight}"
    else:
        total = memory.get("total")
        excess = (
            ""
            if total is None
            else f" by {bytes_text(total - hbm)}: {bytes_text(total)} of {bytes_text(hbm)}"
        )
        verdict = f"DOES NOT FIT{excess or ' in ' + bytes_text(hbm)}"
    lines = [f"memory per device   {verdict}"]
    names = ("arguments", "temporaries", "outputs", "aliased", "total", "peak", "code")
    if "arguments" in memory:
        lines.append("  " + "   ".join(f"{name} {bytes_text(memory[name])}" for name in names))
    lines += [f"  to make it fit: {each}" for each in report.get("advice", ())]
    return "\n".join(lines)


def _step(report: Mapping[str, Any]) -> str:
    step = report["step"]
    lines = [f"predicted step      {_seconds(step['total'])}"]
    if "mfu" in report:
        lines[0] += f"   MFU {report['mfu']:.1%}"
    if "tokens" in report:
        rate = report["tokens"] / step["total"] if step["total"] else 0.0
        lines[0] += f"   {rate:,.0f} tokens/s"
    for name, title in (
        ("matrix", "matrix products"),
        ("vector", "everything else"),
        ("kernel", "kernels"),
        ("exposed", "waiting for transfers"),
    ):
        share = step[name] / step["total"] if step["total"] else 0.0
        lines.append(f"  {title:22} {_seconds(step[name]):>10} {share:7.1%}")
    lines[-1] += f"   of {_seconds(step['transfer'])} of transfers"
    for part, cost in report.get("parts", {}).items():
        share = cost["seconds"] / step["total"] if step["total"] else 0.0
        if share >= _LEAST_SHOWN:
            lines.append(
                f"  of which {part:13} {_seconds(cost['seconds']):>10} {share:7.1%}"
                f"   {cost['flops']:.3g} FLOPs"
            )
    return "\n".join(lines)


def _flops(report: Mapping[str, Any]) -> str:
    numbers = report["flops"]
    text = f"FLOPs               executed {numbers['executed']:.4g}"
    if "model" in numbers:
        text += f"   model {numbers['model']:.4g}   ratio {numbers['ratio']:.3f}"
    if "images" in numbers:
        text += f"   ({numbers['images']:,.0f} images per step)"
    for operands, number in numbers.get("low", {}).items():
        peak = report["assumptions"][f"peak_{operands}"]
        rate = f"at {peak / 1e12:g} TOP/s" if peak else "no faster than bfloat16"
        text += f"\n  of which {operands:11} {number / numbers['executed']:.1%}, {rate}"
    return text


def _as_dicts(traffic: Mapping[str, Traffic]) -> dict[str, dict[str, Any]]:
    return {kind: asdict(each) for kind, each in traffic.items()}


def _transfers(title: str, traffic: Mapping[str, Mapping[str, Any]]) -> str:
    entries = {kind: Traffic(**each) for kind, each in traffic.items()}
    if not entries:
        return f"{title:19} none"
    lines = [f"{title:25} {'in text':>8} {'per step':>8} {'GB per device':>17}"]
    lines += [
        f"  {kind:23} {each.count:8,} {each.executions:8,} {each.sent / 1e9:17.3f}"
        for kind, each in entries.items()
    ]
    total = sum(each.sent for each in entries.values())
    lines.append(f"  {'all':23} {'':8} {'':8} {total / 1e9:17.3f}")
    return "\n".join(lines)


def _alternatives(report: Mapping[str, Any]) -> str:
    total = report["step"]["total"]
    lines = [f"{'other assumptions':52} {'step':>10}"]
    for name, seconds in report["alternatives"].items():
        change = f"{seconds / total - 1:+8.1%}" if total else ""
        lines.append(f"  {name:50} {_seconds(seconds):>10} {change}")
    return "\n".join(lines)


def _assumptions(report: Mapping[str, Any]) -> str:
    known = report["assumptions"]
    clock = f"{known['clock'] / 1e9:g} GHz, " if known["clock"] else ""
    host = (
        f"{known['host_bandwidth'] / 1e9:g} GB/s to the host (guessed); "
        if report.get("host_copies")
        else ""
    )
    return (
        f"a model, not a measurement: {known['peak_flops'] / 1e12:g} TFLOP/s, {clock}"
        f"products of kernels at {known['kernel_efficiency']:g} of the peak, "
        f"{known['axes']} x {known['link_bandwidth'] / 1e9:g} GB/s links ({known['source']}), "
        f"{known['network_bandwidth'] / 1e9:g} GB/s between slices (guessed); {host}"
        "transfers are hidden only where the schedule shows it"
    )


_COLUMNS = (
    "config",
    "topology",
    "mesh",
    "micro-batches",
    "GiB (peak)",
    "free",
    "executed / model",
    "GB sent",
    "matrix + vector + kernel + waiting s",
    "step 1 s",
    "MFU 1",
    "step 2 s",
    "MFU 2",
    "compile s",
)


def render_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Formats reports as a Markdown table, one line each.

    Step and MFU stand under the version of the predictor that they are of; the newest of them is
    the sum before.
    """
    return _markdown([_COLUMNS, *(_row(report) for report in reports)])


def render_parts(reports: Sequence[Mapping[str, Any]]) -> str:
    """Formats the seconds and the share of executed FLOPs of each part as a Markdown table."""
    shown = ("vision_encoder", "connector", "decoder")
    rows = [("config", "topology", "predictor", "step s", *shown, "rest", "waiting")]
    for report in reports:
        if "parts" not in report:
            continue
        parts, step = report["parts"], report["step"]
        executed = report["flops"]["executed"]
        cells = []
        for part in shown:
            cost = parts.get(part, {"seconds": 0.0, "flops": 0.0})
            share = cost["seconds"] / step["total"]
            cells.append(
                f"{cost['seconds']:.2f} s, {share:.0%}; {cost['flops'] / executed:.0%} of FLOPs"
            )
        rest = sum(cost["seconds"] for part, cost in parts.items() if part not in shown)
        waiting = f"{step['exposed']:.2f} s"
        version = str(report.get("predictor", 1))
        names = (report["config"], report["topology"], version, f"{step['total']:.2f}")
        rows.append((*names, *cells, f"{rest:.2f} s", waiting))
    return _markdown(rows)


def render_alternatives(reports: Sequence[Mapping[str, Any]]) -> str:
    """Formats the step under other assumptions as a Markdown table, a column per report."""
    reports = [report for report in reports if "alternatives" in report]
    titles = [f"{report['config']}, {report['topology']}" for report in reports]
    totals = [f"{report['step']['total']:.2f}" for report in reports]
    rows = [("step s", *titles), ("as predicted", *totals)]
    for name in reports[0]["alternatives"] if reports else ():
        seconds = [report["alternatives"].get(name) for report in reports]
        rows.append((name, *("" if each is None else f"{each:.2f}" for each in seconds)))
    return _markdown(rows)


def _markdown(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _row(report: Mapping[str, Any]) -> tuple[str, ...]:
    fields = (f" {path}={text}" for path, text in report.get("overrides", {}).items())
    names = (report["config"] + "".join(fields), report["topology"])
    if "error" in report:
        error = "error: " + report["error"].partition("\n")[0][:60].replace("|", "/")
        return (*names, error, *[""] * (len(_COLUMNS) - 3))
    memory, compiled = report["memory"], f"{report['compile']['compile_seconds']:.0f}"
    mesh = " ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    total = f"{memory['total'] / GIB:.1f}" if "total" in memory else "?"
    total += f" ({memory['peak'] / GIB:.1f})" if "peak" in memory else ""
    free = f"{memory['free']:.1%}" if memory["fits"] else "does not fit"
    first = (*names, mesh, report["parallelism"].get("gradient_accumulation", "1"), total, free)
    if "step" not in report:
        return (*first, *[""] * 7, compiled)
    step = report["step"]
    sent = sum(each["sent"] for each in report["collectives"].values())
    return (
        *first,
        f"{report['flops']['ratio']:.2f}",
        f"{sent / 1e9:.1f}",
        " + ".join(f"{step[name]:.2f}" for name in ("matrix", "vector", "kernel", "exposed")),
        *(cell for version in (1, 2) for cell in _step_cells(report, version)),
        compiled,
    )


def _step_cells(report: Mapping[str, Any], version: int) -> tuple[str, str]:
    seconds = step_by(report, version)
    if seconds is None:
        return "", ""
    mfu = report["mfu"] * report["step"]["total"] / seconds
    return f"{seconds:.2f}", f"{mfu:.3f}"


def _seconds(number: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e-6:.3g} us"
