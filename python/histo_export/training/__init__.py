"""Training a `TileNet`: `histo_export.training.run.train`.

Nothing is imported here, so that reading a checkpoint (`histo_export.model.checkpoint`) or a recipe
(`histo_export.training.recipes`) doesn't load Lightning.
"""
