#!/usr/bin/env bash
# GSPO with an entropy schedule; arguments go to verl and win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "${PYTHON:-python3}" -m entrocraft.verl "${common[@]}" trainer.experiment_name=gspo \
  actor_rollout_ref.actor.policy_loss.loss_mode=gspo \
  actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
  actor_rollout_ref.actor.clip_ratio_low=3e-4 \
  actor_rollout_ref.actor.clip_ratio_high=4e-4 \
  "$@"
