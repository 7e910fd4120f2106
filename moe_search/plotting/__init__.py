"""Figures, tables and the HTML report; one figure a file."""
