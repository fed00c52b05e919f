"""How a graph looks: sizes, places, colours and words, for every painter; and a painter that needs no window."""
