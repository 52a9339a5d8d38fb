"""Scripts around the project, and what they share. Nothing in the package imports this."""
