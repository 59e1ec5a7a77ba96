"""What moves policy entropy in a training at hand: measurements behind `entrocraft dynamics`.

A plain training is held at a few of its optimizer steps. There, from the very same parameters and
optimizer state, many real updates are made and taken back:

- `patterns`: predicted against realized change of entropy, for random keep patterns;
- `theorem`: how often the condition of the Entrocraft paper's Theorem 1 is met;
- `authority`: how far each acceptance rule can push the entropy, over inner updates and clipping.

Nothing of it changes the training that it looks at.
"""

from entrocraft.lab.dynamics.config import DynamicsConfig
from entrocraft.lab.dynamics.study import dynamics

__all__ = ["DynamicsConfig", "dynamics"]
