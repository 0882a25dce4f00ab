"""What the host must remember across restarts: desired state, grants, tombstones, keys; on disk, atomic, 0600."""
