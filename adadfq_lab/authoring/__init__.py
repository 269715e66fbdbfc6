"""The maintainers' tools: they build the notebooks, the gallery and the recordings. No user needs them."""
