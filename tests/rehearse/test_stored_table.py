"""The table of docs/rehearsals.json, which docs/performance.md shows, against code and compiler.

It is made, and where something has changed made again, by the command in docs/performance.md.
"""

import json
from pathlib import Path

import pytest

from mm1_jax.rehearse.__main__ import fingerprint
from mm1_jax.rehearse.report import render_table
from mm1_jax.rehearse.topologies import parse_topology
from mm1_jax.run_folder import Launch

DOCS = Path(__file__).parents[2] / "docs"
REPORTS = {
    (report["config"], report["topology"]): report
    for report in json.loads((DOCS / "rehearsals.json").read_text())["reports"]
}
# Where each has to fit, with a twentieth of the memory to spare.
FITS = (
    ("mm1_3b", "v5e:8x8"),
    ("mm1_7b", "v5p:4x4x4"),
    ("mm1_7b", "v5e:16x16"),
    ("mm1_30b", "v5p:4x8x8"),
    ("mm1_7b_moe", "v5p:4x4x8"),
    ("mm1_3b_moe", "v5p:4x8x8"),
)


@pytest.mark.parametrize(("config", "topology"), FITS)
def test_every_config_fits_where_it_is_meant_to_run(config, topology):
    report = REPORTS[config, topology]
    assert report["memory"]["fits"] and report["memory"]["free"] >= 0.05
    assert report["tokens"] == 512 * 4096


@pytest.mark.parametrize("config", sorted({config for config, _ in FITS}))
def test_every_config_stands_on_six_kinds_of_slices_and_fits(config):
    topologies = [parse_topology(t) for c, t in REPORTS if c == config]
    assert len({(t.chip.name, t.num_slices > 1) for t in topologies}) >= 6
    assert all(REPORTS[config, t.name]["memory"]["fits"] for t in topologies)


@pytest.mark.parametrize(("config", "topology"), REPORTS)
def test_the_table_is_of_the_configs_as_they_are(config, topology):
    cfg = Launch(config).resolved_config()
    current = fingerprint(cfg, parse_topology(topology))
    assert REPORTS[config, topology]["fingerprint"] == current, (
        f"{config} has changed for {topology}; make the table again (docs/performance.md)"
    )


def test_the_table_of_the_docs_is_that_of_the_json():
    text = (DOCS / "performance.md").read_text()
    assert render_table([REPORTS[key] for key in sorted(REPORTS)]) in text


@pytest.mark.parametrize(
    ("config", "topology"),
    [
        ("mm1_tiny", "v5e:2x2"),
        ("mm1_tiny_moe", "v5e:2x2"),
        # Ten minutes and more each.
        *(pytest.param(*key, marks=pytest.mark.slow) for key in FITS),
    ],
)
def test_the_compiler_still_makes_the_same_of_them(run_afresh, tmp_path, config, topology):
    stored, file = REPORTS[config, topology], tmp_path / "report.json"
    arguments = (f"--config={config}", f"--topology={topology}", f"--json={file}")
    result = run_afresh("-m", "mm1_jax.rehearse", *arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    assert report["memory"]["total"] <= 1.03 * stored["memory"]["total"]
    assert set(report["collectives"]) == set(stored["collectives"])
    for kind, traffic in report["collectives"].items():
        assert traffic["sent"] <= 1.05 * stored["collectives"][kind]["sent"], kind
    assert report["flops"]["ratio"] == pytest.approx(stored["flops"]["ratio"], rel=0.01)
