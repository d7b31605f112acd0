"""Research with the package: the comparison of losses and networks on small images."""
