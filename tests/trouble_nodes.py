"""A node type that gets its process into trouble; importing this module registers it."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from runtime import catalog
from runtime.node import In, Node, Out, Parameter


def _evaluate(inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> tuple[np.ndarray]:
    match attributes.get("how", ""):
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "error":
            raise RuntimeError("a mistake in a plug-in")
        case "sleep":
            time.sleep(60)
    return (inputs["X"],)


class Trouble(Node):
    """Gives its input back, unless `how` says otherwise."""

    domain = "test.trouble"
    X = In("T")
    Y = Out("T", same_shape_as="X")
    how = Parameter(str, default="", doc="abort, exit, error or sleep")
    type_constraints = {"T": ("tensor(float)",)}
    cpu_kernel = False
    evaluate = staticmethod(_evaluate)


catalog.register(Trouble)
