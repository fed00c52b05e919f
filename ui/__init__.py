"""The editor: a view of `runtime.graph` that knows no tensor arithmetic. Nothing headless imports it."""
