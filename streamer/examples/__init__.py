"""Short programs that use groundstream as a library; each runs as `python -m streamer.examples.NAME VIDEO`."""
