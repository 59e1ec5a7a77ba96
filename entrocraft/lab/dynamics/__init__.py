"""What moves policy entropy in a given training run: measurements of `entrocraft dynamics`.

A plain training is held at a few of its optimizer steps. There, from the very same parameters and
optimizer state, many real updates are made and undone; the training goes on unchanged.
"""
