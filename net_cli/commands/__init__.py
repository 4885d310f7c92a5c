"""One module per command group; each is imported only when its group is used."""
