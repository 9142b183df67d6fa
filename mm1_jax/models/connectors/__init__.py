"""Connectors: map image features to a fixed number of embeddings per image in decoder space."""
