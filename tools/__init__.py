"""One thin command line per job: parse, call, print."""
