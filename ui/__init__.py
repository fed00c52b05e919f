"""The editor: a view of `runtime.graph` that knows no tensor arithmetic.

It arrives with the next release. Nothing headless imports it.
"""
