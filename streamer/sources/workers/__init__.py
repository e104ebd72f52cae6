"""Decode worker processes: sources that read and decode outside the process that analyses."""
