"""The network: as it is trained, as it is exported, its low-precision arithmetic and its native file."""
