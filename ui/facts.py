"""What is known of ports, as rich text: for the list of inputs and for the context help."""

from __future__ import annotations

from html import escape

from runtime.errors import Severity
from runtime.graph import PortRef
from runtime.port_facts import PortFacts
from ui import theme


def link(ref: PortRef, word: str) -> str:
    """`from node.port`, where the port is a link."""
    return f'{word} <a href="node:{escape(ref.node)}">{escape(str(ref))}</a>'


def ends_html(facts: PortFacts) -> str:
    """Where the value comes from, or where it goes."""
    if facts.is_output:
        return ", ".join(link(target, "to" if not index else "") for index, target in enumerate(facts.targets))
    return link(facts.source, "from") if facts.source is not None else ""


def port_html(facts: PortFacts) -> str:
    """A paragraph about a port: name and demand, what is expected, what is there, what is wrong."""
    look = theme.current()
    faint, ink = theme.css(look.faint), theme.css(look.ink)
    is_there = facts.value is not None
    demand = "" if facts.is_output and facts.demand == "required" else facts.demand
    lines = [
        f'<b style="color: {ink if is_there else faint}">{escape(facts.title)}</b>'
        f' <span style="color: {faint}">{escape(demand)}</span>',
        f'<span style="color: {faint}">expects {escape(facts.expected)}</span>'
        if not facts.is_output
        else f'<span style="color: {faint}">gives {escape(facts.expected)}</span>',
    ]
    ends = ends_html(facts)
    if is_there or facts.declared is None or not facts.declared.optional:
        colour = ink if is_there else theme.css(look.warning)
        lines.append(f'<span style="color: {colour}">{escape(facts.there)}</span> {ends}'.strip())
    for finding in facts.findings:
        colour = theme.css(look.error if finding.severity is Severity.ERROR else look.warning)
        text = f"{finding.message} {finding.remedy}".strip()
        lines.append(f'<span style="color: {colour}">{escape(text[:1].upper() + text[1:])}</span>')
    return f'<p style="margin: 5px 0 5px 0">{"<br>".join(lines)}</p>'
