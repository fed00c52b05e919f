"""How a node type is declared: a class with ports and parameters, read by everyone.

    class Scale(Node):
        \"\"\"Multiplies by a number.\"\"\"
        domain = "my.domain"
        input = In("T", ["rows", "columns"], doc="what is scaled")
        output = Out("T", same_shape_as="input")
        factor = Parameter(float, default=1.0, doc="the number")
        type_constraints = {"T": FLOATS}

Node types are never instantiated: a document holds states (`runtime.graph.NodeState`) that name their type. Ports
and parameters keep the order of their declaration, which is the operator's positional order. Port names are the
operator's own; the n-th value of a variadic port `inputs` is the port `inputs.n`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from runtime.errors import Finding
from runtime.types import ValueType

if TYPE_CHECKING:
    import numpy as np

_Declared = TypeVar("_Declared", "In", "Out", "Parameter")
_P = TypeVar("_P", bound="Port")

OVERRIDE = " override"
"""Ends the name of the twin of a parameter whose manual default stands for the operator's default."""

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")


@dataclass(frozen=True, slots=True)
class Port:
    """A terminal of a node type.

    `type` is a type variable ("T") or an ONNX type string. `shape` is a pattern of integers, names and expressions
    over names ("fusion * inter"), None if any shape fits. A `variadic` port takes `minimum` or more values, of one
    type if `homogeneous`.
    """

    type: str
    shape: tuple[int | str, ...] | None = None
    optional: bool = False
    variadic: bool = False
    homogeneous: bool = True
    minimum: int = 1
    same_shape_as: str = ""
    doc: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))


class In(Port):
    """An input terminal."""


class Out(Port):
    """An output terminal."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A setting of a node type.

    `type` is int, float, str, bool, or a string for ONNX's other attribute types: "ints", "floats", "strings",
    "tensor", "tensors", "graph", "graphs", "type", "sparse_tensor". `means_default` is a value that the manual shows
    and that stands for `operator_default`: it is never exported. `attribute` is the name of the operator's attribute;
    None for a setting that the operator does not know (`training?`, `lda coeff`).
    """

    type: type | str
    default: Any = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    means_default: Any = None
    operator_default: Any = None
    doc: str = ""
    name: str = ""
    attribute: str | None = ""

    @property
    def kind(self) -> str:
        """The type's name: "int", "float", "str", "bool", "ints", ..."""
        return self.type if isinstance(self.type, str) else self.type.__name__


COMMON_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "strings", default=(), name="specified_outputs_name", attribute=None, doc="own names for the output tensors"
    ),
    Parameter(
        bool,
        default=True,
        name="training?",
        attribute=None,
        doc="whether the layer is in training mode and may store data for the backward pass",
    ),
    Parameter(
        float,
        default=1.0,
        name="lda coeff",
        attribute=None,
        doc="the coefficient by which the loss derivative is multiplied before it is sent to the previous nodes",
    ),
    Parameter(str, default="", name="name", attribute=None, doc="name of the node"),
)
"""The parameters that every operator node has, with the manual's names."""


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What a node type may look at when it checks a node and infers its outputs.

    `inputs` holds the type of every connected input by port name; `values` those of them whose numbers are known
    (small constants); `attributes` the operator's attributes that are set; `outputs` the names of the output ports
    in use (of a variadic output: as many as the node has).
    """

    id: str
    inputs: Mapping[str, ValueType]
    attributes: Mapping[str, Any]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    opsets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inference:
    """Types of a node's outputs by port name, and what is wrong with the node."""

    outputs: Mapping[str, ValueType] = field(default_factory=dict)
    findings: Sequence[Finding] = ()


class Node:
    """Base of all node types. Class attributes only; see the module's text for the form of a declaration."""

    domain: ClassVar[str] = ""
    operator: ClassVar[str] = ""
    """The operator's name; the class's name unless given."""
    since_version: ClassVar[int] = 1
    doc: ClassVar[str] = ""
    inputs: ClassVar[tuple[In, ...]] = ()
    outputs: ClassVar[tuple[Out, ...]] = ()
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    type_constraints: ClassVar[Mapping[str, Sequence[str]]] = {}
    is_operator: ClassVar[bool] = True
    """False for what becomes no ONNX node: inputs, outputs, initializers."""
    cpu_kernel: ClassVar[bool] = True
    """Whether the installed ONNX Runtime can run it on a CPU."""

    deprecated: ClassVar[bool] = False
    family: ClassVar[str] = "other"
    """The group in which a palette lists the type, one of `runtime.families.FAMILIES`."""

    evaluate: ClassVar[Callable[..., tuple[np.ndarray, ...]] | None] = None
    """NumPy kernel `(inputs: dict[port, ndarray], attributes: dict) -> tuple of outputs`, or None."""
    form: ClassVar[Callable[..., Any] | None] = None
    """What the operator is in simpler operators, or None: `(inputs: dict[port, Expr], attributes: dict)` returns the
    outputs as expressions (`runtime.gradients.expressions`). Such a node needs no kernel and no gradient of its own."""
    lower: ClassVar[Callable[..., Any] | None] = None
    """Rewrite for ONNX Runtime's CPU kernels (see `runtime.lowering`), or None if the node runs as it is."""
    numpy_pays: ClassVar[Callable[..., str] | None] = None
    """Why a node should run in its NumPy kernel although ONNX Runtime's CPU could run its rewrite, empty if it should
    not: `(inputs: dict[port, ValueType], attributes: dict, exact: bool)`. Or None, which stands for never."""
    numpy_pays_now: ClassVar[Callable[..., bool] | None] = None
    """Whether that holds for inputs of these sizes, too, where a node runs alone: `(shapes: dict[port, tuple of int],
    attributes: dict)`. Runs in which it does not are ONNX Runtime's. Or None, which stands for always."""
    numpy_trains: ClassVar[Callable[..., str] | None] = None
    """Why a node should run in its NumPy kernel as long as forward and backward passes alternate, with the arguments of
    `numpy_pays`; empty if it should not. Or None, which stands for never."""
    expand: ClassVar[Callable[..., Any] | None] = None
    """Rewrite into standard ONNX operators (see `runtime.lowering`), or None."""
    gradient: ClassVar[Callable[..., Any] | None] = None
    """The gradients of the inputs, `(call: runtime.gradients.walk.Call)`, where the operator brings its own rule: it
    writes nodes with `call.op` and returns one gradient for each input in their order, None where there is none. It
    comes before the rules of `runtime.gradients.table`. None if there is no such rule."""

    tensor_views: ClassVar[Callable[..., Any] | None] = None
    """How the tensors at the operator's inputs can be looked at, beside their elements: `(port, type: TensorType,
    attributes: dict) -> list of runtime.tensor_views.TensorView`, such as the codes that bytes hold. Or None."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = vars(cls)
        if "operator" not in own:
            cls.operator = cls.__name__
        if "doc" not in own:
            cls.doc = cleandoc(cls.__doc__ or "")

        def named(kind: type[_Declared]) -> tuple[_Declared, ...]:
            return tuple(replace(value, name=value.name or key) for key, value in own.items() if type(value) is kind)

        cls.inputs = cls.inputs + named(In)
        cls.outputs = cls.outputs + named(Out)
        parameters: list[Parameter] = []
        for parameter in cls.parameters + named(Parameter):
            if parameter.attribute == "":
                parameter = replace(parameter, attribute=parameter.name)
            parameters.append(parameter)
            if parameter.means_default is not None:
                parameters.append(_override(parameter))
        if cls.is_operator:
            known = {parameter.name for parameter in parameters}
            parameters += [common for common in COMMON_PARAMETERS if common.name not in known]
        cls.parameters = tuple({parameter.name: parameter for parameter in parameters}.values())
        cls._inputs = {port.name: port for port in cls.inputs}
        cls._outputs = {port.name: port for port in cls.outputs}
        cls._parameters = {parameter.name: parameter for parameter in cls.parameters}

    _inputs: ClassVar[dict[str, In]] = {}
    _outputs: ClassVar[dict[str, Out]] = {}
    _parameters: ClassVar[dict[str, Parameter]] = {}

    @classmethod
    def type_name(cls) -> str:
        """The name by which documents refer to this type: `com.microsoft.QMoE`, `MatMul`."""
        return f"{cls.domain}.{cls.operator}" if cls.domain else cls.operator

    @classmethod
    def input_port(cls, name: str) -> In | None:
        """The declared input that `name` is, or is one of (`inputs.3`)."""
        return cls._inputs.get(name) or _variadic(cls._inputs, name)

    @classmethod
    def output_port(cls, name: str) -> Out | None:
        """The declared output that `name` is, or is one of (`outputs.3`)."""
        return cls._outputs.get(name) or _variadic(cls._outputs, name)

    @classmethod
    def parameter(cls, name: str) -> Parameter | None:
        """The declared parameter of that name."""
        return cls._parameters.get(name)

    @classmethod
    def to_attributes(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The operator's attributes that a node's parameters stand for: set ones only, operator defaults left out."""
        attributes: dict[str, Any] = {}
        overrides: dict[str, Any] = {}
        for name, value in parameters.items():
            declared = cls._parameters.get(name)
            if declared is None:
                attributes[name] = value
            elif declared.attribute is None or value is None:
                continue
            elif name.endswith(OVERRIDE):
                overrides[declared.attribute] = value
            elif declared.means_default is None or value != declared.means_default:
                attributes[declared.attribute] = value
        return attributes | overrides

    @classmethod
    def to_parameters(cls, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a node that has these operator attributes: the inverse of `to_attributes`."""
        parameters: dict[str, Any] = {}
        for name, value in attributes.items():
            declared = cls._parameters.get(name)
            shadowed = declared is not None and declared.means_default is not None and value == declared.means_default
            parameters[name + OVERRIDE if shadowed else name] = value
        return parameters

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        """Types of the outputs, and what is wrong beyond ports and parameter ranges, which `check` looks at itself."""
        return Inference()


def _override(parameter: Parameter) -> Parameter:
    """The optional field for whoever means the very value that otherwise stands for the operator's default."""
    return Parameter(
        parameter.type,
        name=parameter.name + OVERRIDE,
        attribute=parameter.attribute,
        doc=f"{parameter.name}, exported as it is: for a true {parameter.means_default}; empty by default",
    )


def _variadic(ports: Mapping[str, _P], name: str) -> _P | None:
    base, dot, index = name.rpartition(".")
    port = ports.get(base) if dot and index.isdigit() else None
    return port if port is not None and port.variadic else None
