"""What a demo needs and a reader does not: flags, progress, checkpoints, data, reports, pictures."""
