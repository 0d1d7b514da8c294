"""The master: policy, hard state and control plane around the native directory."""
