"""The catalog of checkpoints: entries, listing, and the folder of one."""
