#!/usr/bin/env bash
# GRPO with an entropy schedule; arguments go to verl and win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "${PYTHON:-python3}" -m entrocraft.verl "${common[@]}" trainer.experiment_name=grpo "$@"
