#!/usr/bin/env bash
# two_nodes.sh HEAD_ADDRESS SCRIPT [ARGUMENTS]: on each of two nodes, the head first.
set -euo pipefail
head="${1:?the address of the head node}"
script="${2:?the script to run, such as ./grpo.sh}"
shift 2
port="${RAY_PORT:-6379}"
# workers inherit the environment of their node's Ray: every process has to import the plug-in
export VERL_USE_EXTERNAL_MODULES="${VERL_USE_EXTERNAL_MODULES:-entrocraft.verl}"
if hostname -I | tr ' ' '\n' | grep -qxF "$head"; then
  ray start --head --port="$port"
  until [ "$(ray status 2>/dev/null | grep -c '^ 1 node_')" -ge 2 ]; do
    echo "waiting for the second node"
    sleep 5
  done
  NODES=2 RAY_ADDRESS="$head:$port" "$script" "$@"
  ray stop
else
  ray start --address="$head:$port" --block
fi
