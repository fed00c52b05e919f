"""Ray: connected to a cluster, or with one of its own on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import warnings
from typing import Any

from runtime.errors import Finding, GraphError
from runtime.interrupts import delayed

LOCAL = "local"
"""The address that stands for a cluster on this machine, which is there as long as the job."""


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def connect(address: str, processors: int) -> Any:
    """Ray, connected to the cluster at an address, or with one of its own on this machine for so many threads.

    GraphError if it is not installed or there is no such cluster.
    """
    if not address.strip():
        raise GraphError(Finding(f"expected an address, such as {LOCAL} or head:6379; none came.", code="cluster"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Nobody else on this machine, or near it, gets into a local cluster. Ray looks when it is imported.
    if address == LOCAL and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ModuleNotFoundError as error:
        raise GraphError(
            Finding(
                "Ray is not installed.",
                remedy="Install it with the product: pip install qmoe-studio[cluster].",
                code="cluster",
            )
        ) from error
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        options |= {"address": LOCAL, "num_cpus": processors, "include_dashboard": False}
    else:
        options["address"] = address
    somebody_listens = address != LOCAL and _knock(address)
    if ray.is_initialized():
        if address == LOCAL:
            raise GraphError(Finding("This process is connected to a cluster already.", code="cluster"))
        return ray
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with delayed():  # a connection that was broken off while it was made ends the process later
                ray.init(**options)
        except KeyboardInterrupt:
            ray.shutdown()
            raise
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            remedy = "Start one (ray start --head), or use --cluster local."
            if somebody_listens:
                remedy = (
                    "Look whether the address is that of the head's GCS (ray start --head prints it), whether Ray here "
                    "is of the cluster's version, and whether the token is the cluster's (RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH)."
                )
            text = f"There is no cluster to be had at {address}: {first_line(error).rstrip('.')}."
            raise GraphError(Finding(text, remedy=remedy, code="cluster")) from error
    # What befalls workers is told in our own words. Ray would print it to the standard output, between results.
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = False
    return ray


def _knock(address: str) -> bool:
    """Whether somebody listens at host:port; GraphError if nobody does: Ray itself would try for minutes.

    False for addresses of other forms, of which Ray itself finds out.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5).close()
        return True
    except (OSError, OverflowError) as error:
        raise GraphError(
            Finding(
                f"There is no cluster to be had at {address}: {error}.",
                remedy="Start one (ray start --head), or use --cluster local.",
                code="cluster",
            )
        ) from error


def first_line(error: BaseException) -> str:
    """What matters of an error of Ray's, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("ModuleNotFoundError", "ImportError", "The actor died"))]
    text = (told or lines or [type(error).__name__])[-1 if told else 0]
    return text if len(text) <= 300 else text[:297] + "..."
