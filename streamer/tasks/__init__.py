"""The work behind each command: `commands/X.py` parses the options of a command, `tasks/X.py` does its work."""
