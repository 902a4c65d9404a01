"""What makes up an update follows from the settings and the update's number, and from nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.tasks.batches import Batches, collate, in_order, pieces

lengths = st.lists(st.integers(1, 40), max_size=30)


def rows(sizes):
    """Row i consists of tokens 100 i, 100 i + 1, …; every second token is a target."""
    return [
        {"ids": [100 * i + k for k in range(n)], "targets": [k % 2 == 1 for k in range(n)]}
        for i, n in enumerate(sizes)
    ]


def batches(n=10, size=4, **changes):
    sizes = [3 + i % 5 for i in range(n)]
    settings = dict(
        global_batch_size=size,
        micro_batch_size=2,
        micro_batch_tokens=100,
        packing=True,
        seed=0,
        epochs=2,
    )
    return Batches(rows(sizes), np.asarray(sizes), **(settings | changes))


def chosen(update):
    """Rows of an update, piece by piece."""
    return [batch.rows.tolist() for batch in update]


def flat(groups):
    return [i for group in groups for i in group]


def equal(one, two):
    return len(one) == len(two) and all(
        a.seed == b.seed
        and all(
            np.array_equal(getattr(a, f), getattr(b, f))
            for f in ("ids", "targets", "lengths", "rows")
        )
        for a, b in zip(one, two, strict=True)
    )


# Pieces


@given(lengths, st.integers(1, 6), st.integers(1, 100), st.booleans())
def test_every_row_once_and_limits_held(sizes, max_rows, max_tokens, packing):
    groups = pieces(sizes, max_rows, max_tokens, packing)
    assert sorted(i for g in groups for i in g) == list(range(len(sizes)))
    for group in groups:
        longest = max(sizes[i] for i in group)
        cost = sum(sizes[i] for i in group) if packing else longest * len(group)
        assert 1 <= len(group) <= max_rows
        assert cost <= max_tokens or len(group) == 1  # a row longer than the budget goes alone


@given(lengths, st.integers(1, 6), st.integers(1, 100), st.booleans())
def test_pieces_could_not_be_joined(sizes, max_rows, max_tokens, packing):
    """First fit: whatever opened a later piece had no room in an earlier one."""
    groups = pieces(sizes, max_rows, max_tokens, packing)
    for k, later in enumerate(groups):
        opener = later[0]
        for earlier in groups[:k]:
            before = [i for i in earlier if (-sizes[i], i) < (-sizes[opener], opener)]
            tokens = sum(sizes[i] for i in before) + sizes[opener]
            cost = tokens if packing else (len(before) + 1) * sizes[earlier[0]]
            assert len(before) == max_rows or cost > max_tokens


@pytest.mark.parametrize(
    ("packing", "expected"),
    [
        (True, [[1, 3], [0, 2, 4]]),  # 6 + 4, 5 + 3 + 2
        (False, [[1], [0, 3], [2, 4]]),  # 6, 2 × 5, 2 × 3
    ],
)
def test_pieces_as_lists(packing, expected):
    assert pieces([5, 6, 3, 4, 2], max_rows=3, max_tokens=10, packing=packing) == expected


def test_the_number_of_rows_limits_too():
    assert pieces([1] * 5, max_rows=2, max_tokens=100, packing=True) == [[0, 1], [2, 3], [4]]
    assert pieces([], max_rows=2, max_tokens=100, packing=True) == []


# Collation


def test_collate_as_lists():
    batch = collate(
        [
            {"ids": [5, 6, 7], "targets": [False, True, True]},
            {"ids": [8, 9], "targets": [True, True]},
        ],
        [4, 2],
        seed=11,
    )
    assert batch.ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.targets.tolist() == [
        False,
        True,
        True,
        False,
        True,
    ]  # nothing comes before a first token
    assert (batch.lengths.tolist(), batch.rows.tolist()) == ([3, 2], [4, 2])
    assert (batch.count, batch.seed) == (3, 11)
    assert batch.ids.dtype == batch.lengths.dtype == batch.rows.dtype == np.int64
    assert batch.targets.dtype == bool


def test_collate_leaves_its_rows_as_they_were():
    row = {"ids": np.array([1, 2]), "targets": np.array([True, True])}
    collate([row], [0])
    assert row["targets"].tolist() == [True, True]


# Updates


def test_an_epoch_visits_every_row_once_and_its_tail_is_an_update():
    made = batches(n=10, size=4, epochs=2)
    assert len(made) == 6
    sizes = [sum(map(len, chosen(made[u]))) for u in range(6)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 3):
        visited = Counter(i for u in range(epoch, epoch + 3) for i in flat(chosen(made[u])))
        assert visited == Counter(range(10))


def test_epochs_are_permuted_differently_and_by_seed():
    orders = [
        [made.indices(u).tolist() for u in range(start, start + 3)]
        for made, start in ((batches(), 0), (batches(), 3), (batches(seed=1), 0))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert sorted(flat(orders[0])) == sorted(flat(orders[1])) == list(range(10))


def test_the_place_depends_on_the_updates_number_alone():
    made, other = batches(n=23, epochs=4), batches(n=23, epochs=4)
    in_turn = [made[u] for u in range(len(made))]
    for update in (20, 3, 11, 0, 23, 12):  # in any order, in another object
        assert equal(other[update], in_turn[update])
    longer = batches(n=23, epochs=1, max_updates=40)
    assert len(longer) == 40 and all(equal(longer[u], in_turn[u]) for u in range(len(made)))


def test_the_rows_of_an_update_do_not_depend_on_its_pieces():
    whole = batches(n=12, size=6, micro_batch_size=6)
    for changes in (dict(micro_batch_size=1), dict(micro_batch_tokens=7), dict(packing=False)):
        made = batches(n=12, size=6, **changes)
        for update in range(len(whole)):
            assert sorted(flat(chosen(made[update]))) == sorted(flat(chosen(whole[update])))
            assert sum(b.count for b in made[update]) == sum(b.count for b in whole[update])


def test_rows_carry_their_own_tokens():
    made = batches()
    for batch in made[1]:
        starts = np.cumsum([0, *batch.lengths[:-1]])
        assert (batch.ids[starts] == 100 * batch.rows).all()
        assert batch.lengths.sum() == len(batch.ids) == len(batch.targets)


def test_each_piece_has_a_seed_of_its_own():
    made = batches(n=40, micro_batch_size=1, epochs=3)
    seeds = [b.seed for u in range(len(made)) for b in made[u]]
    assert len(set(seeds)) == len(seeds) == 120
    assert seeds[0] != batches(n=40, micro_batch_size=1, seed=1)[0][0].seed


def test_the_end_is_the_end():
    made = batches(max_updates=2)
    assert len(list(made)) == 2
    for outside in (-1, 2):
        with pytest.raises(IndexError):
            made[outside]


def test_evaluation_sees_every_row_once():
    sizes = [5, 1, 9, 3, 3, 20]
    seen = [
        i for batch in in_order(rows(sizes), np.asarray(sizes), 2, 12, True) for i in batch.rows
    ]
    assert sorted(seen) == list(range(6))
