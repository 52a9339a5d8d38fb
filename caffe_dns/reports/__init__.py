"""What people and spreadsheets read: tables, charts, graphs and pages.

Here belongs how figures are shown; they are measured elsewhere (`surgery.sensitivity`, `profile`)
or stand in a log. Nothing here changes a net. Start with the module of the command's name.
"""
