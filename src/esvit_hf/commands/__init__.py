"""The command line `esvit`."""
