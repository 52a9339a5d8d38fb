"""The command line: one module for each action, with its flags and what it says of them.

Here belongs what turns flags into calls and errors into one line; what an action does with them is
in `actions`, work is done in the other rooms. Read `main` first. The declarations import nothing
that takes long to load.
"""
