"""Node types of ONNX's and ONNX Runtime's operators, generated from the installed packages' schemas.

Nothing is read before the first operator is asked for, and a class is made only for the operators that are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from inspect import cleandoc
from typing import Any

import onnx
import onnx.defs
import onnx.helper

from runtime.families import family_of
from runtime.node import In, Node, Out, Parameter

STANDARD_DOMAIN = ""
INTERNAL_DOMAINS = frozenset({"com.ms.internal.nhwc", "com.microsoft.nchwc", "com.microsoft.experimental"})
LAYER_NORMALIZATIONS = frozenset({"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"})
"""Operators that only ONNX Runtime knows in the standard domain and that exporters use; its others are leftovers."""

_KINDS: Mapping[str, type | str] = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "INTS": "ints",
    "FLOATS": "floats",
    "STRINGS": "strings",
    "TENSOR": "tensor",
    "TENSORS": "tensors",
    "GRAPH": "graph",
    "GRAPHS": "graphs",
    "SPARSE_TENSOR": "sparse_tensor",
    "TYPE_PROTO": "type",
}


class Schema:
    """One version of one operator, as either package describes it, under one set of names."""

    __slots__ = ("_raw", "domain", "from_onnx", "name", "version")

    def __init__(self, raw: Any, from_onnx: bool) -> None:
        self._raw = raw
        self.from_onnx = from_onnx
        self.domain: str = "" if raw.domain == "ai.onnx" else raw.domain
        self.name: str = raw.name
        self.version: int = raw.since_version

    @property
    def deprecated(self) -> bool:
        """Whether new graphs should do without it."""
        return bool(self._raw.deprecated)

    def ports(self, kind: type[In] | type[Out]) -> Iterator[In | Out]:
        """The operator's inputs or outputs in order."""
        for formal in self._raw.inputs if kind is In else self._raw.outputs:
            option = str(formal.option).rpartition(".")[2]
            yield kind(
                type=formal.type_str if self.from_onnx else formal.typeStr,
                optional=option == "Optional",
                variadic=option == "Variadic",
                homogeneous=bool(formal.is_homogeneous if self.from_onnx else formal.isHomogeneous),
                minimum=formal.min_arity if self.from_onnx else 1,
                doc=formal.description.strip(),
                name=formal.name,
            )

    def parameters(self) -> Iterator[Parameter]:
        """The operator's attributes."""
        for attribute in self._raw.attributes.values():
            kind = _KINDS[str(attribute.type).rpartition(".")[2]]
            if self.from_onnx:
                proto = attribute.default_value
            else:
                # The only place where these defaults are to be had.
                proto = onnx.AttributeProto.FromString(attribute._default_value or b"")
            default = _plain(onnx.helper.get_attribute_value(proto)) if proto.type else None
            yield Parameter(
                kind,
                default=default,
                required=bool(attribute.required),
                operator_default=default,
                doc=attribute.description.strip(),
                name=attribute.name,
            )

    def type_constraints(self) -> dict[str, tuple[str, ...]]:
        """The types that each type variable may stand for."""
        return {
            constraint.type_param_str: tuple(sorted(constraint.allowed_type_strs))
            for constraint in self._raw.type_constraints
        }

    def doc(self) -> str:
        """The operator's description."""
        return cleandoc(self._raw.doc or "")

    @property
    def family(self) -> str:
        """The group in which a palette lists the operator."""
        return family_of(self._raw.file if self.from_onnx else "", self.name)

    @property
    def is_function(self) -> bool:
        """Whether the operator is defined by simpler ones, which ONNX Runtime runs in its place."""
        return self.from_onnx and bool(self._raw.has_function or self._raw.has_context_dependent_function)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return value


@cache
def _schemas() -> dict[tuple[str, str], list[Schema]]:
    """Every version of every operator by (domain, name), oldest first; ONNX's own description where both have one."""
    import onnxruntime.capi.onnxruntime_pybind11_state as native

    found: dict[tuple[str, str, int], Schema] = {}
    for raw in native.get_all_operator_schema():
        if raw.domain not in INTERNAL_DOMAINS:
            schema = Schema(raw, from_onnx=False)
            found[schema.domain, schema.name, schema.version] = schema
    for raw in onnx.defs.get_all_schemas_with_history():
        schema = Schema(raw, from_onnx=True)
        found[schema.domain, schema.name, schema.version] = schema
    grouped: dict[tuple[str, str], list[Schema]] = {}
    for domain, name, version in sorted(found):
        grouped.setdefault((domain, name), []).append(found[domain, name, version])
    return grouped


@cache
def _kernels() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Version ranges of ONNX Runtime's CPU kernels by (domain, name)."""
    import onnxruntime.capi.onnxruntime_pybind11_state as native

    ranges: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in native.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            domain = "" if kernel.domain == "ai.onnx" else kernel.domain
            ranges.setdefault((domain, kernel.op_name), []).append(tuple(kernel.version_range))
    return ranges


def find(domain: str, name: str, opset: int | None) -> type[Node] | None:
    """The operator's type at the newest version that the operator set `opset` has (the newest of all if None)."""
    versions = _schemas().get((domain, name))
    if not versions:
        return None
    fitting = [schema for schema in versions if opset is None or schema.version <= opset]
    return _node_type(domain, name, fitting[-1].version) if fitting else None


def first_version(domain: str, name: str) -> int | None:
    """The version of the operator set with which an operator came; None for an operator that nobody knows."""
    versions = _schemas().get((domain, name))
    return versions[0].version if versions else None


def names() -> list[tuple[str, str]]:
    """The (domain, name) of every operator that a new graph may use: no deprecated ones, no leftovers."""
    listed = []
    for (domain, name), versions in _schemas().items():
        newest = versions[-1]
        leftover = domain == STANDARD_DOMAIN and not newest.from_onnx and name not in LAYER_NORMALIZATIONS
        if not (leftover or newest.deprecated or domain.startswith("ai.onnx.preview")):
            listed.append((domain, name))
    return listed


@cache
def newest_opset(domain: str) -> int:
    """The newest version of an operator set that both packages know; 1 for a domain that neither knows."""
    if domain == STANDARD_DOMAIN:
        import onnxruntime.capi.onnxruntime_pybind11_state as native

        # ONNX Runtime refuses operator sets that are newer than the newest it was built with.
        newest = max(s.since_version for s in native.get_all_operator_schema() if s.domain == "")
        return min(onnx.defs.onnx_opset_version(), newest)
    versions = [schema.version for (owner, _), all in _schemas().items() if owner == domain for schema in all]
    return max(versions, default=1)


@cache
def _node_type(domain: str, name: str, version: int) -> type[Node]:
    schema = next(schema for schema in _schemas()[domain, name] if schema.version == version)
    later = [other.version for other in _schemas()[domain, name] if other.version > version]
    end = min(later, default=1 << 30)
    # ONNX Runtime folds constants and inlines functions: neither needs a kernel.
    kernel = (
        name == "Constant"
        or schema.is_function
        or any(low < end and high >= version for low, high in _kernels().get((domain, name), ()))
    )
    body = {
        "__doc__": schema.doc(),
        "domain": domain,
        "operator": name,
        "since_version": version,
        "doc": schema.doc(),
        "inputs": tuple(schema.ports(In)),
        "outputs": tuple(schema.ports(Out)),
        "parameters": tuple(schema.parameters()),
        "type_constraints": schema.type_constraints(),
        "cpu_kernel": kernel,
        "deprecated": schema.deprecated,
        "family": schema.family,
        "__module__": __name__,
    }
    return type(name, (Node,), body)
