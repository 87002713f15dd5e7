"""fused_moe keeps packed weights, and notices whenever they are no longer those of the tensors."""

import gc

import flexact.moe
import pytest
import torch
from flexact import ActivationRegistry, fused_moe
from flexact.plan_cache import PlanCache

RELU = ActivationRegistry.get_activation("relu")
X = torch.ones(1, 4)
ONE = torch.ones(1, 1)
FIRST = torch.zeros(1, 1, dtype=torch.int64)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    """A fresh cache, and a count of the plans made."""
    cache = PlanCache(max_entries=8)
    monkeypatch.setattr(flexact.moe, "plan_cache", cache)
    made = []
    original = flexact.moe._make
    monkeypatch.setattr(flexact.moe, "_make", lambda *arguments: made.append(1) or original(*arguments))
    cache.made = made
    return cache


def weights(w13=1.0, w2=1.0, experts=1):
    return torch.full((experts, 3, 4), w13), torch.full((experts, 4, 3), w2)


def value(w13, w2, ids=FIRST):
    """The block's output, which is 4·w13·3·w2 for constant weights."""
    with torch.no_grad():
        return fused_moe(X, w13, w2, ONE, ids, RELU, pairing="none", format="fp32")[0, 0].item()


def test_unchanged_weights_are_packed_once(empty_cache):
    w13, w2 = weights()
    assert [value(w13, w2) for _ in range(3)] == [12.0] * 3
    assert len(empty_cache.made) == len(empty_cache) == 1


@pytest.mark.parametrize("name", ["w13", "w2"])
@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(2),
        lambda w: w[:, 0].fill_(2).sum() and w.fill_(2),
        lambda w: w.view(-1).fill_(2),
        lambda w: w.data.fill_(2),
        lambda w: w.detach().numpy().fill(2),
    ],
    ids=["in_place", "slice", "view", "data", "numpy"],
)
def test_updates_in_place_are_noticed(name, write):
    w13, w2 = weights()
    assert value(w13, w2) == 12.0
    write({"w13": w13, "w2": w2}[name])
    assert value(w13, w2) == 24.0


def test_update_of_one_expert_through_data_is_noticed():
    w13, w2 = weights(experts=64)
    last = torch.full((1, 1), 63)
    assert value(w13, w2, last) == 12.0
    w13.data[63].fill_(2.0)
    assert value(w13, w2, last) == 24.0


def test_update_of_inference_tensors_is_noticed():
    with torch.inference_mode():
        w13, w2 = weights()
        assert value(w13, w2) == 12.0
        w13.fill_(3.0)
        assert value(w13, w2) == 36.0


def test_optimizer_step_and_load_state_dict_are_noticed():
    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w13, self.w2 = map(torch.nn.Parameter, weights())

    module, other = Experts(), Experts()
    assert value(module.w13, module.w2) == 12.0
    with torch.no_grad():
        other.w13.fill_(2.0)
    module.load_state_dict(other.state_dict())
    assert value(module.w13, module.w2) == 24.0
    module.w13.grad = torch.ones_like(module.w13)
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert value(module.w13, module.w2) == 12.0


def one_element(w13):
    """The block's output for an input that meets one element of w13 [1, 64, 64] alone: that element."""
    x = torch.zeros(1, 64)
    x[0, 7] = 1.0
    w2 = torch.zeros(1, 64, 64)
    w2[0, 0, 5] = 1.0
    with torch.no_grad():
        return fused_moe(x, w13, KEPT.setdefault("w2", w2), ONE, FIRST, RELU, pairing="none", format="fp32")[
            0, 0
        ].item()


KEPT = {}


def test_single_elements_written_in_place_are_noticed_by_the_version():
    w13 = torch.ones(1, 64, 64)
    assert one_element(w13) == 1.0
    w13[0, 5, 7] = 3.0
    assert one_element(w13) == 3.0


def test_reused_addresses_are_noticed_even_where_one_element_differs():
    memory = torch.ones(64 * 64)

    def at_same_address(element):
        # A tensor of its own storage, on memory that the previous one had.
        memory[5 * 64 + 7] = element
        return torch.empty(0).set_(torch.from_numpy(memory.numpy()).untyped_storage(), 0, (1, 64, 64))

    addresses = set()
    for expected in (1.0, 2.0, 3.0):
        w13 = at_same_address(expected)
        addresses.add((w13.data_ptr(), w13._version))
        assert one_element(w13) == expected
        del w13
        gc.collect()
    assert len(addresses) == 1


def test_plans_of_freed_weights_are_dropped(empty_cache):
    for scale in range(5):
        w13, w2 = weights(float(scale))
        value(w13, w2)
    assert len(empty_cache) <= 2
    del w13, w2
    value(*weights())
    assert len(empty_cache) == 1


def test_views_made_anew_for_each_call_share_a_plan(empty_cache):
    w13, w2 = weights()
    for _ in range(3):
        assert value(w13.view(1, 3, 4), w2.detach()) == 12.0
    assert len(empty_cache.made) == 1


def test_same_memory_read_differently_is_another_plan(empty_cache):
    square = torch.arange(9.0).reshape(1, 3, 3)
    w2 = torch.ones(1, 3, 3)
    x = torch.tensor([[1.0, 0.0, 0.0]])
    options = {"pairing": "none", "format": "fp32"}
    straight = fused_moe(x, square, w2, ONE, FIRST, RELU, **options)
    turned = fused_moe(x, square.transpose(1, 2), w2, ONE, FIRST, RELU, **options)
    assert straight[0, 0].item() == 9.0  # the first column's sum
    assert turned[0, 0].item() == 3.0  # the first row's
    assert len(empty_cache.made) == 2


def test_settings_are_part_of_the_key(empty_cache, monkeypatch):
    w13, w2 = weights()
    value(w13, w2)
    fused_moe(X, w13, w2, ONE, FIRST, RELU, pairing="none", format="fp32", routed_scaling_factor=2.0)
    monkeypatch.setenv("FLEXACT_NUMERICS", "precise")
    value(w13, w2)
    assert len(empty_cache.made) == 3


def test_invalidate_forgets_everything(empty_cache):
    w13, w2 = weights()
    value(w13, w2)
    flexact.moe.invalidate()
    assert len(empty_cache) == 0
    value(w13, w2)
    assert len(empty_cache.made) == 2


def test_cache_is_bounded_and_drops_the_least_recently_used(empty_cache):
    kept = [weights(float(i)) for i in range(9)]
    for w13, w2 in kept[:8]:
        value(w13, w2)
    value(*kept[0])
    value(*kept[8])
    assert len(empty_cache) == 8
    made = len(empty_cache.made)
    value(*kept[0])
    assert len(empty_cache.made) == made
    value(*kept[1])
    assert len(empty_cache.made) == made + 1


def test_failed_plan_leaves_nothing_behind(empty_cache):
    w13, w2 = weights()
    with pytest.raises(flexact.Unsupported):
        fused_moe(X, w13, w2, ONE, FIRST, RELU, pairing="none", format="mxfp4")
    assert len(empty_cache) == 0
    assert value(w13, w2) == 12.0
