"""The MM1 model and its parts: vision encoder, connector, merge, decoder."""
