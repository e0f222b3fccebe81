"""The durable queue: jobs that survive whatever dies, from the disk up."""
