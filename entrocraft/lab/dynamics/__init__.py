"""What moves policy entropy in a given training run: measurements of `entrocraft dynamics`.

A plain training is held at a few of its optimizer steps. There, from the very same parameters and
optimizer state, many real updates are made and undone:

- `patterns`: predicted against post-update change of entropy, for random keep patterns;
- `theorem`: how often the condition of the Entrocraft paper's Theorem 1 is met;
- `reach`: how far each rejection rule can push the entropy, over inner updates and clipping.

Nothing of it changes the training that it looks at.
"""
