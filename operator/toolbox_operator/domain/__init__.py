"""What to do, decided without doing it: pure and total functions from what was observed to a plan or a status."""
