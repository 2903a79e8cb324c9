"""Weights are the same if and only if all their bits are; alone, they are no larger than they must be."""

import io
import math
import struct
from collections import OrderedDict
from typing import Any

import pytest
import torch

from launcher.errors import UsageError
from launcher.node.weights import Difference, alone, compare, weights_in

TYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


def nan(bits: int) -> torch.Tensor:
    return torch.tensor([1.0, struct.unpack("f", struct.pack("I", bits))[0]])


def only(a: Any, b: Any) -> Difference:
    (found,) = compare(a, b).differences
    return found


class TestTheSame:
    @pytest.mark.parametrize("dtype", TYPES, ids=str)
    @pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)], ids=str)
    def test_copies_of_any_type_and_shape(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        tensor = torch.ones(shape).to(dtype)

        assert not compare({"w": tensor}, {"w": tensor.clone()}).differences

    def test_a_nan_with_the_same_bits(self) -> None:
        assert not compare({"w": nan(0x7FC00001)}, {"w": nan(0x7FC00001)}).differences
        assert not compare({"extra": math.nan}, {"extra": math.nan}).differences

    def test_whatever_the_order_of_names(self) -> None:
        assert not compare({"a": torch.ones(1), "b": 2}, {"b": 2, "a": torch.ones(1)}).differences

    def test_whatever_the_layout_in_memory(self) -> None:
        tensor = torch.arange(12.0).reshape(3, 4)

        assert not compare({"w": tensor.t()}, {"w": tensor.t().contiguous()}).differences

    def test_what_lies_deeper(self) -> None:
        state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "names": {"b", "a"}}]}

        assert compare(state, {**state}).tensors == 4


class TestDifferent:
    def test_the_first_value_is_told_and_how_large_the_largest_difference_is(self) -> None:
        a = torch.zeros(2, 3, 4)
        b = a.clone()
        b[0, 2, 3], b[1, 0, 0] = 0.25, -4.0

        assert only({"w": a}, {"w": b}) == Difference(name="w", a="0.0", b="0.25", index=(0, 2, 3), largest=4.0)

    def test_in_a_transposed_tensor_the_index_is_that_of_the_tensor(self) -> None:
        a = torch.zeros(3, 4)
        b = a.clone()
        b[2, 1] = 1

        assert only({"w": a.t()}, {"w": b.t()}).index == (1, 2)

    @pytest.mark.parametrize("dtype", TYPES, ids=str)
    def test_of_any_type(self, dtype: torch.dtype) -> None:
        a, b = torch.zeros(3).to(dtype), torch.tensor([0, 0, 1]).to(dtype)

        found = only({"w": a}, {"w": b})

        assert (found.index, found.largest) == ((2,), 1.0)

    def test_one_value_has_no_index(self) -> None:
        assert only({"w": torch.tensor(1)}, {"w": torch.tensor(2)}).index == ()

    def test_a_zero_and_its_negative(self) -> None:
        found = only({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])})

        assert (found.a, found.b, found.largest) == ("0.0", "-0.0", 0.0)

    def test_two_nans_of_other_bits(self) -> None:
        found = only({"w": nan(0x7FC00001)}, {"w": nan(0x7FC00002)})

        assert (found.a, found.b) == ("nan (0x7fc00001)", "nan (0x7fc00002)")
        assert (found.index, found.largest) == ((1,), None)

    def test_one_that_is_nan_where_another_value_differs_more(self) -> None:
        assert only({"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([math.nan, 9.0])}).largest is None

    @pytest.mark.parametrize(
        ("a", "b", "told"),
        [
            (torch.zeros(2, 3), torch.zeros(3, 2), ("float32[2, 3]", "float32[3, 2]")),
            (torch.zeros(2), torch.zeros(2, dtype=torch.float16), ("float32[2]", "float16[2]")),
            (torch.zeros(()), 0.0, ("float32[]", "0.0")),
            (1, 1.0, ("1", "1.0")),
            (True, 1, ("True", "1")),
            ("a", "b", ("'a'", "'b'")),
        ],
    )
    def test_by_type_or_shape(self, a: Any, b: Any, told: tuple[str, str]) -> None:
        found = only({"w": a}, {"w": b})

        assert ((found.a, found.b), found.index) == (told, None)

    def test_names_that_only_one_side_has_come_in_the_first_one_s_order(self) -> None:
        one = torch.ones(1)

        found = compare({"c": one, "a": one, "same": one}, {"b": one, "same": one})

        assert found.tensors == 4
        assert [(one.name, one.a is None, one.b is None) for one in found.differences] == [
            ("c", False, True),
            ("a", False, True),
            ("b", True, False),
        ]


class TestAlone:
    def test_a_part_of_a_large_storage_does_not_drag_it_along(self) -> None:
        large = torch.zeros(1_000_000)

        written = saved(alone({"w": large[:10], "extra": {"deep": [large[10:20]]}}))

        assert len(written) < 10_000

    def test_tied_weights_stay_tied(self) -> None:
        tied = torch.zeros(100_000)

        loaded = torch.load(io.BytesIO(saved(alone({"a": tied, "b": tied}))), weights_only=True)

        assert loaded["a"].data_ptr() == loaded["b"].data_ptr()

    def test_overlapping_ones_that_are_not_the_same_do_not(self) -> None:
        large = torch.arange(4.0)
        made = alone({"a": large[:2], "b": large[1:3], "c": large[:3]})

        assert not compare(made, {"a": large[:2], "b": large[1:3], "c": large[:3]}).differences
        assert len({one.data_ptr() for one in made.values()}) == 3

    def test_names_order_and_versions_of_modules_stay(self) -> None:
        state = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()

        loaded = torch.load(io.BytesIO(saved(alone(state))), weights_only=True)

        assert isinstance(loaded, OrderedDict)
        assert list(loaded) == list(state)
        assert loaded._metadata == state._metadata  # type: ignore[attr-defined]
        assert not compare(state, loaded).differences


class TestWeightsIn:
    def test_are_those_of_a_checkpoint_or_a_state_dict_itself(self) -> None:
        weights = {"w": torch.ones(1)}

        assert weights_in({"state_dict": weights, "epoch": 1}, "file") is weights
        assert weights_in(weights, "file") is weights

    @pytest.mark.parametrize("loaded", [[], None, torch.ones(1), {"state_dict": 3}])
    def test_other_files_hold_none(self, loaded: Any) -> None:
        with pytest.raises(UsageError, match="file: holds no weights"):
            weights_in(loaded, "file")


def saved(weights: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(weights, stream)
    return stream.getvalue()
