"""groundstream's application: sources, batching, rules and the pipeline that connects detector, tracker and sinks."""

__version__ = "0.1.0"
