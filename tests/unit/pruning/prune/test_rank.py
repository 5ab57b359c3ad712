"""Selection is by rank: exact counts, stable ties, no empty layer, nothing comes back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from criterions._densities import erdos_renyi_kernel, exact_quotas
from pruning import Budget, UsageError, select
from tests.support import slow_reference as slow

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
few_values = st.lists(st.integers(-3, 3), min_size=1, max_size=12)
layers = st.lists(few_values, min_size=1, max_size=5)


def as_layers(rows, dtype=torch.float32):
    return {f"layer{i}": torch.tensor(row, dtype=dtype) for i, row in enumerate(rows)}


def all_alive(scores):
    return {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(few_values, st.integers(-2, 15), st.sampled_from(DTYPES))
def test_keep_top_keeps_exactly_k_and_the_earlier_of_equals(values, k, dtype):
    mask = select.keep_top(torch.tensor(values, dtype=dtype), k)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert mask.nonzero().flatten().tolist() == sorted(order[: max(0, k)])


@given(layers, st.integers(0, 70), st.integers(0, 3), st.sampled_from(DTYPES), st.data())
@settings(max_examples=200)
def test_global_selection_equals_a_plain_sort(rows, keep, min_keep, dtype, data):
    scores = as_layers(rows, dtype)
    alive = {name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))))
             for name, s in scores.items()}  # fmt: skip
    masks = select.keep_top_global(scores, Budget(keep, alive), min_keep)
    assert equal(masks, slow.keep_top(scores, keep, alive=alive, min_per_layer=min_keep))
    assert not any(bool((mask & ~alive[name]).any()) for name, mask in masks.items())
    guarded = sum(min(min_keep, int(mask.sum())) for mask in alive.values())
    assert kept(masks) == min(max(keep, guarded), kept(alive))


@given(st.integers(1, 400), st.floats(0, 0.999), st.integers(0, 1000))
def test_nine_tenths_zeros_still_give_the_exact_count(total, sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(total, generator=generator)
    scores[torch.randperm(total, generator=generator)[: math.ceil(0.9 * total)]] = 0
    n_keep = slow.kept_of(total, sparsity)
    masks = select.keep_top_global({"w": scores}, Budget(n_keep, all_alive({"w": scores})))
    assert kept(masks) == n_keep
    assert scores[masks["w"]].sum() == pytest.approx(scores.sort(descending=True).values[:n_keep].sum())


def test_all_tied_keeps_the_first_positions_beside_each_layers_best():
    scores = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    masks = select.keep_top_global(scores, Budget(4, all_alive(scores)))
    assert masks["a"].tolist() == [[True, True, True], [False, False, False]]
    assert masks["b"].tolist() == [True, False, False, False]


def test_a_budget_below_the_number_of_layers_keeps_the_best_of_each():
    scores = as_layers([[1, 9, 3], [4, 2], [7]])
    masks = select.keep_top_global(scores, Budget(1, all_alive(scores)))
    assert [mask.nonzero().flatten().tolist() for mask in masks.values()] == [[1], [0], [0]]


def test_nothing_to_select_from():
    assert select.keep_top_global({}, Budget(0, {})) == {}
    assert select.keep_top(torch.empty(0), 3).tolist() == []


def test_signed_scores_keep_their_sign():
    scores = {"w": torch.tensor([-1e30, -2.0, -0.5, 1e-30])}
    masks = select.keep_top_global(scores, Budget(2, all_alive(scores)))
    assert masks["w"].tolist() == [False, False, True, True]


def test_whole_numbers_beyond_single_precision_are_ranked_exactly():
    scores = {"w": torch.tensor([2**24, 2**24 + 1, 2**24 + 2])}
    assert select.keep_top_global(scores, Budget(1, all_alive(scores)))["w"].tolist() == [False, False, True]


def test_double_precision_is_not_rounded_where_another_layer_is_single():
    scores = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 1 + 1e-12, 1 + 2e-12], dtype=torch.float64)}
    masks = select.keep_top_global(scores, Budget(3, all_alive(scores)))
    assert masks["b"].tolist() == [True, False, True]


@given(layers, st.data())
def test_per_layer_selection_keeps_each_quota(rows, data):
    scores = as_layers(rows)
    quotas = {name: data.draw(st.integers(0, len(score) + 2)) for name, score in scores.items()}
    masks = select.keep_top_per_layer(scores, Budget(0, all_alive(scores)), quotas)
    for name, mask in masks.items():
        assert int(mask.sum()) == min(max(1, quotas[name]), mask.numel())
        assert torch.equal(mask, select.keep_top(scores[name], int(mask.sum())))


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("keep", [1, 6, 7, 20])
def test_slices_that_must_not_be_empty_keep_their_best(dimension, keep):
    torch.manual_seed(0)
    scores = {"w": torch.rand(6, 5)}
    scores["w"].select(dimension, 2).mul_(1e-6)
    masks = select.keep_top_global(scores, Budget(keep, all_alive(scores), {"w": dimension}))
    assert masks["w"].any(dim=1 - dimension).all()
    assert kept(masks) == max(keep, scores["w"].shape[dimension])


def test_a_selection_of_any_kind_is_guarded():
    scores = as_layers([[1, 5, 3], [2, 8, 4]])
    alive = {"layer0": torch.tensor([True, False, True]), "layer1": torch.ones(3, dtype=torch.bool)}
    nothing = {name: torch.zeros(3) for name in scores}
    assert [m.tolist() for m in select.guarded(nothing, scores, Budget(2, alive)).values()] == [
        [False, False, True],
        [False, True, False],
    ]
    everything = {name: torch.ones(3) for name in scores}
    assert equal(select.guarded(everything, scores, Budget(2, alive)), alive)


def test_guarded_slices_get_their_best_back_and_no_other():
    scores = {"w": torch.tensor([[1.0, 2.0], [4.0, 3.0]])}
    chosen = {"w": torch.tensor([[False, False], [True, True]])}
    masks = select.guarded(chosen, scores, Budget(2, all_alive(scores), {"w": 0}))
    assert masks["w"].tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_name_their_layer(bad):
    scores = as_layers([[1, 2], [3, 4]])
    scores["layer1"][1] = bad
    with pytest.raises(UsageError, match=r"1 scores of layer 'layer1' are not finite"):
        select.check_scores(scores, all_alive(scores))
    # What is gone needs no score.
    select.check_scores(scores, {"layer0": torch.tensor([True, True]), "layer1": torch.tensor([True, False])})


def test_missing_misshapen_and_complex_scores():
    alive = {"a": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(UsageError, match="no scores for 'a'"):
        select.check_scores({}, alive)
    with pytest.raises(UsageError, match=r"shape \(4,\).*\(2, 2\)"):
        select.check_scores({"a": torch.zeros(4)}, alive)
    with pytest.raises(UsageError, match="complex"):
        select.check_scores({"a": torch.zeros(2, 2, dtype=torch.complex64)}, alive)


shapes = st.dictionaries(
    st.sampled_from("abcde"), st.lists(st.integers(1, 30), min_size=2, max_size=4).map(tuple), min_size=1
)


@given(shapes, st.floats(0.01, 1.0))
def test_erk_densities_equal_the_reference_and_add_up(by_name, density):
    densities = erdos_renyi_kernel(by_name, density)
    expected = slow.erk_densities(by_name, 1 - density)
    assert densities == pytest.approx(expected, rel=1e-6)
    total = sum(math.prod(shape) for shape in by_name.values())
    assert sum(densities[n] * math.prod(s) for n, s in by_name.items()) == pytest.approx(density * total)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1.2)), min_size=1, max_size=8), st.integers(0, 2500))
def test_quotas_add_up_wherever_the_sizes_allow(pairs, total):
    sizes = {str(i): size for i, (size, _) in enumerate(pairs)}
    quotas = exact_quotas(sizes, {str(i): density for i, (_, density) in enumerate(pairs)}, total)
    assert all(min(1, sizes[name]) <= quota <= sizes[name] for name, quota in quotas.items())
    least, most = sum(min(1, size) for size in sizes.values()), sum(sizes.values())
    assert sum(quotas.values()) == min(max(total, least), most)


def test_quotas_round_the_largest_remainders_up():
    assert exact_quotas({"a": 10, "b": 10, "c": 10}, {"a": 0.19, "b": 0.15, "c": 0.16}, 5) == {
        "a": 2,
        "b": 1,
        "c": 2,
    }
    # One too many because each layer keeps one: it is taken where least is missing, not where most is.
    sizes = {"c": 10, "b": 10, "a": 10}
    assert exact_quotas(sizes, {"c": 0.36, "b": 0.2, "a": 0.0}, 5) == {"a": 1, "b": 1, "c": 3}
