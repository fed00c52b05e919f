"""Tensors: NumPy's values in and out, ONNX's bytes, files."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.errors import FileError
from runtime.tensors import Tensor
from runtime.types import ElementType, SequenceType, TensorType, kind_of, parse_type

FIXED_SIZE = [element for element in ElementType if element is not ElementType.STRING]
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


def random_array(element: ElementType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dtype = element.dtype
    if element is ElementType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if element.is_float or dtype.kind == "c":
        return rng.integers(-4, 5, shape).astype(np.float32).astype(dtype)
    low, high = {4: (0, 16), 2: (0, 4)}.get(element.bits, (0, 100))
    if element in (ElementType.INT4, ElementType.INT2):
        low, high = -(high // 2), high // 2
    return rng.integers(low, high, shape).astype(dtype)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(FIXED_SIZE), shapes, st.integers(0, 99))
def test_arrays_come_back_and_bytes_are_those_of_onnx(element: ElementType, shape: tuple[int, ...], seed: int) -> None:
    array = random_array(element, shape, seed)
    tensor = Tensor.from_array(array)
    assert (tensor.element, tensor.shape) == (element, shape)
    back = tensor.array()
    assert back.dtype == array.dtype and back.shape == shape
    assert back.astype(np.complex128).tobytes() == array.astype(np.complex128).tobytes()
    expected = onnx.numpy_helper.from_array(array)
    assert expected.data_type == element
    assert tensor.raw().tobytes() == expected.raw_data
    again = Tensor(element, shape, np.frombuffer(expected.raw_data, np.uint8))
    assert again == tensor and again.digest == tensor.digest and hash(again) == hash(tensor)


def test_a_mapped_tensor_is_read_only_unaligned_and_lazy(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "tensors.bin"
    path.write_bytes(b"abc" + array.tobytes())
    tensor = Tensor.from_file(path, 3, ElementType.FLOAT, (2, 3))
    assert tensor.is_mapped
    np.testing.assert_array_equal(tensor.array(), array)
    with pytest.raises(ValueError):
        tensor.array()[0, 0] = 1
    with pytest.raises(FileError, match="holds 27 bytes; a tensor needs bytes 4 to 28"):
        Tensor.from_file(path, 4, ElementType.FLOAT, (2, 3))
    with pytest.raises(FileError, match="cannot be read"):
        Tensor.from_file(tmp_path / "missing", 0, ElementType.FLOAT, (1,))


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"int4 tensor of shape \[3\] has 2 bytes, not 3"):
        Tensor(ElementType.INT4, (3,), np.zeros(3, np.uint8))


def test_strings_keep_their_text_and_their_bytes() -> None:
    tensor = Tensor.from_array(np.array([["no", "ä"], [b"\xff", ""]], dtype=object))
    assert tensor.element is ElementType.STRING and tensor.nbytes == 5
    assert tensor.array().tolist() == [["no", "ä"], [b"\xff", ""]]
    with pytest.raises(TypeError):
        tensor.raw()


def test_big_endian_arrays_become_little_endian() -> None:
    assert Tensor.from_array(np.array([1], ">i4")).raw().tolist() == [1, 0, 0, 0]


def test_types_are_written_as_onnx_writes_them() -> None:
    text = "seq(tensor(bfloat16) [tokens, 64, ?])"
    assert str(parse_type(text)) == text
    assert kind_of(parse_type(text)) == "seq(tensor(bfloat16))"
    assert parse_type("optional(seq(tensor(int64)))").of == SequenceType(TensorType(ElementType.INT64))
    assert str(parse_type("map(string,tensor(float))")) == "map(string,tensor(float))"
    assert ElementType.of(np.dtype(ml_dtypes.bfloat16)) is ElementType.BFLOAT16
    with pytest.raises(ValueError, match="ONNX spells it 'float'"):
        parse_type("tensor(float32)")
    with pytest.raises(TypeError):
        ElementType.of(np.dtype("datetime64[s]"))
