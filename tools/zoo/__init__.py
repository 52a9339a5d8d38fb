"""The networks in models/ as Python: `tools/make_models` writes their prototxts from here."""
