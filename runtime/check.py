"""placeholder"""
from runtime.graph import Graph, PortRef
class Checker:
    def __init__(self, graph: Graph) -> None: ...
    def why_not(self, source: PortRef, target: PortRef) -> str | None: return None
