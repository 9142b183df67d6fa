import itertools

import pytest

from mm1_jax.rehearse import links
from mm1_jax.rehearse.hlo import parse
from mm1_jax.rehearse.topologies import parse_topology
from mm1_jax.rehearse.transfers import Transfer, collective

CUBE = parse_topology("v5p:4x4x4")
PLACES = list(itertools.product(range(4), repeat=3))
ONE_WAY, BOTH_WAYS = 90e9, 180e9


def seconds(group, kind="all-gather", topology=CUBE, places=PLACES):
    return links.seconds(Transfer("t", kind, 180e9, groups=(group,)), topology, places)


def along(*axes):
    """The group of device 0 along these axes of the cube."""
    return tuple(
        n for n, place in enumerate(PLACES) if not any(place[i] for i in {0, 1, 2} - set(axes))
    )


def test_a_group_has_the_links_of_the_axes_that_it_spans():
    assert [seconds(along(*range(n))) for n in (1, 2, 3)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert seconds(along(2)) == seconds(along(1)) == pytest.approx(1)
    # All axes of a torus of rings: the bandwidth that groups have if places are unknown.
    assert seconds(tuple(range(64))) == pytest.approx(seconds(tuple(range(64)), places=None))


def test_an_axis_sends_one_way_unless_the_group_covers_its_ring():
    halves = tuple(n for n in along(0, 1, 2) if PLACES[n][2] < 2)
    assert seconds(halves) == pytest.approx(1 / 2.5)
    assert seconds((0, 1)) == pytest.approx(2)
    for name, per_second in (("v5e:8x8", 90e9), ("v5e:16x16", 180e9), ("v5e:8x16", 135e9)):
        topology = parse_topology(name)
        places = list(itertools.product(*map(range, topology.shape)))
        whole = seconds(tuple(range(len(places))), topology=topology, places=places)
        assert whole == pytest.approx(180e9 / per_second), name


def test_the_slowest_group_counts():
    transfer = Transfer("t", "all-gather", 180e9, groups=(along(0, 1), along(0)))
    assert links.seconds(transfer, CUBE, PLACES) == pytest.approx(1)


def test_an_all_to_all_waits_for_the_middle_of_an_axis():
    """Half of the data crosses the middle of a line, and of a ring of four a half at each cut."""
    held = 180e9 * 4 / 3
    # Each side of a ring of four sends half of its two devices' data over two links.
    assert seconds(along(0), "all-to-all") == pytest.approx(2 * held / 2 / (2 * ONE_WAY))
    line = parse_topology("v5p:4x1x1")
    places = [(n, 0, 0) for n in range(4)]
    crossing = seconds((0, 1, 2, 3), "all-to-all", line, places)
    assert crossing == pytest.approx(2 * held / 2 / ONE_WAY)


def test_a_permutation_has_one_way_of_the_axes_between_a_pair():
    pairs = ((0, 1), (0, 5))
    transfers = [Transfer("t", "collective-permute", 180e9, groups=(pair,)) for pair in pairs]
    assert [links.seconds(each, CUBE, PLACES) for each in transfers] == pytest.approx([2, 1])


COLLECTIVE = """\
HloModule m, num_partitions=8

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  ROOT %sum = f32[8] OPCODE(%a), GROUPS
}
"""


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1,4},{2,3,5}}", [(0, 1, 4), (2, 3, 5)]),
        ("replica_groups=[2,4]<=[8]", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
            [(0, 4), (1, 5), (2, 6), (3, 7)],
        ),
        ("replica_groups={}", [tuple(range(8))]),
    ],
)
def test_groups_are_parsed_in_every_notation(groups, expected):
    module = parse(COLLECTIVE.replace("OPCODE", "all-reduce").replace("GROUPS", groups))
    main = module.computations["main"]
    assert list(collective(main.root, main, 8).groups) == expected


def test_pairs_of_a_permutation_leave_out_those_who_keep_their_data():
    text = COLLECTIVE.replace("OPCODE", "collective-permute")
    module = parse(text.replace("GROUPS", "source_target_pairs={{0,1},{2,2},{3,0}}"))
    main = module.computations["main"]
    assert collective(main.root, main, 8).groups == ((0, 1), (3, 0))


def test_places_are_kept_with_the_text_of_a_program():
    text = links.with_places("HloModule m\n", PLACES)
    assert links.places_in(text) == PLACES and text.endswith("\nHloModule m\n")
    assert links.places_in(links.with_places("HloModule m\n", None)) is None
