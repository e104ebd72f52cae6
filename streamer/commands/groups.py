"""Command groups whose help reads as plain text: values are words, summaries are printed whole."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperGroup, TyperOption

_VALUE_WORDS = {"str": "TEXT", "int": "N", "float": "NUMBER", "path": "PATH", "file": "PATH", "directory": "FOLDER"}
"""Metavar by the type name that typer would print."""
_SUMMARY_LENGTH = 200  # characters: no summary is cut


class CommandGroup(TyperGroup):
    """A group of commands with readable metavars and uncut summaries."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the command, its parameters ready for `--help`."""
        command = super().get_command(ctx, cmd_name)
        for parameter in getattr(command, "params", ()):
            _show_value_as_word(parameter, ctx)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands of the group with their summaries."""
        rows = [(name, command.get_short_help_str(_SUMMARY_LENGTH)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _show_value_as_word(parameter: Any, ctx: Any) -> None:
    if isinstance(parameter, TyperArgument):
        parameter.metavar = parameter.metavar or str(parameter.name).upper()
        parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
    elif isinstance(parameter, TyperOption) and parameter.metavar is None and not parameter.is_flag:
        kind = parameter.display_type(ctx).strip("<>").removeprefix("list[").removesuffix("]").removesuffix(" range")
        parameter.metavar = _VALUE_WORDS.get(kind, kind)
