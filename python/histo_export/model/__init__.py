"""The network: as it is trained (`net`) and exported (`lowering`), its precisions, its files and its size."""
