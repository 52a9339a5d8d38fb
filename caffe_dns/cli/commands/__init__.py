"""The commands as the user sees them: a module for each, with its flags and its help.

What a command does is in the module of the same name in `cli.actions`, of which nothing is imported
here: `--help` and completion need no PyTorch. `cli.lazy` leads from here to there.
"""
