"""Entropy control on stock verl, on one machine or many.

    python -m entrocraft.verl <verl's own arguments> '+entrocraft.schedule="linear(0.6, 0.4, 404)"'

Importing this package registers the trainers `entrocraft_sync`, `entrocraft_colocate_async` and
`entrocraft_separate_async` with verl, and lets its FSDP engine serve token sensitivities. verl
imports it by itself, in every process, where it is installed (entry point `verl.plugins`) or named
in VERL_USE_EXTERNAL_MODULES.
"""

import logging

# verl first: a Ray worker may import this package before it, and verl imports this package
try:
    import verl  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"entrocraft.verl needs verl ({error}); pip install 'entrocraft[verl]'"
    ) from error

try:
    from entrocraft.verl.plugin import install
except ImportError as error:
    # verl swallows what a plug-in raises
    logging.getLogger("entrocraft.verl").error(
        "no entropy control: %s; pip install 'entrocraft[verl]'", error
    )
    raise

install()
