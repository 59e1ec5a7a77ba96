# Shared by the runs; sourced, not run.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
data="${DATA:-$here/data}"
nodes="${NODES:-1}"
gpus="${GPUS_PER_NODE:-8}"

common=(
  "data.train_files=$data/train.parquet"
  "data.val_files=$data/test.parquet"
  data.train_batch_size=1024
  data.max_prompt_length=1024
  data.max_response_length=3072
  data.shuffle=False
  data.filter_overlong_prompts=True
  "reward.custom_reward_function.path=$here/reward.py"
  "actor_rollout_ref.model.path=${MODEL:-Qwen/Qwen3-4B-Base}"
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.ppo_mini_batch_size=256
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
  actor_rollout_ref.actor.use_kl_loss=True
  actor_rollout_ref.actor.kl_loss_coef=0.001
  actor_rollout_ref.actor.kl_loss_type=low_var_kl
  actor_rollout_ref.actor.entropy_coeff=0
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.gpu_memory_utilization=0.7
  actor_rollout_ref.rollout.calculate_log_probs=True
  actor_rollout_ref.rollout.val_kwargs.n=4
  actor_rollout_ref.rollout.val_kwargs.temperature=0.6
  actor_rollout_ref.rollout.val_kwargs.top_p=0.95
  actor_rollout_ref.rollout.val_kwargs.top_k=20
  actor_rollout_ref.rollout.val_kwargs.do_sample=True
  algorithm.adv_estimator=grpo
  algorithm.use_kl_in_reward=False
  trainer.nnodes="$nodes"
  trainer.n_gpus_per_node="$gpus"
  trainer.total_epochs=1
  trainer.save_freq=20
  trainer.test_freq=5
  trainer.project_name=entrocraft
  'trainer.logger=["console","file"]'
  # 101 batches of four updates each; the clock counts updates
  'entrocraft.schedule=linear(0.6, 0.4, 404)'
)
