"""What verl needs to run without an accelerator, through verl's own registries.

verl imports the modules named in ``VERL_USE_EXTERNAL_MODULES`` in every process: name this
package's, in the order of ``verl_runs.SHIMS``. This file imports none of them: a Ray process may
start with a class of ``tests.verl.cpu.rollout``, and verl, which that imports, then finds the rest.
"""
