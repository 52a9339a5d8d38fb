"""The command line: one module for each action, with its flags and what it says.

Here belongs what turns flags into calls and errors into one line; work is done in the other rooms.
Read `main` first. A module is imported only when its action runs.
"""
