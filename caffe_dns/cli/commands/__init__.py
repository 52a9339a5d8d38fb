"""The commands as the user sees them: one module per command, with its flags and its help.

What a command does is in the module of the same name in `cli.actions`. Nothing is imported from
there here, so that `--help` and completion need no PyTorch; `cli.lazy` makes the connection.
"""
