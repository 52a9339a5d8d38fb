"""Trying definitions without their data: what tools/wild does with each file.

Read `steps` first; `constant_data` makes up what the data layers would bring.
"""
