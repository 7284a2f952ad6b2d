"""One thin command line per verb: parse, call, print."""
