"""Side-by-side measurements against named peers; not run by the tests."""
