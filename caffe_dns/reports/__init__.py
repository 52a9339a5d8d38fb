"""Reports for people and spreadsheets: tables, charts, graphs and pages.

Here belongs how figures are shown; they are measured elsewhere (`surgery.sensitivity`, `profile`)
or read from a log. Nothing here changes a net. Start with the module of the command's name.
"""
