"""Many GPUs: collectives, data, sharded and model parallelism, and the launcher of their processes."""
