"""What each command does: a module per command, with a function `run` that takes the flags' values.

The flags are declared in the module of the same name in `cli.commands`.
"""
