"""Studies at fixed compute: what is trained, where it is kept, what the results say."""
