"""What each command does: a module with a function `run` for each that takes long to load.

The command's flags are declared in the module of the same name one folder up, which imports none of
these: `--help` and completion need no PyTorch. `lazy` leads from there to here.
"""
