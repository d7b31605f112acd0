"""Rules that every other package keeps: errors, files, names, tables in one form."""
