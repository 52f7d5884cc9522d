"""What demos need and a reader does not: flags, progress, checkpoints, data, reports, pictures."""
