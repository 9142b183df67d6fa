"""The parts of MM1 and the whole: vision encoder, connector, merge, decoder."""
