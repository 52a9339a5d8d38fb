"""The command line: turns flags into calls of the other rooms, and errors into one line.

`commands` declares the flags of each command, `actions` does the work; the modules in this folder
are shared by several commands. Read `main` first.
"""
