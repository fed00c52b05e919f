"""Arrays in files: .npy, .npz and .safetensors in, .npz out."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runtime.atomic import replacing
from runtime.errors import FileError

FORMS = (".npy", ".npz", ".safetensors")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; the one of a .npy file has the name "".

    Nothing in a file is executed: arrays of Python objects are refused. FileError says what is wrong with the file.
    """
    path = Path(path)
    form = path.suffix.lower()
    if form not in FORMS:
        raise FileError(path, f"expected a name that ends with one of {', '.join(FORMS)}.", code="name")
    if not path.is_file():
        raise FileError(path, "is not there." if not path.exists() else "is no ordinary file.")
    if form == ".safetensors":
        from runtime.snippets.tensor_files import read_tensors

        return {name: tensor.array() for name, tensor in read_tensors(path).items()}
    try:
        if form == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise FileError(path, f"cannot be read as NumPy's {form} of plain numbers: {error}.") from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a .npz file, whole or not at all; the same arrays give the same bytes.

    NumPy's form has no name for bfloat16, float8 and the like: it holds their bytes, as the type |V2 or |V1.
    """
    with replacing(path) as file:
        put_arrays(file, arrays)


def put_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `write_arrays` does, into an open file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: a file's content says nothing about when it was made
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
