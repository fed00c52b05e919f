"""The state of a training run in one file, there whole or not at all."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.atomic import replacing
from runtime.errors import FileError
from runtime.tensors import Tensor
from runtime.types import ElementType

VERSION = 1
_STATE = "state.json"
LARGEST_STATE = 1 << 28
"""Bytes of the state beside the tensors, at most."""


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Writes tensors by name and a state (what JSON holds). The old file stays until the new one is whole."""
    described = {}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, (name, array) in enumerate(tensors.items()):
            tensor = Tensor.from_array(array)
            described[name] = {"type": str(tensor.element), "shape": list(tensor.shape), "entry": f"{number}"}
            archive.writestr(f"{number}", np.ascontiguousarray(tensor.raw()).tobytes())
        archive.writestr(_STATE, json.dumps({"version": VERSION, "tensors": described, "state": dict(state)}))


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the state of a checkpoint. FileError says what is wrong with the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            if archive.getinfo(_STATE).file_size > LARGEST_STATE:
                raise FileError(path, "is no checkpoint: its state is too large.")
            content = json.loads(archive.read(_STATE))
            if content["version"] != VERSION:
                raise FileError(path, f"is a checkpoint of version {content['version']}; this reads {VERSION}.")
            tensors: dict[str, np.ndarray] = {}
            for name, about in content["tensors"].items():
                raw = np.frombuffer(archive.read(about["entry"]), np.uint8)
                tensors[name] = Tensor(ElementType.parse(about["type"]), tuple(about["shape"]), raw).array()
            return tensors, dict(content["state"])
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(path, f"is no checkpoint of a training run, or a damaged one ({error}).") from error
