import pytest

from mm1_jax.parallel.chips import CHIPS
from mm1_jax.rehearse.topologies import parse_topology


@pytest.mark.parametrize(
    ("name", "same", "chips", "devices"),
    [
        ("v5p:4x4x8", "v5p:4x4x8", 128, 128),
        ("v5e:16x16", "v5e:16x16", 256, 256),
        ("tpu7x:8x8x8", "tpu7x:8x8x8", 512, 1024),
        ("2xv5p:4x4x4", "2xv5p:4x4x4", 128, 128),
        ("v5p-128", "v5p:4x4x4", 64, 64),
        ("v4-128", "v4:4x4x4", 64, 64),
        ("v5litepod-256", "v5e:16x16", 256, 256),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("tpu7x-128", "tpu7x:4x4x4", 64, 128),
        ("2xv6e-64", "2xv6e:8x8", 128, 128),
        ("h100:8", "h100:8", 8, 8),
    ],
)
def test_topology_names_are_parsed(name, same, chips, devices):
    topology = parse_topology(name)
    assert (topology.name, topology.num_chips, topology.num_devices) == (same, chips, devices)
    assert parse_topology(topology.name) == topology


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5q:4x4x4", "did you mean v5p:4x4x4"),
        ("v5p", "did you mean"),
        ("v5p:4x4", "TPU v5p has 3 positive dims, e.g. v5p:4x4x4"),
        ("v5p:0x4x4", "3 positive dims"),
        ("v5p-100", "no shape is known for 50 chips"),
        ("h100:16", "h100:8 at most"),
        ("2xh100:8", "h100:8 at most"),
        ("pod", "names look like"),
    ],
)
def test_wrong_topology_names_are_helpful_errors(name, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_topology(name)
    assert f"--topology={name}" in str(error.value)


def test_tori_wrap_around_in_whole_cubes_and_along_sides_of_sixteen():
    assert parse_topology("v5p:4x4x8").wrap == [True] * 3
    assert parse_topology("v5p:2x4x4").wrap == [False] * 3
    assert parse_topology("v5e:8x16").wrap == [False, True, False]


def test_a_device_has_its_share_of_the_chip():
    topology = parse_topology("tpu7x:4x4x4")
    chip = CHIPS["tpu7x"]
    assert topology.device_peak_flops == chip.peak_flops / 2
    assert topology.device_link_bandwidth == 3 * chip.link_bandwidth / 2
