"""What a demo needs and a reader does not: flags, progress, checkpoints, files, data, judging, drawing, reports."""
