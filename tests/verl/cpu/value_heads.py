"""For runs without the plug-in: keep verl off TRL, whose newer releases lack value heads."""

from verl.utils import import_utils

import_utils.is_trl_available = lambda: False
