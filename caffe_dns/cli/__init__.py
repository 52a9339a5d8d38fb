"""The command line: what turns flags into calls of the other rooms, and errors into one line.

`commands` declares the flags of each command, `actions` does what it is asked for; the modules of
this folder are what several of them share. Read `main` first.
"""
