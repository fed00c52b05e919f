"""The drawing of a document: NodeGraphQt's gestures and model, with light items, behind `Canvas`."""
