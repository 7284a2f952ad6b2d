"""One rank of a large job, run on this machine with tensors that have shapes but no memory."""
