"""The spool: the durable queue between the rules and the sinks, with one cursor per sink."""

from sinks.spool.spool import Spool

__all__ = ["Spool"]
