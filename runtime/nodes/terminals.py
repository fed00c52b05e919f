"""Where values enter and leave a graph: inputs, outputs, initializers, and captures of an outer graph's values."""

from __future__ import annotations

from runtime.node import In, Inference, Node, NodeContext, Out, Parameter
from runtime.types import TensorType, ValueType, parse_type

TRAINING_TYPES = ("constant", "trainable weight", "frozen weight")


class Input(Node):
    """A value that is given to the graph when it runs."""

    is_operator = False
    family = "graph"
    value = Out("V", doc="the value given")
    name = Parameter(str, default="", attribute=None, doc="the input's name; the node's id if empty")
    type = Parameter(str, default="", attribute=None, doc="ONNX type, such as tensor(float); any if empty")
    shape = Parameter(
        "shape", attribute=None, doc="dimensions: integers, names or null for unknown ones; any rank if not set"
    )

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        return Inference({"value": declared_type(context)})


class Output(Node):
    """A value that the graph gives when it has run."""

    is_operator = False
    family = "graph"
    value = In("V", doc="the value to give out")
    name = Parameter(str, default="", attribute=None, doc="the output's name; the node's id if empty")
    type = Parameter(str, default="", attribute=None, doc="ONNX type that the value must have; any if empty")
    shape = Parameter("shape", attribute=None, doc="dimensions that the value must have; any if not set")


class Initializer(Node):
    """A tensor that belongs to the graph."""

    is_operator = False
    family = "graph"
    value = Out("V", doc="the tensor")
    name = Parameter(str, default="", attribute=None, doc="the tensor's name; the node's id if empty")
    tensor = Parameter("tensor", required=True, attribute=None, doc="the numbers")
    training_type = Parameter(
        str, default="constant", choices=TRAINING_TYPES, attribute=None, doc="whether training changes it"
    )
    l1 = Parameter(float, default=0.0, minimum=0.0, attribute=None, doc="training adds l1 * sum(|w|) to the loss")
    l2 = Parameter(float, default=0.0, minimum=0.0, attribute=None, doc="training adds l2 * sum(w^2) to the loss")
    overridable = Parameter(
        bool, default=False, attribute=None, doc="also an input of the graph, whose default value the tensor is"
    )

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        tensor = context.attributes.get("tensor")
        return Inference({"value": tensor.type if tensor is not None else TensorType()})


class Capture(Node):
    """Inside a subgraph: a value of the graph around it."""

    is_operator = False
    family = "graph"
    value = Out("V", doc="the outer value")
    name = Parameter(str, required=True, attribute=None, doc="the name of the value in the outer graph")
    type = Parameter(str, default="", attribute=None, doc="ONNX type of the value, if known")
    shape = Parameter("shape", attribute=None, doc="dimensions of the value, if known")

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        return Inference({"value": declared_type(context)})


def declared_type(context: NodeContext) -> ValueType:
    """The type that a terminal's parameters declare; the context's attributes are the parameters here."""
    declared = parse_type(context.attributes["type"]) if context.attributes.get("type") else TensorType()
    shape = context.attributes.get("shape")
    if shape is not None and isinstance(declared, TensorType):
        return TensorType(declared.element, tuple(shape), declared.sparse)
    return declared
